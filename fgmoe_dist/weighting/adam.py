"""Adam (Kingma and Ba, arXiv 1412.6980) on a few plain numbers, for methods that learn their own.

On the processor and in float64, and of what the whole global batch says: so the numbers are the same on every rank
without being exchanged, no engine splits them, and the schedule of the model's learning rate leaves them alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

BETA_1, BETA_2, EPSILON = 0.9, 0.999, 1e-8  # the paper's


class Adam:
    """Changes `values` in place; `weight_decay` is added to the gradient, as torch's Adam has it."""

    def __init__(self, values: Sequence[float], lr: float, weight_decay: float = 0.0):
        self.values, self.lr, self.weight_decay, self.steps = list(values), lr, weight_decay, 0
        self.first, self.second = [0.0] * len(self.values), [0.0] * len(self.values)

    def step(self, gradients: Sequence[float]) -> None:
        self.steps += 1
        unbiased = math.sqrt(1 - BETA_2**self.steps)
        rate = self.lr * unbiased / (1 - BETA_1**self.steps)
        for i, gradient in enumerate(gradients):
            gradient += self.weight_decay * self.values[i]
            self.first[i] += (1 - BETA_1) * (gradient - self.first[i])
            self.second[i] += (1 - BETA_2) * (gradient**2 - self.second[i])
            self.values[i] -= rate * self.first[i] / (math.sqrt(self.second[i]) + EPSILON * unbiased)

    def state_dict(self) -> dict[str, Any]:
        return {
            "values": list(self.values),
            "first": list(self.first),
            "second": list(self.second),
            "steps": self.steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.values, self.first, self.second = (list(state[name]) for name in ("values", "first", "second"))
        self.steps = state["steps"]
