"""The model under DeepSpeed's engine: ZeRO stage, accumulation, precision, clipping with one norm whatever ep_size."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, Iterator

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.layer import MoE
from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import (
    groups,
    safe_get_full_fp32_param,
    safe_get_full_optimizer_state,
    safe_set_full_fp32_param,
    safe_set_full_optimizer_state,
)
from torch import Tensor, nn

from fgmoe_dist.checkpoints.engine import MOMENTS
from fgmoe_dist.config import REDUCTION_BUCKET, Config
from fgmoe_dist.decoders.base import Output
from fgmoe_dist.experts.backends.deepspeed import join_process_group
from fgmoe_dist.experts.groups import find_groups, is_expert_parameter, register
from fgmoe_dist.training.optimizers import OPTIMIZERS

# The engine reports a gradient norm only where it clips; this bound clips nothing.
UNCLIPPED = 1e12


def prepare(ep_size: int) -> None:
    """To be called before the model is built: DeepSpeed on our process group, its expert groups for the experts too.

    A collective the first time; afterwards it does nothing.
    """
    join_process_group()
    name = _group_name(ep_size)
    if name not in groups._get_expert_parallel_group_dict():
        groups._create_expert_and_data_parallel(ep_size)
    register(ep_size, groups._get_expert_parallel_group(name), groups._get_expert_data_parallel_group(name))


def create_engine(decoder: nn.Module, config: Config) -> Engine:
    """`decoder` with the optimiser that `config` describes."""
    prepare(config.parallel.ep_size)
    return Engine(decoder, config)


class Engine:
    """See `training.engines.Engine`."""

    def __init__(self, decoder: nn.Module, config: Config):
        train = config.train
        trained = [parameter for parameter in decoder.parameters() if parameter.requires_grad]
        settings = _settings(config, sum(parameter.numel() for parameter in trained))
        with _experts_shown(decoder):
            groups = split_params_into_different_moe_groups_for_optimizer({"params": trained, "name": "decoder"})
            optimizer = OPTIMIZERS[train.optimizer](groups, lr=train.lr, weight_decay=train.weight_decay)
            self.deepspeed, *_ = deepspeed.initialize(
                model=decoder, optimizer=optimizer, config=settings, dist_init_required=False
            )
        # At stage 0 in fp32 the engine takes each rank's own experts for everyone's, so its norm depends on ep_size.
        clip = functools.partial(_clip_gradients, self.deepspeed, settings["gradient_clipping"])
        self.deepspeed.clip_fp32_gradients = clip
        self.module, self.accumulation = decoder, settings["gradient_accumulation_steps"]

    def train(self) -> None:
        self.deepspeed.train()

    def __call__(self, levels: list[Tensor], *more: Any) -> Output:
        return self.deepspeed(levels, *more)

    def backward(self, loss: Tensor) -> None:
        self.deepspeed.backward(loss)

    def step(self) -> None:
        self.deepspeed.step()

    @property
    def grad_norm(self) -> float:
        return float(self.deepspeed.get_global_grad_norm() or 0.0)

    def set_learning_rate(self, lr: float) -> None:
        for group in self.deepspeed.optimizer.param_groups:
            group["lr"] = lr

    def optimizer_state(self) -> OptimizerState:
        return OptimizerState(self.deepspeed)


def _settings(config: Config, trained: int) -> dict[str, Any]:
    """DeepSpeed's own configuration, of a model with so many trained parameters on this rank."""
    train = config.train
    return {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // (train.micro_batch_size * dist.get_world_size()),
        "gradient_clipping": train.clip_norm or UNCLIPPED,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "overlap_comm": torch.cuda.is_available(),
            # DeepSpeed allocates it whole: its default, 5e8 numbers, would take gigabytes whatever the model's size.
            "reduce_bucket_size": min(REDUCTION_BUCKET, trained),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }


def _group_name(ep_size: int) -> str:
    return f"ep_size_{ep_size}"


class _Marker(MoE):
    """What the engine looks for in a model to learn that it has experts, and nothing else of a layer."""

    def __init__(self, num_experts: int):
        nn.Module.__init__(self)
        self.num_experts = num_experts  # for DeepSpeed's own checkpoints, which we do not write

    def set_deepspeed_parallelism(self, *_) -> None:
        """There is nothing to place."""


@contextlib.contextmanager
def _experts_shown(model: nn.Module) -> Iterator[None]:
    """Puts the experts' flag in DeepSpeed's words, for good, and lets an engine that is created meanwhile see it."""
    experts = [parameter for parameter in model.parameters() if is_expert_parameter(parameter)]
    for parameter in experts:
        parameter.allreduce, parameter.group_name = False, _group_name(parameter.expert_group)
    if not experts:
        yield
        return
    model.add_module("deepspeed_marker", _Marker(experts[0].expert_group))
    try:
        yield
    finally:
        del model.deepspeed_marker


@torch.no_grad()
def _clip_gradients(engine: DeepSpeedEngine, max_norm: float) -> None:
    """Clips to the norm of the whole model: replicated parameters once, and the experts of every rank of the group."""
    squares = torch.zeros(2, dtype=torch.float64, device=engine.device)
    parameters = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    for parameter in parameters:
        squares[int(is_expert_parameter(parameter))] += parameter.grad.double().square().sum()
    for ep_size in {parameter.expert_group for parameter in parameters if is_expert_parameter(parameter)}:
        dist.all_reduce(squares[1:], group=find_groups(ep_size).exchange)
    norm = squares.sum().sqrt().item()
    engine._global_grad_norm = norm
    if norm > max_norm:
        for parameter in parameters:
            parameter.grad.mul_(max_norm / (norm + 1e-6))


class OptimizerState:
    """A parameter's weight and moments, whatever the ZeRO stage keeps where: see `checkpoints.engine`."""

    def __init__(self, engine: DeepSpeedEngine):
        self.sharded = engine.optimizer if hasattr(engine.optimizer, "_lazy_init_hp_params_optimizer_state") else None
        self.base: torch.optim.Optimizer = self.sharded.optimizer if self.sharded else engine.optimizer
        self.copies = self.sharded is not None  # what was gathered
        self._materialise()

    def _materialise(self) -> None:
        """Gives every parameter its moments before the first step, so that there is something to read or to set."""
        for group in self.base.param_groups:
            for flat in group["params"]:
                if flat.requires_grad and not self.base.state[flat]:
                    self.base.state[flat] = {
                        "step": torch.tensor(0.0),
                        **{key: torch.zeros_like(flat) for key in MOMENTS},
                    }
        if self.sharded:
            # The optimiser links moments to parameters after its first step, before the groups that come later
            # have any; link again.
            self.sharded._hp_optimizer_states_linked = False
            self.sharded._lazy_init_hp_params_optimizer_state()

    @property
    def step(self) -> float:
        return float(next(iter(self.base.state.values()))["step"])

    @step.setter
    def step(self, value: float) -> None:
        for state in self.base.state.values():
            state["step"].fill_(value)

    def get(self, parameter: nn.Parameter) -> dict[str, Tensor]:
        if self.sharded:
            values = {key: safe_get_full_optimizer_state(parameter, key) for key in MOMENTS}
            return {"weight": safe_get_full_fp32_param(parameter), **values}
        return {"weight": parameter.detach(), **{key: self.base.state[parameter][key] for key in MOMENTS}}

    def set(self, parameter: nn.Parameter, values: dict[str, Tensor]) -> None:
        values = {key: value.to(parameter.device, torch.float32) for key, value in values.items()}
        parameter.data.copy_(values["weight"])
        if self.sharded:
            safe_set_full_fp32_param(parameter, values["weight"])
            for key in MOMENTS:
                safe_set_full_optimizer_state(parameter, values[key], key)
        else:
            for key in MOMENTS:
                self.base.state[parameter][key].copy_(values[key])
