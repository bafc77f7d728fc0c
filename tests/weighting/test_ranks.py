"""PCGrad on an FGMoE block under the engine, however laid out, against vectors in float64 on one process.

The truth takes each task's gradient from the loops of test_truth.py over all tokens at once, changes the vectors as the
paper's algorithm says, and steps with torch's AdamW. The routed experts count as shared here, so that the inner
products have to be gathered from all ranks.

Legend: T tasks, P numbers of all shared parameters.
"""

from __future__ import annotations

import functools
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fgmoe_dist.config import Config, build_config
from fgmoe_dist.weighting.base import Around, Seen, Weighting
from fgmoe_dist.weighting.fixed import Fixed
from fgmoe_dist.weighting.pcgrad import PCGrad, PCGradSettings, draw_orders
from fgmoe_dist.weighting.weighing import Weighing
from tests.ranks import run_ranks
from tests.training.test_truth import (
    EXPERTS,
    Case,
    Inputs,
    block_of_loops,
    by_name,
    create_block,
    distance,
    inputs,
)
from tests.weighting.test_methods import paper

STEPS, MICRO_BATCHES, SEED = 2, 4, 5
CASE = Case(counts=(5, 5, 5, 5))
BASE_T = (1.0, 2.5, 0.5)
SHARED = ("norm.weight", "norm.bias", "global_norm.weight", "global_norm.bias", "global_experts.w_in_GCH",
          "global_experts.b_in_GH", "global_experts.w_out_GHC", "global_experts.b_out_GC")  # fmt: skip


class Layout(NamedTuple):
    world: int
    ep_size: int
    zero_stage: int
    precision: str = "fp32"


def configuration(layout: Layout) -> Config:
    return build_config(
        {
            "experts": {**EXPERTS, "kernel": "cpu", "groups": 4, "score": "softmax"},
            "train": {
                "batch_size": MICRO_BATCHES, "micro_batch_size": 1, "lr": 3e-4, "optimizer": "adamw",
                "weight_decay": 1e-2, "clip_norm": 0.0, "steps": 20, "precision": layout.precision,
            },
            "parallel": {"ep_size": layout.ep_size, "zero_stage": layout.zero_stage},
        }
    )  # fmt: skip


class Held(nn.Module):
    """Gives what it holds as an object: DeepSpeed hooks tensors in tuples, and takes any walk of theirs for its own."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, u_TNC: Tensor, a_NC: Tensor) -> Any:
        return SimpleNamespace(h_TNC=self.block(u_TNC, a_NC, 1)[0])


def task_losses(h_TNC: Tensor, given: Inputs) -> tuple[list[Tensor], Tensor]:
    """A loss per task, which pull in different directions, and an auxiliary one of all."""
    towards_T11 = torch.tensor([3.0, -3.0, 1.0])[:, None, None]
    losses_T = (h_TNC - towards_T11 * given.target_TNC[0]).square().sum((1, 2)) / 10
    return list(losses_T), h_TNC.square().mean()


# --- ours, on a rank ---


def train_on_rank(layouts: list[Layout]) -> list[dict[str, Any]]:
    pcgrad = PCGrad(PCGradSettings(), Around(("a", "b", "c"), 1, SEED))
    return [train_one(configuration(layout), pcgrad, BASE_T) for layout in layouts]


def train_one(config: Config, method: Weighting, base_T: tuple[float, ...]) -> dict[str, Any]:
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_grad

    from fgmoe_dist.training.engines.deepspeed import create_engine

    block = create_block(CASE, config)
    experts = {id(e.parameter) for e in block.routed.logical_experts()}
    shared = {p: name in SHARED or id(p) in experts for name, p in block.named_parameters()}
    engine = create_engine(Held(block), config)
    weighing = Weighing(method, base_T, [p for p in shared if shared[p]], [p for p in shared if not shared[p]])
    parts = MICRO_BATCHES // dist.get_world_size()
    answer: dict[str, Any] = {"factors": []}
    for step in range(STEPS):
        weighing.begin(step)
        for part in range(parts):
            given = inputs(CASE, step, 0, dist.get_rank() * parts + part)
            dtype = next(block.parameters()).dtype
            output = engine(given.u_TNC.to(dtype), given.a_NC.to(dtype))
            losses_T, auxiliary = task_losses(output.h_TNC.float(), given)
            terms_T = weighing.terms(losses_T)
            with weighing.backward([(0.05, auxiliary)], 1 / parts, last=part == parts - 1):
                engine.backward(sum(terms_T) + 0.05 * auxiliary)
            if step == 0 and part == parts - 1:
                answer["gradients"] = by_name(block, {p: safe_get_full_grad(p) for p in block.parameters()})
            engine.step()
        answer["factors"].append(list(weighing.finish().values()))
    answer["weights"] = by_name(block, {p: p.detach() for p in block.parameters()})
    return answer


# --- the truth ---


@functools.cache
def truth() -> dict[str, Any]:
    config = configuration(Layout(1, 1, 1))
    block = create_block(CASE, config)
    parameters = {
        name: torch.tensor(value, dtype=torch.float64).requires_grad_()
        for name, value in by_name(block, {p: p.detach() for p in block.parameters()}).items()
    }
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    answer: dict[str, Any] = {}
    for step in range(STEPS):
        gradients = true_gradients(parameters, config, step)
        answer.setdefault("gradients", gradients)
        for name, parameter in parameters.items():
            parameter.grad = gradients[name]
        optimizer.step()
    answer["weights"] = {name: p.detach() for name, p in parameters.items()}
    return answer


def true_gradients(parameters: dict[Any, nn.Parameter], config: Config, step: int) -> dict[Any, Tensor]:
    """By name: the paper's for shared parameters, and what autograd gives for the sum of all losses elsewhere."""
    by_source = [
        {name: torch.zeros_like(p) if g is None else g for (name, p), g in zip(parameters.items(), found)}
        for found in (
            torch.autograd.grad(mean, parameters.values(), retain_graph=True, allow_unused=True)
            for mean in true_losses(parameters, config, step)
        )
    ]
    gradients = {name: sum(found[name] for found in by_source) for name in parameters}
    shared = [name for name in parameters if name in SHARED or isinstance(name, tuple)]
    *tasks_TP, auxiliary_P = (torch.cat([found[name].flatten() for name in shared]).numpy() for found in by_source)
    tasks_TP = np.stack(tasks_TP)
    assert (tasks_TP @ tasks_TP.T).min() < 0, "no two tasks are in conflict, so that nothing is tested"
    combined_P = torch.from_numpy(paper(tasks_TP, draw_orders(CASE.tasks, SEED, step)) + auxiliary_P)
    for name, part in zip(shared, combined_P.split([parameters[name].numel() for name in shared])):
        gradients[name] = part.view_as(parameters[name])
    return gradients


def true_losses(parameters: dict[Any, nn.Parameter], config: Config, step: int) -> list[Tensor]:
    """w_t L_t of each task and the auxiliary loss, means over all micro-batches."""
    bias_TE, each = torch.zeros(CASE.tasks, config.experts.routed, dtype=torch.float64), []
    for micro_batch in range(MICRO_BATCHES):
        given = Inputs(*(x.double() for x in inputs(CASE, step, 0, micro_batch)))
        losses_T, auxiliary = task_losses(block_of_loops(parameters, *given[:2], config, 1, bias_TE), given)
        each.append([*(base * loss for base, loss in zip(BASE_T, losses_T)), 0.05 * auxiliary])
    return [sum(losses) / MICRO_BATCHES for losses in zip(*each)]


# --- the comparison ---


def check(layouts: list[Layout], gradients: float, weights: float) -> None:
    wrong = []
    for number, (layout, answers) in enumerate(zip(layouts, zip(*run_ranks(layouts[0].world, train_on_rank, layouts)))):
        for kind, bound in (("gradients", gradients), ("weights", weights)):
            true, seen = truth()[kind], set()
            for answer in answers:
                for name, ours in answer[kind].items():
                    seen.add(name)
                    if not (found := distance(ours, true[name])) <= bound:
                        wrong.append(f"{kind} of {name} differ by {found:.1e} > {bound:.0e}: {layout}")
            assert seen == set(true), number
    assert not wrong, "\n".join(wrong)


def layouts_of(world: int, precision: str) -> list[Layout]:
    sizes = [size for size in (1, 2, 4) if size <= world]
    stages = (0, 1, 2) if precision == "fp32" else (1, 2)
    return [Layout(world, ep_size, stage, precision) for ep_size in sizes for stage in stages]


SLOW = pytest.mark.slow


@pytest.mark.parametrize("world", [pytest.param(1, marks=SLOW), 2, pytest.param(4, marks=SLOW)])
def test_a_step_of_pcgrad_is_the_papers_on_every_layout(world):
    check(layouts_of(world, "fp32"), gradients=1e-6, weights=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2, 4])
def test_and_in_bf16_as_near_as_its_rounding(world):
    check(layouts_of(world, "bf16"), gradients=3e-2, weights=6e-3)


class Thrice(Weighting):
    """Takes every parameter's gradient of the first task three times."""

    Settings = PCGradSettings
    needs_gradients = weighs_others = True

    def coefficients(self, seen: Seen) -> list[float]:
        return [3.0, 1.0, 1.0]


def train_alike(config: Config) -> list[dict[str, Any]]:
    around = Around(("a", "b", "c"), 1, SEED)
    by_loss = train_one(config, Fixed(Fixed.Settings(), around), (3 * BASE_T[0], *BASE_T[1:]))
    return [by_loss, train_one(config, Thrice(PCGradSettings(), around), BASE_T)]


def test_coefficients_of_every_parameter_are_weights_of_the_losses():
    for by_loss, by_gradient in run_ranks(2, train_alike, configuration(Layout(2, 2, 1))):
        for kind in ("gradients", "weights"):
            for name, ours in by_gradient[kind].items():
                np.testing.assert_allclose(ours, by_loss[kind][name], rtol=1e-5, atol=1e-6)
        assert by_gradient["factors"] == [[3.0, 1.0, 1.0]] * STEPS
