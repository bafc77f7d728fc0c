"""InvPT's stages against torch's own attention and plain computations.

Legend: B images, C channels, h x w grid, T tasks, H heads.
"""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from fgmoe_dist.decoders.invpt import InvPTSettings
from fgmoe_dist.decoders.parts.inverted import CrossTaskAttention, Stage
from fgmoe_dist.errors import UserError
from tests.decoders.tiny import INFO, configuration, levels, tiny_decoder

C, HEADS, TASKS, HW = 8, 2, 3, (6, 8)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def maps(tasks: int, hw=HW) -> list[torch.Tensor]:
    return list(torch.randn(tasks, 2, C, *hw, dtype=torch.float64))


def attended(attention: CrossTaskAttention, y_T: list[torch.Tensor]) -> torch.Tensor:
    """`[B, T Q, C]` by torch's attention, with the scale of the whole width; cells are averaged by hand."""
    asked, averaged = [], []
    for ask, y_BChw in zip(attention.ask, y_T):
        asked += list(ask(y_BChw).flatten(2).unbind(2))
        for top in range(0, y_BChw.shape[2], attention.cells):
            for left in range(0, y_BChw.shape[3], attention.cells):
                cell = y_BChw[:, :, top : top + attention.cells, left : left + attention.cells]
                averaged.append(cell.mean((2, 3)))
    q, k, v = (
        layer(torch.stack(tokens, 1)).unflatten(2, (HEADS, -1)).transpose(1, 2)
        for layer, tokens in zip((attention.query, attention.key, attention.value), (asked, averaged, averaged))
    )
    found = F.scaled_dot_product_attention(q, k, v, scale=C**-0.5)
    return attention.project(found.transpose(1, 2).flatten(2))


@pytest.mark.parametrize(("tasks", "hw"), [(1, HW), (TASKS, HW), (TASKS, (5, 7))])
def test_without_a_message_attention_is_torchs_own(tasks, hw):
    attention, y_T = CrossTaskAttention(C, HEADS, tasks, 2, takes_message=False).double(), maps(tasks, hw)
    found_T, message = attention(y_T, None)
    expected = attended(attention, y_T).transpose(1, 2)
    torch.testing.assert_close(torch.cat([found.flatten(2) for found in found_T], 2), expected, rtol=1e-12, atol=1e-12)
    q, r = -(-hw[0] // 2), -(-hw[1] // 2)
    assert message.shape == (tasks, 2, HEADS * tasks * q * r, q, r)  # as many keys as queries here


def test_a_message_that_weighs_nothing_is_none():
    attention, y_T = CrossTaskAttention(C, HEADS, TASKS, 2, takes_message=True).double(), maps(TASKS)
    own = torch.eye(HEADS).double()
    attention.join.weight.data = torch.cat([own, 0 * own], 1)[:, :, None, None]
    attention.join.bias.data.zero_()
    message = torch.randn(TASKS, 2, HEADS * TASKS * 12, 2, 2, dtype=torch.float64)
    found = torch.cat([x.flatten(2) for x in attention(y_T, message)[0]], 2)
    torch.testing.assert_close(found, attended(attention, y_T).transpose(1, 2), rtol=1e-12, atol=1e-12)


def test_a_message_is_last_stages_scores_of_the_same_head_key_and_place():
    coarse = CrossTaskAttention(C, HEADS, TASKS, 2, takes_message=False).double()
    fine = CrossTaskAttention(C, HEADS, TASKS, 4, takes_message=True).double()
    x_T, y_T = maps(TASKS), maps(TASKS, (12, 16))
    _, message = coarse(x_T, None)
    q = coarse.query(torch.cat([ask(x).flatten(2) for ask, x in zip(coarse.ask, x_T)], 2).transpose(1, 2))
    k = coarse.key(torch.cat([F.avg_pool2d(x, 2).flatten(2) for x in x_T], 2).transpose(1, 2))
    given = fine._received(message, (6, 8))
    for head, (q_h, k_h) in enumerate(zip(q.split(C // HEADS, 2), k.split(C // HEADS, 2))):
        score_BQS = q_h @ k_h.transpose(1, 2) / C**0.5
        for task in range(TASKS):
            one = score_BQS[:, 12 * task : 12 * (task + 1)]  # queries of 3 x 4, keys of all tasks
            for key in (0, 17, 35):
                enlarged = F.interpolate(one[:, None, :, key].unflatten(2, (3, 4)), (6, 8), mode="bilinear")
                mine = given[:, head, 48 * task : 48 * (task + 1), key]
                torch.testing.assert_close(mine, enlarged[:, 0].flatten(1), rtol=1e-12, atol=1e-12)
    fine(y_T, message)  # and it fits


def test_a_stage_adds_attention_and_an_mlp_of_each_pixel():
    stage, x_T = Stage(C, HEADS, TASKS, 2, 4, takes_message=False).double(), maps(TASKS)
    found_T, _ = stage(x_T, None)
    mixed_T, _ = stage.attention([stage.norm(x) for x in x_T], None)
    first, _, second = stage.mlp
    for x, mixed, found in zip(x_T, mixed_T, found_T):
        x = x + F.interpolate(mixed, HW, mode="bilinear", align_corners=False)
        hidden = F.gelu(F.linear(stage.mlp_norm(x).permute(0, 2, 3, 1), first.weight[:, :, 0, 0], first.bias))
        expected = x + F.linear(hidden, second.weight[:, :, 0, 0], second.bias).permute(0, 3, 1, 2)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_the_published_sizes():
    settings = InvPTSettings()
    assert settings.widths() == [576, 288, 144]
    assert settings.grids((448, 576)) == [(14, 18), (28, 36), (56, 72)]
    assert settings.grids((512, 512)) == [(16, 16), (32, 32), (64, 64)]


def test_every_task_hears_every_other_and_no_image_another():
    decoder = tiny_decoder("invpt")
    whole = decoder(levels()).predictions
    alone = decoder([level[:1] for level in levels()]).predictions
    for task in INFO.tasks:
        torch.testing.assert_close(whole[task][:1], alone[task], rtol=1e-4, atol=1e-5)
    whole["depth"].sum().backward()
    for preliminary in decoder.preliminary:
        assert preliminary.mix.weight.grad.abs().sum() > 0


def test_a_width_that_does_not_halve_is_told():
    with pytest.raises(UserError, match="decoder.channels=100 halves from stage to stage .* a multiple of 8"):
        configuration("invpt", channels=100)
