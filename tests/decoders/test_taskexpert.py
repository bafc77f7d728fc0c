"""TaskExpert, in our own reading: its mixture against a loop over pixels, and its plain case.

Legend: B images, C channels, h x w grid, T tasks, E experts.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from fgmoe_dist.decoders.taskexpert import MemorialMixture
from tests.decoders.tiny import INFO, levels, tiny_decoder

C, EXPERTS, TASKS, HW = 6, 3, 2, (3, 4)


def test_a_mixture_is_its_equation_pixel_by_pixel():
    torch.manual_seed(0)
    mixture = MemorialMixture(5, C, EXPERTS, TASKS, first=False, reads_memory=True).double()
    level_BChw, memory_T = torch.randn(1, 5, *HW).double(), list(torch.randn(TASKS, 1, C, *HW).double())
    found_T = mixture(level_BChw, HW, memory_T)
    x_BChw = mixture.fuse(level_BChw)
    features_E = []
    for expert, norm in enumerate(mixture.norms):
        kernel = mixture.experts.weight[C * expert : C * (expert + 1)]
        features_E.append(F.gelu(norm(F.conv2d(x_BChw, kernel, padding=1))))
    for task in range(TASKS):
        gates, update = mixture.gates[task], mixture.update[task]
        for row in range(HW[0]):
            for column in range(HW[1]):
                x_C, m_C = x_BChw[0, :, row, column], memory_T[task][0, :, row, column]
                logits = gates.weight[:, :, 0, 0] @ torch.cat([x_C, m_C]) + gates.bias
                weights = logits.exp() / logits.exp().sum()
                assembled = sum(w * f[0, :, row, column] for w, f in zip(weights, features_E)) + weights[-1] * m_C
                expected = F.layer_norm(m_C + assembled, [C], update.weight, update.bias, update.eps)
                torch.testing.assert_close(found_T[task][0, :, row, column], expected, rtol=1e-10, atol=1e-10)


def test_one_expert_without_memory_is_a_plain_convolutional_decoder():
    """The gate is 1: every tap's convolution, norm and GELU, added up and normed, and a head."""
    decoder = tiny_decoder("taskexpert", experts=1, memory=False)
    predictions = decoder(levels()).predictions
    for index, task in enumerate(INFO.tasks):
        total = None
        for tap, level in zip(decoder.taps, levels()):
            y = F.gelu(tap.norms[0](F.conv2d(tap.fuse(level), tap.experts.weight, padding=1)))
            total = y if total is None else tap.update[index](total + y)
        total = F.interpolate(total, decoder.grid_hw, mode="bilinear", align_corners=False)
        assert torch.equal(predictions[task], decoder.heads[index](total, decoder.size_hw)), task


def test_memory_is_read_at_every_tap_but_the_first():
    decoder = tiny_decoder("taskexpert")
    assert [tap.gates[0].out_channels for tap in decoder.taps] == [3, 4]
    assert [tap.update is None for tap in decoder.taps] == [True, False]
