"""Logical checkpoints: experts by (block, task, expert), never by rank, so that any layout loads any other's.

`checkpoints/step-00000120/` holds

    state.json                     step, configuration, data set, encoder, who wrote it, checksums of the other files
    decoder.safetensors            replicated parameters: NAME.weight, NAME.exp_avg, NAME.exp_avg_sq, fp32;
                                   persistent buffers outside the encoder: NAME.weight, fp32
    experts-000-of-002.safetensors blocks.B.experts.TASK.EXPERT.WEIGHT.weight and its moments, one file an expert rank;
                                   TASK is `shared` for experts that all tasks share

This module takes what a rank has to write out of the engine (`take_snapshot`), writes it (`write_snapshot`), and loads
it again; `checkpoints/writer.py` decides when, `checkpoints/folder.py` names. The frozen encoder is not in a
checkpoint, only its name and checksum. safetensors holds no code, so nothing is executed on loading.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping, NamedTuple, Optional

import torch
import torch.distributed as dist
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from fgmoe_dist.checkpoints.engine import MOMENTS, Engine, OptimizerState
from fgmoe_dist.checkpoints.folder import (
    WHOLE,
    CheckpointState,
    check_integrity,
    find_checkpoint,
    read_state,
    stale_pointer,
)
from fgmoe_dist.checkpoints.integrity import checksums
from fgmoe_dist.config import Config, build_config
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.backends import BACKENDS
from fgmoe_dist.experts.backends.base import LogicalExpert, RoutedExperts
from fgmoe_dist.experts.backends.fused import ROUTER_WEIGHTS
from fgmoe_dist.experts.groups import copy_rank, ep_rank, is_expert_parameter
from fgmoe_dist.model import Model, create_model

log = logging.getLogger(__name__)

KINDS = ("weight", *MOMENTS)
# Of a model without global experts, which once had the norm before them all the same; nothing ever trained it.
DROPPED = ".global_norm."


class Piece(NamedTuple):
    """A tensor in host memory, and each name it is written under: whole, or the slice at an index."""

    value: Tensor
    names: list[tuple[str, Optional[int]]]


Snapshot = dict[str, list[Piece]]  # by the name of the file


def take_snapshot(engine: Engine) -> Snapshot:
    """What this rank writes of a checkpoint, apart from all that the next step changes. A collective.

    Rank 0 writes what is replicated, the first copy of the experts writes them; the others only take part in gathering.
    """
    optimizer, model, snapshot = engine.optimizer_state(), engine.module, {}
    decoder = snapshot.setdefault("decoder.safetensors", []) if dist.get_rank() == 0 else None
    for name, parameter in _replicated(model):
        _take(optimizer, parameter, [(name, None)], decoder)
    if decoder is not None:
        decoder += [Piece(_copied(buffer.float()), [(f"{name}.weight", None)]) for name, buffer in buffers_of(model)]
    for prefix, layer in _expert_layers(model):
        experts, ep_size = None, layer.ep_size
        if copy_rank(ep_size) == 0:
            experts = snapshot.setdefault(f"experts-{ep_rank(ep_size):03d}-of-{ep_size:03d}.safetensors", [])
        for parameter, members in _by_parameter(layer):
            _take(optimizer, parameter, [(_expert_name(prefix, e), e.index) for e in members], experts)
    if torch.cuda.is_available():
        torch.cuda.current_stream().synchronize()  # the copies to host memory
    return snapshot


def bytes_of(snapshot: Snapshot) -> int:
    """What its tensors take on the disk."""
    return sum(piece.value.nbytes for pieces in snapshot.values() for piece in pieces)


def write_snapshot(snapshot: Snapshot, folder: Path) -> dict[str, str]:
    """Writes a rank's files, down to the disk, and empties `snapshot`; the checksum of each.

    OSError or SafetensorError if it fails.
    """
    for name, pieces in snapshot.items():
        tensors = {}
        while pieces:
            value, names = pieces.pop()
            tensors.update({key: value if index is None else value[index].clone() for key, index in names})
        save_file(tensors, folder / name)
        with open(folder / name, "rb") as file:
            os.fsync(file.fileno())
    return checksums(folder, snapshot)


def _take(optimizer: OptimizerState, parameter: nn.Parameter, names: list, pieces: Optional[list[Piece]]) -> None:
    values = optimizer.get(parameter)
    if pieces is not None:
        for kind, value in values.items():
            value = value if optimizer.copies and not value.is_cuda else _copied(value)
            pieces.append(Piece(value, [(f"{name}.{kind}", index) for name, index in names]))


def _copied(value: Tensor) -> Tensor:
    """`value` in host memory of its own; from a GPU on its way into pinned memory, which torch keeps for the next."""
    return torch.empty_like(value, device="cpu", pin_memory=value.is_cuda).copy_(value, non_blocking=True)


def resume(engine: Engine, checkpoint: Path, expected: Mapping[str, Any]) -> CheckpointState:
    """Loads weights, moments and optimiser step into `engine`, whatever layout wrote them.

    `expected` are facts the run must share with the checkpoint (`tasks`, `encoder_checksum`). Raises UserError where
    one differs, a tensor is missing or misshapen, one has no place here, or a file is damaged.
    """
    state = read_state(checkpoint)
    for key, value in expected.items():
        if getattr(state, key) != value:
            raise UserError(
                f"checkpoint {checkpoint}: its {key} is {getattr(state, key)}, this run's is {value};"
                f" use the same settings, or start anew with --resume never and another run.dir"
            )
    optimizer = engine.optimizer_state()
    with _Reader(checkpoint) as reader:
        _check_places(reader, engine.module)
        for name, parameter in _replicated(engine.module):
            optimizer.set(parameter, {kind: reader.read(f"{name}.{kind}", parameter.shape) for kind in KINDS})
        for prefix, layer in _expert_layers(engine.module):
            _load_experts(reader, prefix, layer, optimizer)
        _load_buffers(reader, engine.module, state)
    optimizer.step = state.step
    return state


def load_model(path: Path, kernel: str = "auto") -> tuple[Model, Config, CheckpointState]:
    """The trained model of a run folder or checkpoint, whole on this process, ready to predict.

    Its experts are computed by `kernel` of the fused backend whichever trained them: the weights mean the same.
    UserError if there is no checkpoint, or the encoder's weights are not those it was trained on.
    """
    checkpoint = find_checkpoint(Path(path))
    if checkpoint is not None and (stale := stale_pointer(checkpoint.parent)):
        log.warning("%s/latest names %s, which is not there; taken is %s", checkpoint.parent, stale, checkpoint.name)
    if checkpoint is None:
        raise UserError(
            f"--checkpoint {path}: no checkpoint there; name a run folder or one of its checkpoints/step-... folders"
        )
    state = read_state(checkpoint)
    check_integrity(checkpoint)
    values = state.changed_config(WHOLE, {"experts": {"kernel": kernel}})
    config = build_config(values, str(checkpoint / "state.json"), defined_tasks=state.definitions)
    model = create_model(config, state)
    if model.encoder.checksum != state.encoder_checksum:
        raise UserError(
            f"checkpoint {checkpoint}: was trained on other encoder weights than encoder.weights="
            f"{config.encoder.weights} gives here ({model.encoder.source}); install or download those"
        )
    with _Reader(checkpoint) as reader, torch.no_grad():
        for name, parameter in _replicated(model.decoder):
            if name.endswith(ROUTER_WEIGHTS):
                backend = BACKENDS[state.config["experts"]["backend"]]
                parameter.copy_(backend.read_routers(reader.within(name.removesuffix(ROUTER_WEIGHTS)), parameter.shape))
            else:
                parameter.copy_(reader.read(f"{name}.weight", parameter.shape))
        for prefix, layer in _expert_layers(model.decoder):
            for e in layer.logical_experts():
                target = e.parameter if e.index is None else e.parameter[e.index]
                target.copy_(reader.read(f"{_expert_name(prefix, e)}.weight", target.shape))
        _load_buffers(reader, model.decoder, state)
    if config.train.precision == "bf16":  # as the engine cast it; scored in another precision it would score otherwise
        model.decoder.to(torch.bfloat16)
    return model.eval(), config, state


def _check_places(reader: _Reader, model: nn.Module) -> None:
    """UserError where the checkpoint has a tensor that this model has no place for, which would be dropped in silence.

    Those of routed experts are told by their layer alone, as a rank holds some of them; that they are as many is told
    by their router's shape.
    """
    known = {name for name, _ in _replicated(model)} | {name for name, _ in buffers_of(model)}
    layers = tuple(f"{prefix}." for prefix, _ in _expert_layers(model))
    for name in sorted({key.rpartition(".")[0] for key in reader} - known):
        if name.startswith(layers) or DROPPED in name:
            continue
        cure = "use the same decoder and experts, or start anew with --resume never and another run.dir"
        if name.endswith("bias_TE"):
            cure = (
                "experts.bias_update_rate=0 would drop the learnt biases, keep a rate above 0 (1e-9 freezes them in"
                " effect)"
            )
        raise UserError(f"checkpoint {reader.checkpoint}: this model has no {name}; {cure}")


def _load_experts(reader: _Reader, prefix: str, layer: RoutedExperts, optimizer: OptimizerState) -> None:
    for parameter, members in _by_parameter(layer):
        values = {}
        for kind in KINDS:
            shape = parameter.shape if members[0].index is None else parameter.shape[1:]
            slices = [reader.read(f"{_expert_name(prefix, e)}.{kind}", shape) for e in members]
            values[kind] = slices[0] if members[0].index is None else torch.stack(slices)
        optimizer.set(parameter, values)


def _load_buffers(reader: _Reader, model: nn.Module, state: CheckpointState) -> None:
    """What the checkpoint says it holds must be there; a buffer that came into the model later keeps its first value.

    So it was with the run that wrote the checkpoint: it had no such buffer, which is what the first value stands for.
    """
    for name, buffer in buffers_of(model):
        if name in state.buffers:
            buffer.copy_(reader.read(f"{name}.weight", buffer.shape))


def buffers_of(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Persistent buffers, which must be the same on every rank."""
    for name, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, nn.Parameter):
            yield name, value


def _replicated(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not is_expert_parameter(parameter):
            yield name, parameter


def _expert_layers(model: nn.Module) -> Iterator[tuple[str, RoutedExperts]]:
    """Each layer by the name that its experts have in a file; a decoder numbers its layers, and none twice."""
    seen: set[int] = set()
    for module in model.modules():
        if isinstance(module, RoutedExperts):
            assert module.block not in seen, f"two layers of routed experts are block {module.block}"
            seen.add(module.block)
            yield f"blocks.{module.block}.experts", module


def _by_parameter(layer: RoutedExperts) -> Iterator[tuple[nn.Parameter, list[LogicalExpert]]]:
    """Every parameter with the experts it holds: all of a stacked one's, one of a stock layer's."""
    held: dict[int, list[LogicalExpert]] = {}
    for expert in layer.logical_experts():
        held.setdefault(id(expert.parameter), []).append(expert)
    return ((members[0].parameter, members) for members in held.values())


def _expert_name(prefix: str, expert: LogicalExpert) -> str:
    owner = "shared" if expert.task is None else expert.task
    return f"{prefix}.{owner}.{expert.expert}.{expert.weight}"


class _Reader:
    """Finds a tensor by name in whichever file of the checkpoint holds it."""

    def __init__(self, checkpoint: Path):
        self.checkpoint, self._where, self._files = checkpoint, {}, []

    def __enter__(self) -> _Reader:
        for path in sorted(self.checkpoint.glob("*.safetensors")):
            try:
                file = safe_open(path, framework="pt", device="cpu")
                self._where.update({key: file for key in file.keys()})  # noqa: SIM118 - no dict, cannot be iterated
            except (SafetensorError, OSError) as error:
                raise UserError(f"checkpoint {path}: is damaged ({error}); resume from an older one") from None
            self._files.append(file)
        return self

    def __exit__(self, *_) -> None:
        self._where, self._files = {}, []

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def within(self, prefix: str) -> Callable[[str, tuple[int, ...]], Tensor]:
        """Reads the weights of a layer by their names in it."""
        return lambda name, shape: self.read(f"{prefix}{name}.weight", shape)

    def read(self, name: str, shape: tuple[int, ...]) -> Tensor:
        if name not in self._where:
            raise UserError(
                f"checkpoint {self.checkpoint}: has no {name}; it was written for another model, or a file is missing"
            )
        value = self._where[name].get_tensor(name)
        if value.shape != shape:
            raise UserError(
                f"checkpoint {self.checkpoint}: {name} is {list(value.shape)}, the model's is {list(shape)};"
                f" use the configuration it was trained with"
            )
        return value
