"""The model under DeepSpeed's engine: ZeRO stage, accumulation, precision, clipping with one norm whatever ep_size."""

from __future__ import annotations

import functools

import deepspeed
import torch
import torch.distributed as dist
from deepspeed.moe.utils import is_moe_param, split_params_into_different_moe_groups_for_optimizer
from deepspeed.runtime.engine import DeepSpeedEngine
from deepspeed.utils import groups
from torch import nn

from fgmoe_dist.config import REDUCTION_BUCKET, Config, Train

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}

# The engine reports a gradient norm only where it clips; this bound clips nothing.
UNCLIPPED = 1e12


def create_engine(model: nn.Module, config: Config) -> DeepSpeedEngine:
    """`model` with the optimiser that `config` describes, ready for `engine.backward` and `engine.step`."""
    train, world = config.train, dist.get_world_size()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    parameter_groups = split_params_into_different_moe_groups_for_optimizer({"params": trained, "name": "decoder"})
    optimizer = OPTIMIZERS[train.optimizer](parameter_groups, lr=train.lr, weight_decay=train.weight_decay)
    settings = {
        "train_batch_size": train.batch_size,
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": train.batch_size // (train.micro_batch_size * world),
        "gradient_clipping": train.clip_norm or UNCLIPPED,
        "bf16": {"enabled": train.precision == "bf16"},
        "zero_optimization": {
            "stage": config.parallel.zero_stage,
            "overlap_comm": torch.cuda.is_available(),
            # DeepSpeed allocates it whole: its default, 5e8 numbers, would take gigabytes whatever the model's size.
            "reduce_bucket_size": min(REDUCTION_BUCKET, sum(parameter.numel() for parameter in trained)),
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings, dist_init_required=False)
    # At stage 0 in fp32 the engine takes each rank's own experts for everyone's, so its norm depends on ep_size.
    engine.clip_fp32_gradients = functools.partial(_clip_gradients, engine, settings["gradient_clipping"])
    return engine


def set_learning_rate(engine: DeepSpeedEngine, lr: float) -> None:
    for group in engine.optimizer.param_groups:
        group["lr"] = lr


def learning_rate(train: Train, step: int) -> float:
    """Linear warm-up, then `lr * (1 - step / steps)^poly_power`; `step` counts from 0."""
    warmup = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return train.lr * warmup * (1 - step / max(1, train.steps)) ** train.poly_power


@torch.no_grad()
def _clip_gradients(engine: DeepSpeedEngine, max_norm: float) -> None:
    """Clips to the norm of the whole model: replicated parameters once, and the experts of every rank of the group."""
    squares = torch.zeros(2, dtype=torch.float64, device=engine.device)
    parameters = [parameter for parameter in engine.module.parameters() if parameter.grad is not None]
    for parameter in parameters:
        squares[int(is_moe_param(parameter))] += parameter.grad.double().square().sum()
    for name in {parameter.group_name for parameter in parameters if is_moe_param(parameter)}:
        dist.all_reduce(squares[1:], group=groups._get_expert_parallel_group(name))
    norm = squares.sum().sqrt().item()
    engine._global_grad_norm = norm
    if norm > max_norm:
        for parameter in parameters:
            parameter.grad.mul_(max_norm / (norm + 1e-6))
