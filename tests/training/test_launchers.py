"""The whole of training, whoever starts it and however it is laid out over ranks: the same losses."""

from __future__ import annotations

import pytest

from tests.runs import Runs, finish, losses, start

pytestmark = pytest.mark.dist

# Without edges no boundary matching. The balance loss is a micro-batch's own, so other splits would change it.
FEW = dict(tasks="[semseg, normals]", train__steps=3, experts__balance_weight=0)


@pytest.fixture(scope="module")
def runs(nyud_shards, tmp_path_factory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"), nyud_shards.train, nyud_shards.val)


@pytest.fixture(scope="module")
def one_process(runs) -> list[float]:
    """The truth of all launchers: one plain process, four micro-batches a step."""
    return losses(finish(start("python", runs, "python", **FEW), runs, "python"))


def test_fgmoe_train_is_train_py(runs, one_process):
    assert losses(finish(start("fgmoe", runs, "fgmoe", **FEW), runs, "fgmoe")) == one_process


@pytest.mark.parametrize("launcher", ["torchrun", "deepspeed"])
def test_two_ranks_of_every_launcher_train_as_one_process(runs, one_process, launcher):
    lines = finish(start(launcher, runs, launcher, world=2, parallel__ep_size=2, **FEW), runs, launcher)
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert losses(lines) == pytest.approx(one_process, rel=1e-5)


def test_the_launchers_agree(runs):
    first, second = losses(runs.metrics("torchrun")), losses(runs.metrics("deepspeed"))
    assert first and first == pytest.approx(second, rel=1e-6)


@pytest.fixture(scope="module")
def unsplit(runs) -> list[dict]:
    """Four ranks, each with a copy of all experts."""
    return runs.train("unsplit", 4)


@pytest.mark.parametrize(
    "layout",
    [
        dict(parallel__ep_size=2),
        dict(parallel__ep_size=4, parallel__zero_stage=2),
        dict(parallel__ep_size=2, parallel__zero_stage=0, experts__backend="deepspeed"),
        dict(parallel__ep_size=4, experts__backend="deepspeed"),
        dict(parallel__ep_size=2, train__activation_checkpointing="true"),
    ],
    ids=["ep2", "ep4-zero2", "deepspeed-ep2-zero0", "deepspeed-ep4", "ep2-recomputed"],
)
def test_four_ranks_train_alike_however_they_share_the_experts(runs, unsplit, layout):
    name = "-".join(map(str, layout.values()))
    lines = runs.train(name, 4, **layout)
    assert losses(lines) == pytest.approx(losses(unsplit), rel=1e-5)
    norms = [[line["grad_norm"] for line in some] for some in (lines, unsplit)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


def test_bf16_stays_near(runs, unsplit):
    near = runs.train("bf16", 4, parallel__ep_size=2, train__precision="bf16")
    assert losses(near) == pytest.approx(losses(unsplit), rel=0.05)
    assert losses(near) != losses(unsplit)
