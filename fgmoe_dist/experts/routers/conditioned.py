"""One router for all tasks, told which task a token is of: what `experts.condition` can name.

    embedding   logits = [x; e_t] W     a learnt vector of the task beside the token (M3ViT, NeurIPS 2022, where an MLP
                                        makes it of the task's one-hot code; of T codes that is a table)
    film        logits = (x (1 + gamma_t) + beta_t) W     PRISM-VFM (arXiv 2606.03444) scales and shifts what the
                                        router reads, and nothing else

With gamma = beta = 0, as they start, `film` is one plain router. Legend: T tasks, M rows that are scored, C channels,
D numbers of a task's vector, E outputs.
"""

from __future__ import annotations

from typing import Iterator

import torch
from torch import Tensor, nn

EMBEDDING = 64  # D, as in M3ViT


class Conditioned(nn.Module):
    """`logits_TME` of `x_TMC`, in the precision of `x`. W is all tasks'."""

    def __init__(self, tasks: int, channels: int, outputs: int):
        super().__init__()
        self.weight_CE = nn.Parameter(torch.empty(channels, outputs).normal_(std=channels**-0.5))

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """Those of which every task has its own: all but W."""
        return (p for name, p in self.named_parameters() if "_T" in name)


class Embedded(Conditioned):
    def __init__(self, tasks: int, channels: int, outputs: int):
        super().__init__(tasks, channels, outputs)
        self.embedding_TD = nn.Parameter(torch.empty(tasks, EMBEDDING).normal_())
        self.weight_DE = nn.Parameter(torch.empty(EMBEDDING, outputs).normal_(std=EMBEDDING**-0.5))

    def forward(self, x_TMC: Tensor) -> Tensor:
        task_TE = self.embedding_TD.to(x_TMC.dtype) @ self.weight_DE.to(x_TMC.dtype)
        return x_TMC @ self.weight_CE.to(x_TMC.dtype) + task_TE[:, None]


class Modulated(Conditioned):
    def __init__(self, tasks: int, channels: int, outputs: int):
        super().__init__(tasks, channels, outputs)
        self.gamma_TC = nn.Parameter(torch.zeros(tasks, channels))
        self.beta_TC = nn.Parameter(torch.zeros(tasks, channels))

    def forward(self, x_TMC: Tensor) -> Tensor:
        gamma_T1C, beta_T1C = (each.to(x_TMC.dtype)[:, None] for each in (self.gamma_TC, self.beta_TC))
        return (x_TMC * (1 + gamma_T1C) + beta_T1C) @ self.weight_CE.to(x_TMC.dtype)


CONDITIONS: dict[str, type[Conditioned]] = {"embedding": Embedded, "film": Modulated}
