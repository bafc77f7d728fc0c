"""Whole tiny runs with each method: any layout gives one rank's result, a resumed run goes on as the unbroken one, and
a method from outside trains like one of ours."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import pytest

from fgmoe_dist.checkpoints.folder import find_checkpoint, read_state
from fgmoe_dist.config import build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.weighting import WEIGHTING
from fgmoe_dist.weighting.base import Around, Seen, Weighting, WeightingSettings
from tests.ranks import run_ranks
from tests.runs import Runs, train_on_rank

STEPS, BREAK = 5, 3
# Without edges no boundary matching. The balance loss is a micro-batch's own, so other splits would change it.
FEW = dict(tasks="[semseg, depth, normals]", train__steps=STEPS, train__poly_power=0, experts__balance_weight=0)
METHODS = {
    "famo": dict(train__weighting__kind="famo"),
    "nash": dict(train__weighting__kind="nash"),
    "uncertainty": dict(train__weighting__kind="uncertainty", train__weighting__lr=0.05),
    "dwa": dict(train__weighting__kind="dwa", train__weighting__every=1),
    "pcgrad": dict(train__weighting__kind="pcgrad"),
}
MORE = {kind: dict(train__weighting__kind=kind) for kind in ("rlw", "mgda", "cagrad", "imtl", "gradnorm")}
# At the others' rate of 1e-3 roundings grow past the bound by the fifth step: to 1.8e-3, or 2.4e-4 where all experts
# are chosen, so that most of it is a token's other choice.
MORE["conflict_routing"] = dict(train__weighting__kind="conflict_routing", train__lr=3e-4)
LAYOUTS = [
    dict(world=1, parallel__zero_stage=2, train__micro_batch_size=4),
    dict(world=2, parallel__zero_stage=2, parallel__ep_size=2),
    dict(world=2, parallel__zero_stage=0, train__micro_batch_size=2),
]


def curves(lines: list[dict]) -> dict[str, list[float]]:
    """Losses, factors and gradient norms of all steps."""
    names = [name for name in lines[0] if name.startswith(("loss", "weight/", "grad_norm"))]
    return {name: [line[name] for line in lines] for name in names}


@pytest.mark.slow  # a step of PCGrad on every layout is among the quick tests, in test_ranks.py
@pytest.mark.parametrize("method", [*METHODS, *MORE])
def test_every_layout_trains_as_one_rank(runs, method):
    """Those that go through other parts of the code in every layout; of their kin one layout tells enough."""
    settings, layouts = (METHODS[method], LAYOUTS) if method in METHODS else (MORE[method], LAYOUTS[1:2])
    one = curves(runs.train("one", 1, **FEW, **settings))
    factors = {name: values for name, values in one.items() if name.startswith("weight/")}
    assert list(factors) == ["weight/semseg", "weight/depth", "weight/normals"]
    assert any(len(set(values)) > 2 for values in factors.values())
    for number, layout in enumerate(layouts):
        other = curves(runs.train(f"layout{number}", **layout, **FEW, **settings))
        for name, values in one.items():
            assert other[name] == pytest.approx(values, rel=2e-4), (layout, name)


@pytest.mark.slow
@pytest.mark.parametrize("reached", [{"experts__bank": "shared"}, {"experts__global_input": "tasks"}])
def test_experts_that_all_tasks_reach_are_weighed_too_wherever_they_live(runs, reached):
    """Each rank has half of them; their inner products and gradients are those of one rank with all of them."""
    shared = {**FEW, **METHODS["pcgrad"], "train__steps": 3, **reached}
    one = curves(runs.train("one", 1, **shared))
    two = curves(runs.train("two", 2, parallel__ep_size=2, **shared))
    assert any(factor != 1 for factor in one["weight/depth"])
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=2e-4), name


@pytest.mark.slow
@pytest.mark.parametrize("decoder", ["multi_task", "fgmoe"])
def test_at_the_feature_all_layouts_of_one_micro_batch_a_rank_agree(runs, decoder):
    features = {**FEW, "train__weighting__kind": "cagrad", "train__weighting__at": "features", "decoder__kind": decoder}
    one = curves(runs.train("one", 1, train__micro_batch_size=4, **features))
    ep_size = 2 if decoder == "fgmoe" else 1
    two = curves(runs.train("two", 2, train__micro_batch_size=2, parallel__ep_size=ep_size, **features))
    assert any(len(set(values)) > 2 for name, values in one.items() if name.startswith("weight/"))
    for name, values in one.items():
        assert two[name] == pytest.approx(values, rel=2e-4), name


# An epoch of two steps is under way where the run breaks.
LONG = METHODS["dwa"] | {"train__weighting__every": 2}


@pytest.mark.slow
@pytest.mark.parametrize("settings", [LONG, *METHODS.values(), MORE["gradnorm"]])
def test_a_resumed_run_is_the_unbroken_one(runs, settings):
    unbroken = runs.train("unbroken", 2, parallel__ep_size=2, **FEW, **settings)
    runs.train("broken", 2, parallel__ep_size=2, **{**FEW, "train__steps": BREAK}, **settings)
    broken = runs.train("broken", 2, parallel__ep_size=2, **FEW, **settings)
    assert curves(broken) == curves(unbroken)


@pytest.mark.slow
def test_a_method_that_was_not_there_before_starts_where_the_run_goes_on(runs):
    runs.train("run", 1, **{**FEW, "train__steps": 1})
    assert read_state(find_checkpoint(runs.folder("run"))).weighting == {"kind": "fixed"}
    lines = runs.train("run", 1, **{**FEW, "train__steps": 2}, **METHODS["uncertainty"])
    assert not [name for name in lines[0] if name.startswith("weight/")]
    assert lines[1]["weight/depth"] == pytest.approx(0.5 * 2.718281828459045**0.5)


@pytest.mark.slow
def test_recomputed_activations_give_the_same_gradients(runs):
    plain = curves(runs.train("plain", 2, parallel__ep_size=2, **FEW, **METHODS["pcgrad"]))
    again = dict(parallel__ep_size=2, train__activation_checkpointing=True)
    assert curves(runs.train("again", 2, **again, **FEW, **METHODS["pcgrad"])) == plain


@pytest.mark.slow
def test_deepspeeds_own_layers_are_walked_loss_by_loss_too(runs):
    fused = curves(runs.train("fused", 2, parallel__ep_size=2, **FEW, **METHODS["pcgrad"]))
    stock = dict(parallel__ep_size=2, experts__backend="deepspeed", experts__shared_gate="none")
    other = curves(runs.train("stock", 2, **stock, **FEW, **METHODS["pcgrad"]))
    for name, values in fused.items():
        assert other[name] == pytest.approx(values, rel=2e-4), name


# A method from outside.


class LotterySettings(WeightingSettings):
    kind: Literal["lottery"] = "lottery"
    stakes: float = 0.5


class Lottery(Weighting):
    """Draws the factors, and remembers what its steps did to their own batch."""

    Settings = LotterySettings
    needs_losses_after = True

    def __init__(self, settings: LotterySettings, around: Around):
        super().__init__(settings, around)
        self.steps: list[dict[str, list[float]]] = []

    def weights(self, step: int) -> list[float]:
        draw = random.Random(f"{self.around.seed} {step}")
        return [1 + self.settings.stakes * draw.random() for _ in range(self.tasks)]

    def after_step(self, seen: Seen) -> None:
        self.steps.append({"before": list(seen.losses_T), "after": list(seen.losses_after_T)})

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def train_plugged(config_file: Path, overrides: list[str]) -> None:
    WEIGHTING["lottery"] = Lottery
    train_on_rank(config_file, overrides, "auto")


@pytest.mark.slow
def test_a_method_from_outside_trains_and_sees_its_batch_again(runs: Runs, monkeypatch):
    # Every batch is the whole data set, so that a step begins with the losses that the one before ended with.
    same = dict(train__batch_size=8, train__micro_batch_size=2, data__augment=False)
    overrides = runs.overrides("run", {**FEW, **same, "train__weighting__kind": "lottery"})
    run_ranks(2, train_plugged, runs.config_file, overrides)
    lines = runs.metrics("run")
    assert all(1 < line["weight/depth"] < 1.5 for line in lines)
    state = read_state(find_checkpoint(runs.folder("run"))).weighting
    assert state["kind"] == "lottery"
    assert len(state["steps"]) == STEPS
    for one, following in zip(state["steps"], state["steps"][1:]):
        assert one["after"] != one["before"]
        assert one["after"] == pytest.approx(following["before"], rel=1e-4)
    monkeypatch.setitem(WEIGHTING, "lottery", Lottery)
    assert build_config({"train": {"weighting": {"kind": "lottery"}}}).train.weighting.stakes == 0.5


# Mistakes.


@pytest.mark.parametrize(
    ("section", "message"),
    [
        (
            {"kind": "average"},
            "train.weighting.kind='average': no such kind; there are fixed, uncertainty, dwa, rlw, pcgrad, mgda",
        ),
        ({"kind": "dwa", "temperature": 0}, "train.weighting.temperature=0: input should be greater than 0"),
        ({"kind": "dwa", "temprature": 1}, "train.weighting.temprature: no such key"),
        ({"temperature": 1}, "train.weighting.temperature: no such key"),
        ("dwa", "train.weighting='dwa'"),
    ],
)
def test_a_mistake_is_named_with_its_key(section, message):
    with pytest.raises(UserError, match="^configuration|^train") as raised:
        build_config({"train": {"weighting": section}})
    assert message in str(raised.value)


def test_a_decoder_that_shares_nothing_has_no_gradients_to_weigh():
    from fgmoe_dist.training.trainer import create_weighing

    config = build_config({"train": {"weighting": {"kind": "pcgrad"}}})
    with pytest.raises(UserError, match=r"kind=pcgrad: decoder.kind=fgmoe has no parameters that several tasks share"):
        create_weighing(config, 8, SimpleNamespace(shared_parameters=lambda: [], parameters=lambda: []))


@pytest.mark.parametrize(
    ("decoder", "accumulation", "message"),
    [
        ({"kind": "mlore"}, 1, "at=features: decoder.kind=mlore, as it is set, has no one feature"),
        ({"kind": "fgmoe", "level_weights": True}, 1, "decoder.kind=fgmoe, as it is set, has no one feature"),
        ({"kind": "multi_task"}, 2, "at=features: a step of 2 micro-batches a rank never has the whole batch's"),
    ],
)
def test_a_feature_that_is_not_there_is_told(decoder, accumulation, message):
    from fgmoe_dist.training.trainer import create_weighing

    weighting = {"kind": "mgda", "at": "features"}
    config = build_config({"decoder": decoder, "train": {"weighting": weighting}})
    parameter = SimpleNamespace(requires_grad=True)
    with pytest.raises(UserError, match=message):
        create_weighing(
            config, 8, SimpleNamespace(shared_parameters=lambda: [parameter], parameters=lambda: []), accumulation
        )
