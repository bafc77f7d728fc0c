"""The truth table: an FGMoE block under the engine, on any ranks, ZeRO stage and kernel, against float64 loops.

The truth knows no rank, no batch and no kernel: every token goes through its experts alone, the balance losses are
written from their definitions over all tokens of all ranks, and AdamW and clipping run in float64.

Agreement is relative, |ours - truth| / |truth| of a whole tensor: 1e-6 for one step, 1e-5 after 20. Adam's first step
is nearly the gradient's sign, so that an entry whose gradient rounding drowns moves by anything up to the learning
rate; an ordinary one, 3e-4, keeps that below the bounds.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple, Optional

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fgmoe_dist.config import Config, build_config
from fgmoe_dist.experts.kinds import KINDS
from tests.experts import oracle
from tests.ranks import run_ranks

WORLD, C, CLIP, ONE_STEP, TWENTY_STEPS = 4, 16, 0.5, 1e-6, 1e-5
UNEQUAL = (5, 0, 9, 3)  # tokens a task on each rank; one rank has none
EXPERTS = dict(count=4, split=2, hidden=32, top_k=3, shared=1, global_experts=2, balance_weight=0.01)


class Case(NamedTuple):
    """What is computed; where it is computed must not matter."""

    tasks: int = 3
    experts: tuple = ()  # settings that differ from EXPERTS
    counts: tuple = UNEQUAL
    images: int = 1
    parts: int = 1  # micro-batches a rank computes in a step
    steps: int = 1
    crowded: bool = False  # all tokens of all tasks choose expert 0 first


class Layout(NamedTuple):
    ep_size: int = 1
    zero_stage: int = 1
    kernel: str = "reference"


ALONE = Layout()


def configuration(case: Case, layout: Layout = ALONE) -> Config:
    return build_config(
        {
            "experts": {**EXPERTS, **dict(case.experts), "kernel": layout.kernel},
            "train": {
                "batch_size": WORLD * case.parts, "micro_batch_size": 1, "lr": 3e-4, "optimizer": "adamw",
                "weight_decay": 1e-2, "clip_norm": CLIP, "steps": 20,
            },
            "parallel": {"ep_size": layout.ep_size, "zero_stage": layout.zero_stage},
        }
    )  # fmt: skip


class Inputs(NamedTuple):
    u_TNC: Tensor
    a_NC: Tensor
    target_TNC: Tensor


def inputs(case: Case, step: int, part: int, rank: int) -> Inputs:
    generator = torch.Generator().manual_seed(1000 * part + 10 * step + rank)

    def rand(*shape: int) -> Tensor:
        return torch.randn(*shape, C, generator=generator)

    tokens = case.counts[rank]
    u_TNC, a_NC, target_TNC = rand(case.tasks, tokens), rand(tokens), rand(case.tasks, tokens)
    return Inputs(crowd() + 0.1 * u_TNC if case.crowded else u_TNC, a_NC, target_TNC)


def crowd() -> Tensor:
    """The direction in which all tokens of a crowded case lie, and expert 0's router weight with them."""
    return torch.linspace(-0.5, 0.5, C)


def create_block(case: Case, config: Config) -> nn.Module:
    from fgmoe_dist.decoders.parts.block import FGMoEBlock

    torch.manual_seed(3)
    block = FGMoEBlock(case.tasks, C, config.experts, config.parallel.ep_size, block=0, seed=5)
    with torch.no_grad():
        # Biases start at zero, where a mistake in them would not show.
        for name, parameter in block.named_parameters():
            if not parameter.any() and ".bank." not in name:
                parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(len(name)))
        for e in block.routed.logical_experts():
            if not e.parameter[e.index].any():
                seed = 1000 * (e.task or 0) + 10 * e.expert + block.routed.kind.weights.index(e.weight)
                e.parameter[e.index].normal_(std=0.1, generator=torch.Generator().manual_seed(seed))
        if case.crowded:
            block.routed.routers.weight_TCE[:, :, 0] = crowd()
    return block


# --- ours, on a rank ---


def train_on_rank(runs: list[tuple[Case, Layout]]) -> list[dict[str, Any]]:
    return [train_one(case, configuration(case, layout)) for case, layout in runs]


def train_one(case: Case, config: Config) -> dict[str, Any]:
    """This rank's outputs, and all it holds of gradients and weights, by logical name."""
    import torch.distributed as dist
    from deepspeed.utils import safe_get_full_grad

    from fgmoe_dist.experts.balance import BalanceTerms, auxiliary_losses
    from fgmoe_dist.training.engines.deepspeed import create_engine

    engine = create_engine(create_block(case, config), config)
    answer: dict[str, Any] = {"norms": [], "losses": []}
    for step in range(case.steps):
        total, load_TE = torch.zeros(()), 0
        for part in range(case.parts):
            given = inputs(case, step, part, dist.get_rank())
            given.u_TNC.requires_grad_()
            h_TNC, *terms = engine(given.u_TNC, given.a_NC, case.images)
            auxiliary, counts = auxiliary_losses([BalanceTerms(*terms)], config.experts, config.expert_groups)
            loss = (h_TNC - given.target_TNC).square().sum() / 10
            for weight, value in auxiliary.values():
                loss = loss + weight * value
            engine.backward(loss)
            if step == 0 and part == case.parts - 1:
                # The input's gradient is that of this rank's loss; parameters' are means over ranks and parts.
                gradients = {p: safe_get_full_grad(p) for p in engine.module.parameters()}
                answer["gradients"] = by_name(engine.module, gradients)
                answer.update(output=h_TNC.detach().numpy(), input_gradient=given.u_TNC.grad.numpy())
            engine.step()
            total, load_TE = total + loss.detach() / case.parts, load_TE + counts["load"][0]
        engine.module.routed.routers.after_step(load_TE)
        answer["norms"].append(engine.grad_norm)
        dist.all_reduce(total)
        answer["losses"].append(total.item() / WORLD)
    answer["weights"] = by_name(engine.module, {p: p.detach() for p in engine.module.parameters()})
    return answer


def by_name(block: nn.Module, values: dict[nn.Parameter, Tensor]) -> dict[Any, np.ndarray]:
    """`values` of parameters by name, those of experts by (task, expert, weight); of no task where all share them."""
    experts = list(block.routed.logical_experts())
    stacked = {id(e.parameter) for e in experts}
    named = {name: values[p] for name, p in block.named_parameters() if id(p) not in stacked}
    named.update({(e.task, e.expert, e.weight): values[e.parameter][e.index] for e in experts})
    return {name: value.float().numpy().copy() for name, value in named.items()}


# --- the truth ---


@functools.cache
def truth(case: Case) -> dict[str, Any]:
    config = configuration(case)
    block = create_block(case, config)
    parameters = {
        name: torch.tensor(value, dtype=torch.float64).requires_grad_()
        for name, value in by_name(block, {p: p.detach() for p in block.parameters()}).items()
    }
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.train.lr, weight_decay=config.train.weight_decay)
    settings, answer = config.experts, {"norms": [], "losses": []}
    bias_TE = torch.zeros(case.tasks, settings.routed, dtype=torch.float64)
    for step in range(case.steps):
        optimizer.zero_grad()
        loss, load_TE = 0.0, 0.0
        for part in range(case.parts):
            ranks = [Inputs(*(x.double() for x in inputs(case, step, part, rank))) for rank in range(WORLD)]
            us = [rank.u_TNC.requires_grad_() for rank in ranks]
            outputs = [block_of_loops(parameters, *rank[:2], config, case.images, bias_TE) for rank in ranks]
            task_loss = sum((h - rank.target_TNC).square().sum() for h, rank in zip(outputs, ranks)) / 10 / WORLD
            balance, part_load_TE = balance_of_definitions(parameters, us, config, bias_TE)
            loss, load_TE = loss + (task_loss + balance) / case.parts, load_TE + part_load_TE
        loss.backward()
        gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
        norm = torch.sqrt(sum(gradient.square().sum() for gradient in gradients.values()))
        if step == 0:
            answer.update(outputs=[h.detach() for h in outputs], input_gradients=[u.grad * WORLD for u in us])
            answer["gradients"] = {name: gradient.clone() for name, gradient in gradients.items()}
        for name, p in parameters.items():
            p.grad = gradients[name] * min(1.0, CLIP / norm.item())
        optimizer.step()
        bias_TE += settings.bias_update_rate * (load_TE.mean(1, keepdim=True) - load_TE).sign()
        answer["norms"].append(norm.item())
        answer["losses"].append(loss.item())
    answer["weights"] = {name: p.detach() for name, p in parameters.items()}
    return answer


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def block_of_loops(p: dict, u_TNC: Tensor, a_NC: Tensor, config: Config, images: int, bias_TE: Tensor) -> Tensor:
    """`decoders/parts/block.py`'s formula, expert by expert and, where experts are chosen, token by token."""
    x_TNC = layer_norm(u_TNC, p["norm.weight"], p["norm.bias"])
    if "global_norm.weight" in p:
        a_NC = layer_norm(a_NC, p["global_norm.weight"], p["global_norm.bias"])
    router_TCE, groups = p["routed.routers.weight_TCE"], config.expert_groups
    h_TNC = u_TNC + oracle.routed_experts(
        x_TNC, router_TCE, experts_of(p, config), config.experts, groups, images, bias_TE
    )
    own = [
        shared_of_loops(p, t, x_NC, config, bias_TE[t]) + global_of_loops(p, t, x_TNC, a_NC, config)
        for t, x_NC in enumerate(x_TNC)
    ]
    return h_TNC + torch.stack(own)


def shared_of_loops(p: dict, t: int, x_NC: Tensor, config: Config, bias_E: Tensor) -> Tensor:
    settings, y_NC = config.experts, torch.zeros_like(x_NC)
    for s in range(settings.shared):
        gate_N1 = 1.0
        if settings.shared_gate == "joint" and len(x_NC):
            gate_N1 = torch.stack([shared_gates(p, t, x_C, config, bias_E)[s] for x_C in x_NC])[:, None]
        units = slice(s * settings.fine_hidden, (s + 1) * settings.fine_hidden)
        if settings.kind == "lora":
            weights = [p["shared.a_TCR"][t, :, units], p["shared.b_TRC"][t, units]]
        else:
            weights = [p["shared.w_in_TCH"][t, :, units], p["shared.b_in_TH"][t, units]]
            weights += [p["shared.w_out_THC"][t, units], p["shared.b_out_TSC"][t, s]]
        y_NC = y_NC + gate_N1 * oracle.EXPERT[settings.kind](x_NC, *weights)
    return y_NC


def shared_gates(p: dict, t: int, x_C: Tensor, config: Config, bias_E: Tensor) -> list[Tensor]:
    settings, logits = config.experts, x_C @ p["routed.routers.weight_TCE"][t]
    chosen = oracle.select(logits[: settings.routed], settings, config.expert_groups, bias_E)
    return oracle.gates(logits, chosen, settings)[settings.top_k :]


def global_of_loops(p: dict, t: int, x_TNC: Tensor, a_NC: Tensor, config: Config) -> Tensor:
    y_NC, crosses = torch.zeros_like(a_NC), config.experts.global_input == "tasks"
    for g in range(config.experts.global_experts):
        by_NC = x_TNC[t] if crosses else a_NC
        mixture_NG = (by_NC @ p["global_experts.gate_TCG"][t] + p["global_experts.gate_bias_TG"][t]).softmax(-1)
        names = (
            ("a_GCR", "b_GRC") if config.experts.kind == "lora" else ("w_in_GCH", "b_in_GH", "w_out_GHC", "b_out_GC")
        )
        in_NC = read_of_loops(p, g, x_TNC) if crosses else a_NC
        out_NC = oracle.EXPERT[config.experts.kind](in_NC, *(p[f"global_experts.{name}"][g] for name in names))
        y_NC = y_NC + mixture_NG[:, g, None] * out_NC
    return y_NC


def read_of_loops(p: dict, g: int, x_TNC: Tensor) -> Tensor:
    """What global expert g reads of the tasks."""
    read_TC, bias_T = p["global_experts.read_TCG"][..., g], p["global_experts.read_bias_TG"][:, g]
    weights_T = [(x_NC @ read_C + bias).exp() for x_NC, read_C, bias in zip(x_TNC, read_TC, bias_T)]
    return sum(weight_N[:, None] * x_NC for weight_N, x_NC in zip(weights_T, x_TNC)) / sum(weights_T)[:, None]


def experts_of(p: dict, config: Config) -> dict[tuple[Optional[int], int], list[Tensor]]:
    names = {name[:2] for name in p if isinstance(name, tuple)}
    return {(t, e): [p[t, e, weight] for weight in KINDS[config.experts.kind].weights] for t, e in names}


def balance_of_definitions(p: dict, us: list[Tensor], config: Config, bias_TE: Tensor) -> tuple[Tensor, Tensor]:
    """The weighted balance losses of all ranks' tokens together, and the load.

    DeepSeekMoE eq. 12-14 (experts) and 15-17 (devices); the z-loss of ST-MoE, eq. 5.
    """
    settings, groups, total, loads = config.experts, config.expert_groups, 0.0, []
    size, tasks = settings.routed // groups, len(us[0])
    for t in range(tasks):
        x_NC = layer_norm(torch.cat([u_TNC[t] for u_TNC in us]), p["norm.weight"], p["norm.bias"])
        logits = x_NC @ p["routed.routers.weight_TCE"][t][:, : settings.routed]
        score = torch.stack([oracle.scores(logits_E, settings) for logits_E in logits])
        score = score / score.sum(1, keepdim=True)  # sigmoid scores too, DeepSeek-V3 eq. 19
        chosen = [e for logits_E in logits for e in oracle.select(logits_E, settings, groups, bias_TE[t])]
        f = [settings.routed / (settings.top_k * len(x_NC)) * chosen.count(e) for e in range(settings.routed)]
        p_mean = [score[:, e].mean() for e in range(settings.routed)]
        members = [range(g * size, (g + 1) * size) for g in range(groups)]
        experts = sum(f[e] * p_mean[e] for e in range(settings.routed))
        devices = sum(sum(f[e] for e in group) / size * sum(p_mean[e] for e in group) for group in members)
        z = torch.logsumexp(logits, -1).square().mean()
        weighted = settings.balance_weight * experts + settings.device_balance_weight * devices + settings.z_weight * z
        total = total + weighted / tasks
        loads.append([float(chosen.count(e)) for e in range(settings.routed)])
    return total, torch.tensor(loads, dtype=torch.float64)


# --- the comparison ---


def distance(ours: Any, theirs: Tensor) -> float:
    """|ours - truth| / |truth|; where the truth is zero, |ours|."""
    theirs = theirs.detach().numpy()
    size = np.linalg.norm(theirs)
    return float(np.linalg.norm(np.asarray(ours, dtype=np.float64) - theirs) / (size or 1.0))


def greatest_distances(case: Case, answers: list[dict[str, Any]]) -> dict[str, float]:
    """By kind of quantity, over all ranks and parameters, each of which must be somewhere."""
    true = truth(case)
    found: dict[str, float] = {}

    def note(kind: str, ours: Any, theirs: Tensor) -> None:
        found[kind] = max(found.get(kind, 0.0), distance(ours, theirs))

    for rank, answer in enumerate(answers):
        note("output", answer["output"], true["outputs"][rank])
        note("gradient of the input", answer["input_gradient"], true["input_gradients"][rank])
        for kind in ("gradients", "weights"):
            for name, ours in answer[kind].items():
                note(kind, ours, true[kind][name])
        for kind in ("norms", "losses"):
            note(kind, answer[kind], torch.tensor(true[kind], dtype=torch.float64))
    seen = set().union(*(answer["weights"] for answer in answers))
    assert seen == set(true["weights"]), "a parameter is on no rank"
    return found


def check(runs: list[tuple[Case, Layout]]) -> None:
    """Trains all `runs` on one world of ranks, and names every quantity of every run that is too far from the truth."""
    answers = run_ranks(WORLD, train_on_rank, runs)
    wrong = []
    for number, (case, layout) in enumerate(runs):
        bound = ONE_STEP if case.steps == 1 else TWENTY_STEPS
        for kind, found in greatest_distances(case, [answer[number] for answer in answers]).items():
            if not found <= bound:
                wrong.append(f"{kind} differs by {found:.1e} > {bound:.0e}: {layout}, {case}")
    assert not wrong, "\n".join(wrong)


KERNELS = ("reference", "cpu", "grouped", "triton")  # Triton's in its interpreter, which takes its time
EVERY_LAYOUT = [Layout(ep, zero, kernel) for ep in (1, 2, 4) for zero in (0, 1, 2) for kernel in KERNELS]
INTERPRETED = [layout for layout in EVERY_LAYOUT if layout.kernel == "triton"]
COMPILED = [layout for layout in EVERY_LAYOUT if layout.kernel != "triton"]
# One line through each dimension, and one through few.
SOME_LAYOUTS = [Layout(1, 0, "cpu"), Layout(2, 1, "grouped"), Layout(4, 2, "cpu")]
ONE_LAYOUT = [Layout(4, 2, "cpu")]
FEW_OR_SOME = [ONE_LAYOUT, pytest.param(SOME_LAYOUTS, marks=pytest.mark.slow)]


def test_one_step_on_every_layout_and_kernel():
    check([(Case(), layout) for layout in [*COMPILED, Layout(1, 2, "triton"), Layout(4, 1, "triton")]])


@pytest.mark.slow
def test_one_step_of_the_interpreted_kernel_on_every_layout():
    check([(Case(), layout) for layout in INTERPRETED])


@pytest.mark.slow
def test_twenty_steps():
    check([(Case(steps=20), layout) for layout in ONE_LAYOUT])


@pytest.mark.slow
def test_twenty_steps_on_every_layout_and_kernel():
    check([(Case(steps=20), layout) for layout in [*COMPILED, Layout(4, 2, "triton")]])


def test_all_tokens_to_one_expert_and_experts_with_none():
    cases = [Case(experts=(("top_k", top_k),), crowded=True) for top_k in (1, 3)]
    check([(case, Layout(4, 1, kernel)) for case in cases for kernel in KERNELS])


@pytest.mark.parametrize("layouts", FEW_OR_SOME)
def test_one_to_six_tasks(layouts):
    check([(Case(tasks=tasks), layout) for tasks in range(1, 7) for layout in layouts])


OPTIONS = [
    dict(score="sigmoid"),
    dict(renormalise=True),
    dict(score="sigmoid", renormalise=True),
    dict(shared_gate="joint"),
    dict(shared_gate="joint", shared=2),
    dict(shared=0),
    dict(global_experts=0),
    dict(global_input="tasks"),
    dict(z_weight=0.01),
    dict(groups=4, device_balance_weight=0.05),
    dict(groups=4, max_ranks_per_token=2),
    dict(groups=4, max_ranks_per_token=2, score="sigmoid", renormalise=True, bias_update_rate=0.01, balance_weight=0),
    dict(capacity_factor=0.5),
    dict(capacity_factor=0.8, renormalise=True, shared_gate="none"),
    dict(top_k=1),
    dict(top_k=8),
]


def test_every_option_of_gates_and_balance():
    check([(Case(experts=tuple(option.items())), layout) for option in OPTIONS for layout in ONE_LAYOUT])


@pytest.mark.slow
def test_every_option_on_every_kernel():
    cases = [Case(experts=tuple(option.items())) for option in OPTIONS]
    check([(case, Layout(ep, 1, kernel)) for case in cases for ep, kernel in zip((1, 2, 4, 4), KERNELS)])


SHARED = [
    dict(bank="shared"),
    dict(bank="shared", shared_gate="joint", capacity_factor=0.8, groups=4, device_balance_weight=0.05),
    dict(bank="shared", score="sigmoid", renormalise=True, bias_update_rate=0.01, groups=4, max_ranks_per_token=2),
    dict(bank="shared", kind="lora", shared=2, shared_gate="joint"),
    dict(kind="lora"),
]


def test_a_bank_that_all_tasks_share_and_low_rank_experts():
    """`reference` computes every kind, the fast kernels the MLP."""
    cases = [Case(experts=tuple(option.items())) for option in SHARED]
    layouts = [Layout(4, 2, "reference"), Layout(2, 1, "auto")]
    check([(case, layout) for case in cases for layout in layouts])


@pytest.mark.slow
def test_a_bank_that_all_tasks_share_on_every_layout():
    cases = [Case(experts=tuple(option.items()), steps=steps) for option in SHARED[:3] for steps in (1, 20)]
    check([(case, layout) for case in cases for layout in COMPILED])


@pytest.mark.slow
def test_low_rank_experts_on_every_layout():
    layouts = [Layout(ep, zero, "reference") for ep in (1, 2, 4) for zero in (0, 1, 2)]
    check([(Case(experts=tuple(option.items())), layout) for option in SHARED[3:] for layout in layouts])


BIAS = (("score", "sigmoid"), ("renormalise", True), ("bias_update_rate", 0.05))
CAPACITY = (("capacity_factor", 0.7), ("shared_gate", "joint"), ("groups", 4), ("max_ranks_per_token", 3))


@pytest.mark.parametrize("layouts", FEW_OR_SOME)
def test_accumulation(layouts):
    """The balance losses are then those of each part of all ranks."""
    check([(Case(parts=2, steps=3, experts=BIAS), layout) for layout in layouts])


@pytest.mark.slow
def test_a_bias_and_a_capacity_over_many_steps():
    cases = [
        Case(steps=20, experts=BIAS),
        Case(steps=20, experts=CAPACITY, counts=(4, 8, 0, 2), images=2),
    ]
    check([(case, layout) for case in cases for layout in SOME_LAYOUTS])
