"""Memory by hand, and against the tensors that DeepSpeed's engine holds."""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.config import build_config
from fgmoe_dist.planning.counts import Counts
from fgmoe_dist.planning.memory import memory, padded
from fgmoe_dist.planning.placement import Placement
from tests.ranks import run_ranks
from tests.training.test_engine import Model, configuration


def counts(**changes) -> Counts:
    values = dict(
        encoder_parameters=7, dense_parameters=101, expert_parameters=64, tokens=6, saved_bytes=1000,
        block_saved_bytes=400, largest_bytes=50, work=(),
    )  # fmt: skip
    return Counts(**{**values, **changes})


def tiny(**sections):
    """2 tasks, 2 x 3 tokens, 8 channels, 4 experts per task, 2 of them per token."""
    values = {
        "tasks": ["semseg", "depth"],
        "data": {"image_size": [8, 12]},
        "decoder": {"channels": 8, "stride": 4, "blocks": 2},
        "experts": {"count": 2, "split": 2, "hidden": 8, "top_k": 2},
        "train": {"batch_size": 4, "micro_batch_size": 1},
    }
    return build_config({key: {**values.get(key, {}), **sections.get(key, {})} if key != "tasks" else values[key]
                         for key in {**values, **sections}})  # fmt: skip


def test_every_use_by_hand():
    config = tiny(parallel={"ep_size": 2, "zero_stage": 2})
    found = memory(config, counts(), Placement(1, 4, 2), device="cpu")
    # 101 dense ones over 4 ranks: 26 each, 104 in all; 32 experts' over 2 copies: 16 each.
    assert found["encoder"] == 4 * 7
    assert found["parameters"] == 4 * (104 + 32)
    assert found["gradients"] == 4 * (101 + 32)
    assert found["fp32 parameters"] == found["gradient partition"] == 4 * (26 + 16)
    assert found["moments"] == 8 * (26 + 16)
    assert found["reduction buffers"] == 4 * (101 + 32)
    assert found["activations"] == 1000 and found["one operation"] == 50
    # A token misses a rank's 2 of 4 experts with both its choices once in 6; 12 tokens go to 2 ranks.
    rows = 12 * 2 * 5 / 6
    routers = 12 * (2 * 4 * 4 + 2 * 8)  # logits and scores of 4 experts, 2 choices
    dispatch = rows * (2 * 8 + 2)
    kernel = rows * (8 * 4 + 2 * 4) + 24 * (4 * 4 + 4 + 17)  # features and gates; a slot's 4 hidden units, gate, places
    assert found["routed activations"] == pytest.approx(2 * (routers + dispatch + kernel))
    assert found["dispatch buffers"] == pytest.approx(2 * rows / 2 * (8 * 4 + 2 * 8))  # its own rows do not travel


def test_bf16_halves_what_is_kept_in_it():
    full, half = (
        memory(tiny(train={"precision": precision}), counts(), Placement(1, 1, 1), device="cpu")
        for precision in ("fp32", "bf16")
    )
    for use in ("encoder", "parameters", "gradients", "reduction buffers"):
        assert half[use] * 2 == full[use]
    assert half["moments"] == full["moments"] and half["fp32 parameters"] == full["fp32 parameters"]


def test_a_gpu_holds_two_buckets():
    on_gpu = memory(tiny(), counts(), Placement(1, 1, 1), device="cuda")
    assert on_gpu["reduction buffers"] == 2 * 4 * (101 + 64)
    on_gpu = memory(tiny(), counts(dense_parameters=10**9), Placement(1, 1, 1), device="cuda")
    assert on_gpu["reduction buffers"] == 2 * 500_000_000 * 4
    plain = memory(tiny(parallel={"zero_stage": 0}), counts(), Placement(1, 1, 1), device="cuda")
    assert plain["reduction buffers"] == 4 * (101 + 64) and plain["fp32 parameters"] == 0


def test_checkpointing_keeps_one_block_at_a_time():
    config = tiny(train={"activation_checkpointing": True})
    found = memory(config, counts(), Placement(1, 1, 1), device="cpu")
    assert found["activations"] == 1000 - 400 / 2


def test_imbalance_is_paid_by_the_rows():
    def found(ep_size, imbalance):
        config = tiny(parallel={"ep_size": ep_size})
        return memory(config, counts(), Placement(1, 4, ep_size), "cpu", imbalance)

    even, uneven = found(4, 1.0), found(4, 2.5)
    rows = 12 * 4 / 2  # a token's 2 of 4 experts lie on 2 of the 4 ranks
    own = 2 * 12 * (2 * 4 * 4 + 2 * 8) + 2 * rows * (2 * 8 + 2)  # its routers' and what it sends, however busy it is
    assert uneven["routed activations"] - own == pytest.approx(2.5 * (even["routed activations"] - own))
    assert uneven["dispatch buffers"] == pytest.approx(2.5 * even["dispatch buffers"])
    assert uneven["activations"] == even["activations"]
    assert found(1, 2.5) == found(1, 1.0), "alone with all experts a rank has the mean"
    assert found(2, 99.0) == found(2, 2.0), "no rank has more than all"


def engine_bytes(config) -> dict[str, int]:
    """What an engine holds after a step, on this rank."""
    from fgmoe_dist.experts.groups import is_expert_parameter
    from fgmoe_dist.training.engines.deepspeed import create_engine

    engine = create_engine(Model(config), config)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    engine.backward(engine(torch.randn(4, 16, dtype=dtype)).float().square().mean())
    engine.step()
    parameters, optimizer = list(engine.module.parameters()), engine.deepspeed.optimizer
    base = getattr(optimizer, "optimizer", optimizer)

    def size(tensors) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    return {
        "dense": sum(p.numel() for p in parameters if not is_expert_parameter(p)),
        "experts": sum(p.numel() for p in parameters if is_expert_parameter(p)),
        "parameters": size(getattr(optimizer, "bit16_groups_flat", parameters)),
        "fp32 parameters": size(getattr(optimizer, "single_partition_of_fp32_groups", [])),
        "moments": size(state[key] for state in base.state.values() for key in ("exp_avg", "exp_avg_sq")),
    }


@pytest.mark.parametrize(
    ("world", "ep_size", "zero_stage", "precision"),
    [(1, 1, 0, "fp32"), (2, 2, 2, "bf16")]
    + [
        pytest.param(*rest, marks=pytest.mark.slow)
        for rest in ((1, 1, 1, "bf16"), (2, 2, 0, "fp32"), (2, 1, 1, "fp32"))
    ],
)
def test_parameters_and_optimiser_are_the_engine_s_to_the_byte(world, ep_size, zero_stage, precision):
    config = configuration(ep_size, zero_stage)
    train = config.train.model_copy(update={"batch_size": world, "precision": precision})
    config = config.model_copy(update={"train": train})
    held = run_ranks(world, engine_bytes, config)
    model = counts(dense_parameters=held[0]["dense"], expert_parameters=held[0]["experts"] * ep_size)
    planned = memory(config, model, Placement(1, world, ep_size), device="cpu")
    for use in ("parameters", "fp32 parameters", "moments"):
        assert [rank[use] for rank in held] == [planned[use]] * world, use


def test_padding_gives_every_rank_an_even_share():
    for size in range(1, 40):
        for ranks in (1, 2, 3, 8):
            whole = padded(size, ranks)
            assert whole >= size and whole % (2 * ranks) == 0 and whole - size < 2 * ranks
