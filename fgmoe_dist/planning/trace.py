"""What a micro-batch computes and keeps, counted by running the model itself on tensors without data.

The encoder, the decoder's forward and backward pass and the losses run on torch's meta device, and every operation
is noted with its shapes: no weights are made or downloaded, and a change of the model changes its plan. Only the
routed experts, whose shapes depend on values and on other ranks, are left to arithmetic (`traffic`, `times`).
"""

from __future__ import annotations

from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fgmoe_dist.config import Config
from fgmoe_dist.data.shardset import INDEX, ShardSet
from fgmoe_dist.decoders.base import Decoder, Levels, parameter_counts
from fgmoe_dist.encoders.frozen import FrozenEncoder
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.groups import is_expert_parameter
from fgmoe_dist.model import create_decoder
from fgmoe_dist.planning.counts import Counts, Work
from fgmoe_dist.precision import PRECISIONS
from fgmoe_dist.tasks import create_tasks
from fgmoe_dist.training.losses import task_losses

META = torch.device("meta")

# Operations with a rate of their own, a unit an element of the result (backward: of the gradient that comes in).
ELEMENTWISE = {
    "aten.gelu.default": "gelu",
    "aten.gelu_backward.default": "gelu_backward",
    "aten.native_layer_norm.default": "layer_norm",
    "aten.native_layer_norm_backward.default": "layer_norm_backward",
    "aten._softmax.default": "softmax",
    "aten._log_softmax.default": "softmax",
    "aten._softmax_backward_data.default": "softmax_backward",
    "aten._log_softmax_backward_data.default": "softmax_backward",
    "aten.grid_sampler_2d.default": "grid_sample",
    "aten.grid_sampler_2d_backward.default": "grid_sample_backward",
    "aten.upsample_bilinear2d.default": "upsample",
    "aten.upsample_bilinear2d_backward.default": "upsample_backward",
}
MATMULS = {"aten.mm.default": 0, "aten.bmm.default": 0, "aten.addmm.default": 1, "aten.baddbmm.default": 1}


def count(config: Config) -> Counts:
    """The counts of `config`'s model and micro-batch. UserError for an encoder or image size that cannot be."""
    recorder, size_hw = _Recorder(), tuple(config.data.image_size)
    with META, recorder:
        encoder, levels = _trace_encoder(config, recorder)
        model = _meta_model(config, encoder)
        parameters = sum(p.numel() for p in model.parameters())
        expert_parameters = sum(p.numel() for p in model.parameters() if is_expert_parameter(p))
        model.unroute()
        _mark_parts(model, recorder)
        saved = _Saved(model, recorder)
        with saved:
            recorder.part = "decoder"
            output = model(levels)
            recorder.part = "losses"
            labels = {t.name: t.label.empty(config.train.micro_batch_size, size_hw) for t in model.tasks}
            loss = sum(task_losses(model.tasks, output, labels)[1])
        recorder.part, recorder.backward = "decoder", True
        loss.backward()
    return Counts(
        encoder_parameters=sum(p.numel() for p in encoder.parameters()),
        dense_parameters=parameters - expert_parameters,
        expert_parameters=expert_parameters,
        tokens=config.train.micro_batch_size * config.routed.tokens,
        saved_bytes=saved.total(),
        block_saved_bytes=saved.total("block", "shared", "global"),
        largest_bytes=recorder.largest,
        work=recorder.work(),
    )


def parameters_of(config: Config) -> dict[str, int]:
    """`parameter_counts` of the decoder alone, whole on one rank, without making any number of it."""
    with META:
        encoder, _ = _trace_encoder(config, _Recorder())
        return parameter_counts(_meta_model(config, encoder), nn.Module(), ep_size=1)


def count_forward(config: Config) -> tuple[Work, ...]:
    """The work of one image's forward pass in evaluation, without routed experts; its parts are encoder and decoder."""
    config = config.model_copy(update={"train": config.train.model_copy(update={"micro_batch_size": 1})})
    recorder = _Recorder()
    with META, recorder, torch.no_grad():
        encoder, levels = _trace_encoder(config, recorder)
        model = _meta_model(config, encoder).eval()
        model.unroute()
        recorder.part = "decoder"
        model(levels)
    return recorder.work()


def _trace_encoder(config: Config, recorder: _Recorder) -> tuple[FrozenEncoder, list[Tensor]]:
    """The encoder without weights, and its levels."""
    name, size_hw, dtype = config.encoder.name, tuple(config.data.image_size), PRECISIONS[config.encoder_precision]
    encoder = FrozenEncoder(name, "none", config.encoder.taps, size_hw, dtype=dtype)
    recorder.part = "encoder"
    with _Attention(recorder):
        levels = encoder(torch.empty(config.train.micro_batch_size, 3, *size_hw, dtype=dtype))
    recorder.part = None
    return encoder, levels


def _meta_model(config: Config, encoder: FrozenEncoder) -> Decoder:
    """The decoder on one rank."""
    alone = config.model_copy(update={"parallel": config.parallel.model_copy(update={"ep_size": 1})})
    # Of other backends only memory and traffic differ, which arithmetic sees to.
    alone = alone.model_copy(update={"experts": config.experts.model_copy(update={"backend": "fused"})})
    tasks = create_tasks(config.tasks, AnyDataset(config))
    decoder = create_decoder(alone, Levels(encoder.channels, encoder.strides), tasks)
    return decoder.to(PRECISIONS[config.train.precision])


class AnyDataset:
    """Stands in for a data set: what the index of `data.train` says, as far as it is a folder that is there.

    Else there are 40 classes where there is depth and no body parts (NYUD), or 21 (PASCAL).
    """

    def __init__(self, config: Config):
        self.tasks = list(config.tasks)
        nyud = "depth" in self.tasks and "human_parts" not in self.tasks
        self.boundary_max_dist, self.definitions = 0.01, {}
        self.classes = _Classes({"semseg": ["?"] * (40 if nyud else 21), "human_parts": ["?"] * 7})
        if config.data.train and (Path(config.data.train) / INDEX).is_file():
            shards = ShardSet.open(config.data.train)
            self.classes.update(shards.classes)
            self.boundary_max_dist, self.definitions = shards.boundary_max_dist, shards.definitions


class _Classes(dict):
    def __missing__(self, task: str) -> list[str]:
        raise UserError(f"tasks: how many classes {task} has stands with its shards; set data.train to their folder")


def _mark_parts(decoder: Decoder, recorder: _Recorder) -> None:
    """Tells `recorder` which part of the decoder the forward pass is in."""
    for module, part in decoder.parts():
        module.register_forward_pre_hook(lambda *_, part=part: recorder.enter(part))
        module.register_forward_hook(lambda *_: recorder.leave())


class _Saved:
    """What autograd keeps, each storage once, by the part that kept it first; parameters do not count."""

    def __init__(self, model: nn.Module, recorder: _Recorder):
        self.recorder = recorder
        self.parameters = {_storage(parameter) for parameter in model.parameters()}
        self.kept: dict[int, tuple[str, Tensor]] = {}  # the tensors too, so that no key is used again
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor)

    def __enter__(self) -> None:
        self.hooks.__enter__()

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    def total(self, *parts: str) -> float:
        return sum(t.untyped_storage().nbytes() for part, t in self.kept.values() if not parts or part in parts)

    def _keep(self, tensor: Tensor) -> Tensor:
        if _storage(tensor) not in self.parameters:
            self.kept.setdefault(_storage(tensor), (self.recorder.part, tensor.detach()))
        return tensor


class _Attention(TorchFunctionMode):
    """Notes attention whole: on the meta device it falls apart into steps that no device takes."""

    def __init__(self, recorder: _Recorder):
        super().__init__()
        self.recorder = recorder

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not F.scaled_dot_product_attention:
            return function(*args, **(kwargs or {}))
        query, key, value = args[:3]
        flops = 2 * query.numel() * key.shape[-2] + 2 * query.shape[:-1].numel() * value.shape[-2] * value.shape[-1]
        self.recorder.add("attention", _precision([query]), query.shape[-1], flops)
        with self.recorder.silence():
            return query.new_empty(*query.shape[:-1], value.shape[-1])


class _Recorder(TorchDispatchMode):
    """Notes every operation under the part that is set; `None` notes nothing."""

    def __init__(self):
        super().__init__()
        self.part, self.backward, self.largest = None, False, 0.0
        self._stack: list = []
        self._sums: dict[tuple, list[float]] = defaultdict(lambda: [0.0, 0])

    def enter(self, part: str) -> None:
        self._stack.append(self.part)
        self.part = part

    def leave(self) -> None:
        self.part = self._stack.pop()

    @contextmanager
    def silence(self) -> Iterator[None]:
        self.enter(None)
        yield
        self.leave()

    def add(self, kind: str, precision: str, size: int, amount: float) -> None:
        sums = self._sums[self.part, self.backward, kind, precision, size]
        sums[0] += amount
        sums[1] += 1

    def work(self) -> tuple[Work, ...]:
        return tuple(Work(*key, amount=amount, calls=calls) for key, (amount, calls) in self._sums.items())

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if self.part is not None:
            self._note(str(function), args, [*_tensors(args), *_tensors((kwargs or {}).values())], _tensors([result]))
        return result

    def _note(self, name: str, args: Sequence[Any], inputs: list[Tensor], outputs: list[Tensor]) -> None:
        written = name.partition(".")[2].partition(".")[0].endswith("_")
        if not outputs or (not written and _storage(outputs[0]) in map(_storage, inputs)) or "empty" in name:
            return  # a view, or memory nobody writes
        touched = sum(map(_bytes, inputs)) + sum(map(_bytes, outputs))
        self.largest = max(self.largest, touched)
        precision = _precision(inputs or outputs)
        if name in MATMULS:
            left, right = inputs[MATMULS[name] :][:2]
            self.add("matmul", precision, min(*left.shape[-2:], right.shape[-1]), 2 * left.numel() * right.shape[-1])
        elif name.startswith("aten.convolution"):
            self._note_convolution(args, outputs, precision)
        elif name in ELEMENTWISE:
            units = inputs[0] if name.endswith("backward.default") or "backward_data" in name else outputs[0]
            self.add(ELEMENTWISE[name], precision, 1, units.numel())
        else:
            self.add("stream", precision, 1, touched)

    def _note_convolution(self, args: Sequence[Any], outputs: list[Tensor], precision: str) -> None:
        """Also the backward one, whose first argument is the gradient of the result."""
        backward = isinstance(args[-1], list) and len(args) == 11
        weight, result = (args[2], args[0]) if backward else (args[1], outputs[0])
        stride = args[4] if backward else args[3]
        flops, window = 2 * result.numel() * weight[0].numel(), list(weight.shape[2:])
        size = min(weight.shape[:2])
        if window != [1, 1] and list(stride) == window:
            kind = "matmul"  # patches side by side
        else:
            kind = ("conv1x1" if window == [1, 1] else "conv3x3") + ("_backward" if backward else "")
        self.add(kind, precision, size, flops * (sum(args[-1][:2]) if backward else 1))


def _tensors(values: Any) -> list[Tensor]:
    found = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (list, tuple)):
            found += _tensors(value)
    return found


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _bytes(tensor: Tensor) -> int:
    """What is read of it: an expanded tensor has more elements than memory."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def _precision(tensors: Sequence[Tensor]) -> str:
    return "bf16" if any(tensor.dtype == torch.bfloat16 for tensor in tensors) else "fp32"
