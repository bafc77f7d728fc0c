"""The learning rate of each step."""

from __future__ import annotations

from fgmoe_dist.config import Train


def learning_rate(train: Train, step: int) -> float:
    """Linear warm-up, then `lr * (1 - step / steps)^poly_power`; `step` counts from 0."""
    warmup = min(1.0, (step + 1) / train.warmup_steps) if train.warmup_steps else 1.0
    return train.lr * warmup * (1 - step / max(1, train.steps)) ** train.poly_power
