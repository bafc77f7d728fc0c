"""One small model of every family of timm: it gives the levels that it is said to give, or is refused in one line."""

from __future__ import annotations

import pytest
import torch

from fgmoe_dist.encoders.frozen import FrozenEncoder, timm
from fgmoe_dist.errors import UserError

# The smallest of each of timm's modules that have `forward_intermediates`.
FAMILIES = [
    "beit_base_patch16_224", "cait_xxs24_224", "coat_tiny", "convit_tiny", "convmixer_768_32", "cpubone_nano",
    "crossvit_tiny_240", "cs3darknet_focus_s", "csatv2", "cspnext_tiny", "davit_tiny", "deepseek_vit_412m",
    "deit_tiny_patch16_224", "densenet121", "dla46x_c", "dpn48b", "edgenext_xx_small", "efficientformer_l1",
    "efficientformerv2_s0", "efficientvim_m1", "efficientvit_b0", "efficientvit_m0", "ese_vovnet19b_slim_dw",
    "fasternet_t0", "fastvit_t8", "focalnet_tiny_srf", "gcvit_xxtiny", "gemma4_vit_167m", "ghostnet_050",
    "gmlp_ti16_224", "halonet_h1", "hardcorenas_b", "hgnetv2_b0", "hiera_tiny_224", "hrnet_w18_small",
    "iformer_t", "inception_next_atto", "inception_resnet_v2", "inception_v3", "inception_v4", "lcnet_035",
    "lcnetv2_small", "legacy_seresnet18", "legacy_xception", "levit_128s", "lowformer_b0", "mnasnet_small",
    "mobilenetv5_base", "mobilevit_xxs", "mvitv2_tiny", "naflexvit_base_patch16_parfac_gap", "nest_tiny",
    "nextvit_small", "pit_ti_224", "poolformerv2_s12", "pvt_v2_b0", "qwen3_vit_88m", "rdnet_tiny", "regnetx_002",
    "repghostnet_050", "repvit_m1", "res2next50", "resnest14d", "resnet10t", "resnetv2_18", "rexnet_100",
    "sam2_hiera_tiny", "samvit_base_patch16_224", "selecsls42", "sequencer2d_s", "shvit_s1", "skresnet18",
    "starnet_s050", "swiftformer_xs", "swin_tiny_patch4_window7_224", "swinv2_cr_tiny_224",
    "swinv2_tiny_window16_256", "test_byobnet", "test_coatnet", "test_convnext", "test_mambaout", "test_nfnet",
    "test_vit", "test_vit_relpos", "tiny_vit_5m_224", "tnt_s_legacy_patch16_224", "tresnet_m", "twins_svt_small",
    "vgg11", "visformer_tiny", "vit_tiny_patch16_dinov3_qkvb", "vit_tiny_r_s16_p8_224", "vitamin_small_224",
    "volo_d1_224", "xception41p", "xcit_nano_12_p8_224",
]  # fmt: skip


def check(name: str, size_hw: tuple[int, int]) -> FrozenEncoder:
    encoder = FrozenEncoder(name, "none", None, size_hw)
    levels = encoder(torch.randn(1, 3, *size_hw))
    sizes = [(1, c, size_hw[0] // s, size_hw[1] // s) for c, s in zip(encoder.channels, encoder.strides, strict=True)]
    assert [tuple(level.shape) for level in levels] == sizes and len(sizes) == len(encoder.taps)
    assert all(level.isfinite().all() for level in levels)
    return encoder


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_works_or_is_refused(name):
    native = tuple(timm.get_pretrained_cfg(name).input_size[-2:])
    for size_hw in dict.fromkeys((native, (256, 320))):
        try:
            check(name, size_hw)
        except UserError as error:
            assert "\n" not in str(error) and name in str(error)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size_hw", "taps", "strides"),
    [
        ("hiera_tiny_224", (224, 224), [0, 1, 2, 3], [4, 8, 16, 32]),
        ("sam2_hiera_tiny", (224, 288), [0, 1, 2, 3], [4, 8, 16, 32]),
        ("halonet26t", (256, 256), [1, 2, 3, 4], [4, 8, 16, 32]),
        ("volo_d1_224", (224, 224), [0, 1, 2, 3], [8, 16, 16, 16]),
    ],
)
def test_families_that_work(name, size_hw, taps, strides):
    encoder = check(name, size_hw)
    assert (encoder.taps, encoder.strides) == (taps, strides)


@pytest.mark.parametrize(
    ("name", "size_hw", "said"),
    [
        (
            "pit_ti_224",
            (224, 224),
            "pit_ti_224 divides 224 x 224 pixels into 27 x 27 cells at tap 0, which is no",
        ),
        ("levit_128s", (224, 224), "is not a multiple of 64|which is no whole stride"),
        ("test_vit", (150, 160), "nearest"),
        pytest.param("inception_v3", (288, 352), "288 x 352 pixels into 68 x 84 cells", marks=pytest.mark.slow),
        pytest.param("halonet26t", (224, 288), "cannot compute .*AssertionError", marks=pytest.mark.slow),
    ],
)
def test_families_that_do_not(name, size_hw, said):
    with pytest.raises(UserError, match=said) as error:
        FrozenEncoder(name, "none", None, size_hw)
    assert "\n" not in str(error.value)


def test_the_caller_s_random_numbers_stay_as_they_were():
    torch.manual_seed(3)
    before = torch.get_rng_state()
    FrozenEncoder("test_vit", "none", None, (160, 160))
    assert torch.equal(torch.get_rng_state(), before)
