"""encoder: taps equal the whole model's block outputs, and nothing about the encoder ever trains or drifts.

Shapes: B images, C channels, H W pixels, h w cells of a level's grid, N tokens.
"""

import re

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from fgmoe_dist.encoders.frozen import FrozenEncoder, _resolve_taps
from fgmoe_dist.encoders.weights import create_backbone, timm
from fgmoe_dist.errors import UserError

VIT = "vit_tiny_patch16_224"
SWIN = "swin_tiny_patch4_window7_224"


def images(size_hw: tuple[int, int], batch: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(batch, 3, *size_hw, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("name", "size_hw", "taps", "channels", "strides"),
    [
        (VIT, (64, 96), [2, 5, 8, 11], [192] * 4, [16] * 4),
        ("vit_small_patch14_dinov2", (56, 84), [2, 5, 8, 11], [384] * 4, [14] * 4),
        (SWIN, (224, 256), [0, 1, 2, 3], [96, 192, 384, 768], [4, 8, 16, 32]),
        ("convnext_atto", (64, 96), [0, 1, 2, 3], [40, 80, 160, 320], [4, 8, 16, 32]),
        ("resnet18", (64, 96), [1, 2, 3, 4], [64, 128, 256, 512], [4, 8, 16, 32]),
    ],
)
def test_levels_are_what_they_are_said_to_be(name, size_hw, taps, channels, strides):
    encoder = FrozenEncoder(name, "none", None, size_hw)
    assert (encoder.taps, encoder.channels, encoder.strides) == (taps, channels, strides)
    features = encoder(images(size_hw))
    for feature_BChw, width, stride in zip(features, channels, strides, strict=True):
        assert feature_BChw.shape == (2, width, size_hw[0] // stride, size_hw[1] // stride)
        assert feature_BChw.isfinite().all()


@pytest.mark.parametrize(("depth", "taps"), [(12, [2, 5, 8, 11]), (24, [5, 11, 17, 23]), (3, [0, 1, 2])])
def test_default_taps_of_plain_models(depth, taps):
    assert _resolve_taps("a plain model", None, [16] * depth) == taps


def block_outputs(model: nn.Module, blocks: nn.Module, image_BCHW: torch.Tensor) -> list[torch.Tensor]:
    """What every block of a whole model gives, caught by hooks during its ordinary forward."""
    outputs = []
    handles = [block.register_forward_hook(lambda _m, _i, output: outputs.append(output)) for block in blocks]
    with torch.no_grad():
        model.eval()(image_BCHW)
    for handle in handles:
        handle.remove()
    return outputs


def resampled_by_hand(pos_1NC: torch.Tensor, grid_hw: tuple[int, int]) -> torch.Tensor:
    side = int((pos_1NC.shape[1] - 1) ** 0.5)
    grid_1Chw = pos_1NC[:, 1:].transpose(1, 2).unflatten(2, (side, side))
    grid_1Chw = F.interpolate(grid_1Chw, size=grid_hw, mode="bicubic", antialias=True)
    return torch.cat([pos_1NC[:, :1], grid_1Chw.flatten(2).transpose(1, 2)], dim=1)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("taps", [[2, 5, 8, 11], [0, 6]])
def test_vit_taps_equal_the_whole_models_blocks(norm, taps):
    size_hw = (64, 96)
    encoder = FrozenEncoder(VIT, "none", taps, size_hw, norm=norm, seed=1)
    state = create_backbone(VIT, "none", seed=1)[0].state_dict()
    state["pos_embed"] = resampled_by_hand(state["pos_embed"], (4, 6))
    whole = timm.create_model(VIT, img_size=size_hw, num_classes=0)
    whole.load_state_dict(state)
    outputs = block_outputs(whole, whole.blocks, images(size_hw))
    for feature_BChw, tap in zip(encoder(images(size_hw)), taps, strict=True):
        tokens_BNC = whole.norm(outputs[tap]) if norm else outputs[tap]
        expected = tokens_BNC[:, 1:].transpose(1, 2).unflatten(2, (4, 6))
        torch.testing.assert_close(feature_BChw, expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("taps", [[0, 1, 2, 3], [1, 2]])
def test_swin_taps_equal_the_whole_models_stages_with_windows_as_trained(taps):
    size_hw = (224, 288)
    encoder = FrozenEncoder(SWIN, "none", taps, size_hw, seed=1)
    whole = timm.create_model(SWIN, img_size=size_hw, window_size=7, num_classes=0)
    whole.load_state_dict(create_backbone(SWIN, "none", seed=1)[0].state_dict())
    outputs = block_outputs(whole, whole.layers, images(size_hw, batch=1))
    for feature_BChw, tap in zip(encoder(images(size_hw, batch=1)), taps, strict=True):
        expected = whole.norm(outputs[tap]) if tap == 3 else outputs[tap]
        torch.testing.assert_close(feature_BChw, expected.permute(0, 3, 1, 2), atol=2e-5, rtol=1e-5)


def test_blocks_past_the_last_tap_and_the_head_are_not_kept():
    kept = FrozenEncoder(VIT, "none", [0, 2], (224, 224)).state_dict()
    assert {key.split(".")[2] for key in kept if key.startswith("model.blocks.")} == {"0", "1", "2"}
    assert not any("head" in key for key in kept)


# ---- frozen ----


@pytest.fixture(scope="module")
def batch_norm_encoder() -> FrozenEncoder:
    """Batch statistics make any slip into training mode visible at once."""
    return FrozenEncoder("resnet18", "none", None, (32, 32))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(modes=st.lists(st.booleans(), max_size=4), seed=st.integers(0, 2**16), batch=st.integers(1, 3))
def test_features_do_not_depend_on_modes_set_by_the_parent(batch_norm_encoder, modes, seed, batch):
    parent = nn.Sequential(batch_norm_encoder, nn.BatchNorm2d(3))
    image_BCHW = images((32, 32), batch, seed)
    parent.eval()
    expected = batch_norm_encoder(image_BCHW)
    for mode in modes:
        parent.train(mode)
        assert parent[1].training is mode and not any(module.training for module in batch_norm_encoder.modules())
        for found, wanted in zip(batch_norm_encoder(image_BCHW), expected, strict=True):
            assert torch.equal(found, wanted)


def test_nothing_of_the_encoder_trains():
    encoder = FrozenEncoder(VIT, "none", [1], (32, 32))
    decoder = nn.Conv2d(192, 1, 1)
    parent = nn.ModuleDict({"encoder": encoder, "decoder": decoder}).train()
    before = {key: value.clone() for key, value in encoder.state_dict().items()}
    trained = [parameter for parameter in parent.parameters() if parameter.requires_grad]
    assert {id(parameter) for parameter in trained} == {id(parameter) for parameter in decoder.parameters()}
    image_BCHW = images((32, 32)).requires_grad_()
    (feature_BChw,) = encoder(image_BCHW)
    assert not feature_BChw.requires_grad and not feature_BChw.is_inference()
    decoder(feature_BChw).sum().backward()
    torch.optim.AdamW(trained, lr=1.0, weight_decay=1.0).step()
    assert image_BCHW.grad is None
    assert all(torch.equal(value, before[key]) for key, value in encoder.state_dict().items())


# ---- identity, precision, normalisation ----


def test_checksum_and_source_say_the_weights_not_the_use():
    first = FrozenEncoder(VIT, "none", None, (64, 96), seed=2)
    other = FrozenEncoder(VIT, "none", [4], (224, 224), dtype=torch.bfloat16, norm=False, seed=2)
    assert first.checksum == other.checksum and len(first.checksum) == 64
    assert first.checksum != FrozenEncoder(VIT, "none", None, (64, 96), seed=3).checksum
    assert first.source == other.source == "none (random, seed 2)"
    assert first.source in repr(first)


def test_bfloat16_is_close_to_float32():
    full, half = (FrozenEncoder(VIT, "none", None, (64, 64), dtype=dtype) for dtype in (torch.float32, torch.bfloat16))
    for found, wanted in zip(half(images((64, 64))), full(images((64, 64))), strict=True):
        assert found.dtype == torch.bfloat16 and wanted.dtype == torch.float32
        assert (found.float() - wanted).norm() < 0.03 * wanted.norm()


def test_weights_cast_by_an_engine_still_take_float32_images():
    encoder = FrozenEncoder(VIT, "none", [0], (32, 32)).bfloat16()
    assert encoder(images((32, 32)))[0].dtype == torch.bfloat16


def test_mean_and_std_are_those_of_the_pretraining():
    augreg = FrozenEncoder(VIT, "none", [0], (32, 32))
    dinov2 = FrozenEncoder("vit_small_patch14_dinov2", "none", [0], (28, 28))
    assert (augreg.mean, augreg.std) == ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    assert (dinov2.mean, dinov2.std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# ---- users' mistakes ----


@pytest.mark.parametrize("taps", [[], [12], [-1], [3, 2], [3, 3]])
def test_taps_that_do_not_exist(taps):
    with pytest.raises(UserError, match=re.escape(f"encoder.taps: {taps} must be different") + ".*0 to 11.*12 blocks"):
        FrozenEncoder(VIT, "none", taps, (32, 32))


@settings(max_examples=20, deadline=None)
@given(height=st.integers(1, 70), width=st.integers(1, 70))
def test_image_size_is_taken_or_the_nearest_ones_are_named(height, width):
    try:
        encoder = FrozenEncoder(VIT, "none", [0], (height, width))
    except UserError as error:
        assert height % 16 or width % 16
        message, _, nearest = str(error).partition("nearest:")
        assert message.startswith(f"data.image_size: [{height}, {width}] is not a multiple of 16")
        offers = re.findall(r"\[(\d+), (\d+)\]", nearest)
        assert offers
        for offer in offers:
            for side, wanted in zip(map(int, offer), (height, width), strict=True):
                assert side > 0 and side % 16 == 0 and abs(side - wanted) < 16
    else:
        assert encoder(images((height, width), 1))[0].shape[2:] == (height // 16, width // 16)


def test_swin_counts_its_coarsest_stride():
    with pytest.raises(UserError, match=r"\[416, 560\] is not a multiple of 32.*\[416, 544\] or \[416, 576\]"):
        FrozenEncoder(SWIN, "none", None, (416, 560))


def test_model_without_intermediates(monkeypatch):
    monkeypatch.setattr("fgmoe_dist.encoders.frozen.create_backbone", lambda *_: (nn.Linear(1, 1), "none"))
    with pytest.raises(UserError, match=r"encoder\.name: timm's plain has no forward_intermediates"):
        FrozenEncoder("plain", "none", None, (32, 32))


def test_an_image_of_another_size_is_a_programmers_mistake():
    with pytest.raises(AssertionError, match="encoder built for"):
        FrozenEncoder(VIT, "none", [0], (32, 32))(images((32, 48)))
