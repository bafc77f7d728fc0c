"""What is told of the experts' load, by hand."""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.decoders.fgmoe import load_metrics, rank_imbalance

LOAD = torch.tensor([[[2.0, 2, 2, 2], [6, 2, 0, 0]]])
DROPPED = torch.tensor([[0.0, 2.0]])


def test_load_figures():
    metrics = load_metrics(LOAD, DROPPED, ["semseg", "depth"])
    assert metrics["experts/entropy/block0/semseg"] == pytest.approx(1)
    assert metrics["experts/entropy/block0/depth"] == pytest.approx(0.8112781 / 2)  # bits of (3/4, 1/4), of 2
    assert metrics["experts/busiest/block0/depth"] == pytest.approx(3), "6 of 8 slots, and 2 were its share"
    assert (metrics["experts/dead/block0/semseg"], metrics["experts/dead/block0/depth"]) == (0, 2)
    assert (metrics["experts/dropped/block0/semseg"], metrics["experts/dropped/block0/depth"]) == (0, 0.25)


def test_the_imbalance_between_ranks_is_that_of_all_their_experts():
    assert rank_imbalance(LOAD, 1) == 1
    assert rank_imbalance(LOAD, 2) == pytest.approx(12 / 8), "tasks: 4 and 4, 8 and 0 slots"
    assert rank_imbalance(LOAD, 4) == pytest.approx(8 / 4)
    assert rank_imbalance(torch.cat([LOAD, LOAD.flip(2)]), 2) == 1, "another block makes up for it"
