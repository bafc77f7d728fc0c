"""Networks of their own for all tasks, and what they exchange: single_task, cross_stitch, nddr; and multi_task."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fgmoe_dist.decoders.cross_stitch import Stitch
from fgmoe_dist.decoders.nddr import Fusion
from tests.decoders.tiny import INFO, levels, tiny_decoder
from tests.runs import losses

DEEP = {"mixer_depth": 2}


def alike(mine, theirs):
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)


def gradients(decoder) -> dict[str, torch.Tensor | None]:
    output = decoder(levels())
    sum((index + 1) * p.square().mean() for index, p in enumerate(output.predictions.values())).backward()
    return {name: parameter.grad for name, parameter in decoder.named_parameters()}


@pytest.mark.parametrize("depth", [0, 2])
def test_single_task_is_a_multi_task_model_of_each_task(depth):
    together = tiny_decoder("single_task", mixer_depth=depth)
    predictions = together(levels()).predictions
    assert list(predictions) == INFO.tasks
    for index, task in enumerate(INFO.tasks):
        alone = tiny_decoder("multi_task", {"tasks": [task]}, mixer_depth=depth)
        alike({task: predictions[task]}, alone(levels()).predictions)
        for name, value in alone.state_dict().items():
            part, _, rest = name.partition(".")
            mine = f"aggregators.{index}.{rest}" if part == "aggregator" else f"{part}.{index}.{rest.partition('.')[2]}"
            assert torch.equal(together.state_dict()[mine], value), mine


@pytest.mark.slow
def test_a_run_of_single_task_is_a_run_of_each_task(runs):
    # Clipping bounds the norm of all gradients together.
    alike = dict(train__clip_norm=0, train__steps=3, decoder__mixer_depth=1)
    together = runs.train("together", 2, decoder__kind="single_task", **alike)
    for task in INFO.tasks:
        alone = runs.train(task, 2, decoder__kind="multi_task", tasks=f"[{task}]", **alike)
        assert [line[f"loss/{task}"] for line in together] == pytest.approx(
            [line[f"loss/{task}"] for line in alone], rel=1e-6
        )
    assert len(losses(together)) == 3 * (1 + len(INFO.tasks))


def test_multi_task_is_heads_on_one_feature():
    decoder = tiny_decoder("multi_task", mixer_depth=0)
    a_BChw, _ = decoder.aggregator(levels(), decoder.grid_hw)
    expected = {task.name: head(a_BChw, decoder.size_hw) for task, head in zip(decoder.tasks, decoder.heads)}
    alike(decoder(levels()).predictions, expected)


# Cross-stitch


def test_without_a_share_of_others_cross_stitch_is_separate_networks():
    stitched, apart = tiny_decoder("cross_stitch", alpha=1, beta=0, **DEEP), tiny_decoder("single_task", **DEEP)
    alike(stitched(levels()).predictions, apart(levels()).predictions)
    mine, theirs = gradients(stitched), gradients(apart)
    assert set(mine) - set(theirs) == {f"exchanges.{stage}.alpha_TTC" for stage in range(3)}
    alike({name: mine[name] for name in theirs}, theirs)


def test_a_stitch_is_its_equation():
    stitch, x_TBChw = Stitch(3, 5, 0.9, 0.1), torch.randn(3, 2, 5, 4, 6)
    assert torch.equal(stitch.alpha_TTC[:, :, 0], torch.full((3, 3), 0.1) + 0.8 * torch.eye(3))
    torch.nn.init.normal_(stitch.alpha_TTC)
    expected = torch.einsum("ijc,jbchw->ibchw", stitch.alpha_TTC, x_TBChw)
    torch.testing.assert_close(torch.stack(stitch(list(x_TBChw))), expected)


# NDDR


def test_a_fusion_starts_as_a_weighed_sum_of_its_task_and_others():
    tasks, channels = 3, 5
    fusion, x_T = Fusion(tasks, channels, 0.9, 0.1), list(torch.randn(tasks, 2, channels, 4, 6))
    for task, (reduce, found) in enumerate(zip(fusion.reduce, fusion(x_T))):
        block_TCC = reduce.weight[:, :, 0, 0].reshape(channels, tasks, channels).transpose(0, 1)
        for other in range(tasks):
            assert torch.equal(block_TCC[other], (0.9 if other == task else 0.1) * torch.eye(channels))
        mixed = 0.9 * x_T[task] + 0.1 * sum(x for other, x in enumerate(x_T) if other != task)
        normed = F.layer_norm(mixed.permute(0, 2, 3, 1), (channels,)).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, normed.relu())


def test_without_a_share_of_others_nddr_keeps_tasks_apart():
    decoder = tiny_decoder("nddr", alpha=1, beta=0, **DEEP)
    before = decoder(levels()).predictions
    with torch.no_grad():
        decoder.aggregators[0].project[0].weight.mul_(2)
    after = decoder(levels()).predictions
    assert [torch.equal(before[name], after[name]) for name in INFO.tasks] == [False, True, True, True]
