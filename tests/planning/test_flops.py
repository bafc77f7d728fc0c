"""Operations of an image, added up by hand."""

from __future__ import annotations

import pytest

from fgmoe_dist.config import build_config
from fgmoe_dist.planning.flops import flops_of

NYUD = ["semseg", "depth", "normals", "edge"]
# 40 classes where there is no data set, 1 depth, 3 normals, 1 edge.
OUTPUTS = 40 + 1 + 3 + 1
H, W = 112, 144
CELLS, PATCHES = (H // 8) * (W // 8), (H // 16) * (W // 16)


def configuration(decoder: dict, experts: dict | None = None):
    return build_config(
        {
            "tasks": NYUD,
            "data": {"image_size": [H, W]},
            "encoder": {"name": "vit_tiny_patch16_224", "weights": "none"},
            "decoder": {"channels": 16, "stride": 8, **decoder},
            "experts": experts or {},
        }
    )


def test_of_the_multi_task_decoder_and_a_vit():
    found = flops_of(configuration({"kind": "multi_task"}))
    # 1x1 of four taps of 192 channels; per task 3x3 of 16 channels; 1x1 to the outputs.
    decoder = 2 * (4 * PATCHES * 192 * 16 + 4 * CELLS * 9 * 16 * 16 + CELLS * 16 * OUTPUTS)
    assert found.decoder * 1e9 == pytest.approx(decoder)
    tokens, width = PATCHES + 1, 192
    block = 2 * tokens * 12 * width**2 + 2 * 2 * tokens**2 * width  # qkv, out and MLP of 4 times the width; attention
    encoder = 12 * block + 2 * PATCHES * 3 * 16**2 * width
    assert found.encoder * 1e9 == pytest.approx(encoder)


def test_of_an_image_of_imagenet_a_vit_b_is_its_published_17_6_giga_multiply_adds():
    """timm and the papers say 17.58 G multiply-adds of ViT-B/16 at 224 (Touvron et al., arXiv 2012.12877: 17.5)."""
    config = build_config(
        {
            "tasks": ["depth"],
            "data": {"image_size": [224, 224]},
            "encoder": {"name": "vit_base_patch16_224", "weights": "none"},
            "decoder": {"kind": "multi_task", "channels": 16, "stride": 16},
        }
    )
    assert flops_of(config).encoder / 2 == pytest.approx(17.5, rel=0.01)


@pytest.mark.parametrize("top_k", [1, 3])
def test_routed_experts_count_as_often_as_a_token_passes_them(top_k):
    experts = {"count": 4, "split": 2, "hidden": 32, "top_k": top_k, "shared": 1, "global_experts": 2}
    found = flops_of(configuration({"kind": "fgmoe", "mixer_depth": 0}, experts))
    plain = flops_of(configuration({"kind": "multi_task"}))
    fine = 2 * 2 * 16 * 16  # into 16 hidden units, and out
    block = 4 * CELLS * ((top_k + 1) * fine + 2 * 16 * 8)  # routed, shared, and the router's logits
    block += CELLS * 2 * 2 * 2 * 16 * 32 + 4 * CELLS * 2 * 16 * 2  # global experts, and how they are mixed
    block += 4 * CELLS * 2 * 2 * 16  # their sum, as a product
    assert (found.decoder - plain.decoder) * 1e9 == pytest.approx(block)


def test_a_pruned_model_costs_what_the_whole_one_does():
    experts = {"count": 4, "split": 1, "top_k": 2, "bank": "shared"}
    whole, pruned = (
        flops_of(configuration({"kind": "fgmoe"}, {**experts, "kept": kept})) for kept in ([], [[[0, 1, 2]]])
    )
    assert whole == pruned
