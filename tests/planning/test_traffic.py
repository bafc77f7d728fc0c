"""Bytes by hand, against a count of all choices, and against what the layer and the engine really send."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch

from fgmoe_dist.config import build_config
from fgmoe_dist.experts.groups import is_expert_parameter
from fgmoe_dist.experts.settings import Experts
from fgmoe_dist.planning.placement import Placement
from fgmoe_dist.planning.traffic import exchanges, missed_chance, row_bytes, rows_to_a_rank, traffic
from tests.planning.test_memory import counts, tiny
from tests.ranks import run_ranks


@pytest.mark.parametrize(("count", "top_k", "ep_size", "groups", "limit"), [
    (8, 3, 1, 0, 0), (8, 3, 2, 0, 0), (8, 3, 8, 0, 0), (8, 2, 4, 4, 2), (8, 2, 2, 4, 2), (8, 2, 4, 8, 2),
    (6, 1, 3, 3, 1), (8, 4, 4, 4, 2), (8, 8, 4, 0, 0),
])  # fmt: skip
def test_missed_chance_is_the_share_of_all_choices(count, top_k, ep_size, groups, limit):
    """Every choice of groups, then every choice of experts within them, is as likely."""
    experts = Experts(count=count, split=1, hidden=8, top_k=top_k, groups=groups, max_ranks_per_token=limit)
    of, width = groups or ep_size, count // (groups or ep_size)
    chances = []
    for chosen in combinations(range(of), min(limit or of, of)):
        reachable = [expert for expert in range(count) if expert // width in chosen]
        choices = list(combinations(reachable, top_k))
        missed = sum(all(expert // (count // ep_size) != 0 for expert in choice) for choice in choices)
        chances.append(missed / len(choices))
    assert missed_chance(experts, ep_size) == pytest.approx(sum(chances) / len(chances))


def test_a_step_by_hand():
    config = tiny(train={"batch_size": 8, "micro_batch_size": 1}, parallel={"ep_size": 2, "zero_stage": 1})
    found = {sent.name: (sent.near, sent.far) for sent in traffic(config, counts(), Placement(2, 2, 2))}
    rows, times = 12 * 5 / 6, 2 * 2  # to the other rank; blocks x micro-batches
    assert found["all-to-all out"] == (pytest.approx(times * rows * (32 + 16)), 0)
    assert found["all-to-all back"] == found["all-to-all back gradient"] == (pytest.approx(times * rows * 32), 0)
    assert found["all-to-all out gradient"] == (pytest.approx(times * rows * (32 + 8)), 0)
    dense, experts = 101 * 4, 32 * 4
    assert found["all-reduce of dense gradients"] == (2 * dense / 2, 2 * dense / 2 / 2)
    assert found["all-gather of dense parameters"] == (dense / 2, dense / 2 / 2)
    assert found["all-reduce of expert gradients"] == (0, 2 * experts / 2)  # its copy is on the other node
    assert found["all-gather of expert parameters"] == (0, experts / 2)


def test_what_stage_and_checkpointing_change():
    def sent(**sections):
        config = tiny(train={"batch_size": 8, **sections.pop("train", {})}, parallel={"ep_size": 2, **sections})
        return {s.name: s.near for s in traffic(config, counts(), Placement(1, 2, 2))}

    one, two, none = (sent(zero_stage=stage) for stage in (1, 2, 0))
    assert two["all-reduce of dense gradients"] == 4 * one["all-reduce of dense gradients"]  # 4 micro-batches
    assert not any("gather" in name for name in none)
    again = sent(train={"activation_checkpointing": True}, zero_stage=1)
    assert again["all-to-all out"] == 2 * one["all-to-all out"]
    assert again["all-to-all out gradient"] == one["all-to-all out gradient"]
    assert exchanges(tiny(), 4) == {"out": 2, "back": 2, "back_gradient": 2, "out_gradient": 2}


def exchanged_bytes(config) -> list[int]:
    """What each all-to-all of a forward and backward pass of one layer was given to send, the counts aside."""
    import torch.distributed as dist

    from fgmoe_dist.experts.backends import create_routed_experts

    torch.manual_seed(dist.get_rank())
    tasks, channels, dtype = len(config.tasks), config.decoder.channels, torch.float32
    layer = create_routed_experts(tasks, channels, config.experts, config.parallel.ep_size, 0, 0)
    if config.train.precision == "bf16":
        layer, dtype = layer.to(torch.bfloat16), torch.bfloat16
    sent, plain = [], dist.all_to_all_single

    def counted(output, input, *args, **kwargs):
        sent.append(input.numel() * input.element_size())
        return plain(output, input, *args, **kwargs)

    dist.all_to_all_single = counted
    tokens = config.train.micro_batch_size * 2 * 3
    x_TNC = torch.randn(tasks, tokens, channels, dtype=dtype, requires_grad=True)
    journey = layer.dispatch(x_TNC)
    layer.compute(journey)
    layer.combine(journey).float().square().sum().backward()
    return sent[1:]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_the_layer_sends_these_bytes(precision):
    """All experts chosen, so that every token goes to both ranks and nothing is left to chance; one's own stay."""
    experts = {"count": 2, "split": 2, "hidden": 8, "top_k": 4}
    config = tiny(experts=experts, train={"precision": precision}, parallel={"ep_size": 2})
    rows = rows_to_a_rank(config)
    assert rows == 12
    planned = [rows * row_bytes(config)[name] for name in ("out", "back", "back_gradient", "out_gradient")]
    assert run_ranks(2, exchanged_bytes, config) == [planned] * 2


def reduced_bytes(config) -> list[tuple[str, int, int]]:
    """The all-reduces of one step's gradients: bytes and ranks of the group; the few numbers of the norm aside."""
    import torch.distributed as dist

    from fgmoe_dist.training.engines.deepspeed import create_engine
    from tests.training.test_engine import Model

    engine = create_engine(Model(config), config)
    found, plain = [], dist.all_reduce

    def counted(*args, **kwargs):
        tensor = args[0] if args else kwargs["tensor"]
        if tensor.numel() > 8:
            found.append((tensor.numel() * tensor.element_size(), dist.get_world_size(kwargs.get("group"))))
        return plain(*args, **kwargs)

    dist.all_reduce = counted
    for _ in range(engine.accumulation):
        engine.backward(engine(torch.randn(4, 16)).square().mean())
        engine.step()
    return found


@pytest.mark.parametrize(
    ("ep_size", "zero_stage"), [(2, 2), *(pytest.param(1, stage, marks=pytest.mark.slow) for stage in (0, 1))]
)
def test_the_engine_reduces_these_bytes(ep_size, zero_stage):
    from tests.training.test_engine import Model, configuration

    config = configuration(ep_size, zero_stage)
    config = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 4})})
    model = Model(build_config({**config.model_dump(), "parallel": {"ep_size": 1, "zero_stage": zero_stage}}))
    experts = sum(p.numel() for p in model.parameters() if is_expert_parameter(p))
    dense = sum(p.numel() for p in model.parameters()) - experts
    for found in run_ranks(2, reduced_bytes, config):
        sent = sum(2 * size * (ranks - 1) / ranks for size, ranks in found)
        planned = traffic(
            config, counts(dense_parameters=dense, expert_parameters=experts), Placement(1, 2, ep_size)
        )  # fmt: skip
        assert sent == sum(one.near for one in planned if one.name.startswith("all-reduce"))
