"""MLoRE, "Multi-Task Dense Prediction via Mixture of Low-Rank Experts" (CVPR 2024, arXiv 2403.17749).

At each of four taps a 1x1 convolution that all tasks share, then two modules (`parts/mlore_module.py` has the
equations), the first of which gives every task its feature. Per task then

    f = sum_l softmax(mask(f_1, f_2, f_3, f_4))_l f_l        mask: 1x1 convolution 4C -> C, norm, GELU, 3x3 -> 4
    prediction = 1x1(GELU(norm(3x3(f, enlarged 4 times))))   resized to the input

and the gates of all tasks and images of a module, pooled, are pushed to be even (`balance_weight`).

Written from the paper's equations and published settings, not from its code, which may not be copied. What differs:
  - The encoder is frozen; the paper trains it whole, with the same learning rate. Every tap passes the encoder's final
    norm, the paper's last one alone. So its numbers are not to be expected of these configurations.
  - Batch norm is taken over all ranks' images of a micro-batch, on CPUs too. N ranks compute what one rank with
    N times the micro-batch does; accumulation instead of ranks does not, since each part has statistics of its own.
  - The balance loss pools the images of all ranks likewise; the paper's each process's own.
  - The two modules each end with norm, GELU, 1x1 convolution, and the task's own path is scaled by its router, as the
    published results were obtained; the paper has the former once, between the modules, and not the latter.
  - Heads for training alone, which no prediction uses, are left out.

Legend: B images, C channels, T tasks, X = T C, L taps, h x w grid of the taps, K outputs of a task, E experts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.base import Auxiliary, Decoder, DecoderSettings, Levels, Output, Surroundings
from fgmoe_dist.decoders.parts.batch_norm import BatchNorm
from fgmoe_dist.decoders.parts.heads import to_input
from fgmoe_dist.decoders.parts.mlore_module import LowRankBank, MLoREModule, Router
from fgmoe_dist.drawing.load_map import load_map
from fgmoe_dist.errors import UserError
from fgmoe_dist.experts.balance import BalanceTerms, LoadFigures, load_figures, pooled, sum_over_ranks
from fgmoe_dist.tasks import Task

ENLARGED = 4  # how much finer a head's grid is than the taps'


class MLoRESettings(DecoderSettings):
    """The defaults are those of PASCAL-Context with ViT-L; see configs/decoders/ for others."""

    kind: Literal["mlore"] = Field("mlore", description="which decoder: mlore, or another that is registered")
    channels: int = Field(452, ge=4, le=2**20, multiple_of=4, description="C, the width of every task's feature")
    ranks: list[int] = Field(list(range(16, 129, 8)), min_length=2, description="rank of each low-rank expert")
    own_rank: int = Field(72, ge=1, le=2**20, description="rank of each task's own low-rank convolution")
    top_k: int = Field(9, ge=1, description="experts that an image and task keep")
    pre_softmax: bool = Field(
        False, description="experts are selected before the softmax, so that gates sum to 1, and not after it"
    )
    noise: float = Field(1.0, ge=0, description="factor on the noise whose scale the router learns; 0: none")
    balance_weight: float = Field(3e-4, ge=0, description="weight of the pooled balance loss, summed over modules")

    def conflicts(self, around: Surroundings) -> list[str]:
        found = []
        if min(self.ranks) < 1 or max(self.ranks) > 2**20:
            found.append(f"decoder.ranks={self.ranks}: a rank is 1 or more, and {2**20} at most")
        if self.top_k > len(self.ranks):
            found.append(
                f"decoder.top_k={self.top_k} is more than the {len(self.ranks)} experts of decoder.ranks;"
                " lower one or add to the other"
            )
        if around.recompute:
            found.append(
                "train.activation_checkpointing=true: decoder.kind=mlore recomputes nothing, as its batch norms would"
                " count a batch twice; set it to false"
            )
        return found


class MLoRE(Decoder):
    Settings = MLoRESettings

    def __init__(self, settings: MLoRESettings, levels: Levels, tasks: Sequence[Task], around: Surroundings):
        super().__init__(settings, levels, tasks, around)
        self.grid_hw = _grid(levels, self.size_hw)
        channels, count = settings.channels, len(tasks)
        self.fuse = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in levels.channels)
        self.taps = nn.ModuleList(
            nn.ModuleList(_module(settings, count, inputs, math.prod(self.grid_hw)) for inputs in (1, count))
            for _ in levels.channels
        )
        self.join = Join(count, channels, len(levels.channels))
        self.head = nn.Conv2d(count * channels, count * channels, 3, padding=1, groups=count)
        self.head_norm = BatchNorm(count * channels)
        self.predict = nn.ModuleList(nn.Conv2d(channels, task.channels, 1) for task in tasks)

    def forward(self, levels: list[Tensor]) -> Output:
        """`terms` of the output: the gates of each module, `gate_BTE`."""
        features, gates = [], []
        for fuse, modules, level in zip(self.fuse, self.taps, levels):
            self._check_grid(level)
            x_BXhw = fuse(level.to(fuse.weight.dtype))  # the encoder's precision is its own
            for module in modules:
                x_BXhw, gate_BTE = module(x_BXhw)
                gates.append(gate_BTE)
            features.append(x_BXhw)
        fine_hw = [ENLARGED * side for side in self.grid_hw]
        fine_BXhw = F.interpolate(self.join(features), fine_hw, mode="bilinear", align_corners=False)
        fine_BXhw = F.gelu(self.head_norm(self.head(fine_BXhw)))
        own = fine_BXhw.chunk(len(self.tasks), dim=1)
        answers = (to_input(predict(x_BChw), self.size_hw) for predict, x_BChw in zip(self.predict, own))
        return Output({task.name: answer for task, answer in zip(self.tasks, answers)}, gates)

    def _check_grid(self, level_BChw: Tensor) -> None:
        given_hw = tuple(level_BChw.shape[2:])
        if given_hw != self.grid_hw:
            raise UserError(
                f"decoder.kind=mlore: its routers weigh the {self.grid_hw} cells of data.image_size="
                f"{list(self.size_hw)}, these features have {given_hw}; take images of that size, or train anew"
            )

    def auxiliary(self, output: Output) -> Auxiliary:
        """The pooled balance loss, and what each expert got: images that kept it (`load`), and the sum of its gates."""
        modules = sum_over_ranks([_balance_terms(gate_BTE) for gate_BTE in output.terms], groups=1)
        loss = torch.stack([pooled(sums) for sums in modules]).sum()
        counts = {
            "load": torch.stack([sums.load_TE for sums in modules]),
            "gates": torch.stack([sums.score_TE for sums in modules]),
        }
        return Auxiliary({"mlore/balance_loss": (self.settings.balance_weight, loss)}, counts)

    def metrics(self, counts: Mapping[str, Tensor]) -> dict[str, float]:
        """Of each module: how even its experts' gates are, over each task's images, and over all of them."""
        gates_LTE, found = counts["gates"].double().cpu().numpy(), {}
        for index, (gates_TE, figures) in enumerate(zip(gates_LTE, _figures(counts))):
            found[f"mlore/gate_entropy/module{index}"] = load_figures(gates_TE.sum(0), 0).entropy
            for task, gates_E, (_, busiest, dead, _) in zip(self.tasks, gates_TE, figures):
                found[f"mlore/gate_entropy/module{index}/{task.name}"] = load_figures(gates_E, 0).entropy
                found[f"mlore/busiest/module{index}/{task.name}"] = busiest
                found[f"mlore/dead/module{index}/{task.name}"] = float(dead)
        return found

    def pictures(self, counts: Mapping[str, Tensor], caption: str) -> dict[str, np.ndarray]:
        names = [task.name for task in self.tasks]
        return {"expert_load": load_map(counts["load"].cpu().numpy(), _figures(counts), names, caption=caption)}

    def describe(self) -> list[tuple[str, str]]:
        ranks, modules = self.settings.ranks, sum(len(modules) for modules in self.taps)
        told = (
            f"{len(ranks)} low-rank convolutions of rank {min(ranks)} to {max(ranks)} for all tasks of each of"
            f" {modules} modules, on every rank; an image and task keep {self.settings.top_k}"
        )
        return [("experts", told)]

    def own_parameters(self) -> Iterator[nn.Parameter]:
        shared = {id(parameter) for part in self._shared() for parameter in part.parameters()}
        return (parameter for parameter in self.parameters() if id(parameter) not in shared)

    def _shared(self) -> Iterator[nn.Module]:
        yield self.fuse
        for module in self.modules():
            if isinstance(module, MLoREModule):
                yield from (module.bank, module.generic)

    def idle_parameters(self) -> int:
        """Of the experts that an image and task do not keep, each counted with the experts' mean size."""
        banks = (module for module in self.modules() if isinstance(module, LowRankBank))
        experts, numbers = len(self.settings.ranks), sum(p.numel() for bank in banks for p in bank.parameters())
        return numbers * (experts - self.settings.top_k) // experts


class Join(nn.Module):
    """Each task's features of all taps, `L x x_BXhw`, to their weighted sum: a weight per tap and pixel."""

    def __init__(self, tasks: int, channels: int, taps: int):
        super().__init__()
        self.tasks, wide = tasks, tasks * channels
        self.reduce, self.norm = nn.Conv2d(taps * wide, wide, 1, groups=tasks), BatchNorm(wide)
        self.mask = nn.Conv2d(wide, tasks * taps, 3, padding=1, groups=tasks)

    def forward(self, features: list[Tensor]) -> Tensor:
        x_BTLChw = torch.stack([x.unflatten(1, (self.tasks, -1)) for x in features], dim=2)
        mask_BXhw = self.mask(F.gelu(self.norm(self.reduce(x_BTLChw.flatten(1, 3)))))
        weight_BTLhw = mask_BXhw.unflatten(1, (self.tasks, -1)).softmax(2)
        return (weight_BTLhw[:, :, :, None] * x_BTLChw).sum(2).flatten(1, 2)


def _module(settings: MLoRESettings, tasks: int, inputs: int, cells: int) -> MLoREModule:
    experts, channels = len(settings.ranks), settings.channels
    router = Router(tasks, channels, cells, experts, settings.top_k, settings.pre_softmax, settings.noise)
    return MLoREModule(inputs, channels, settings.own_rank, LowRankBank(channels, settings.ranks), router, tasks)


def _grid(levels: Levels, size_hw: tuple[int, int]) -> tuple[int, int]:
    if len(set(levels.strides)) > 1:
        raise UserError(
            f"decoder.kind=mlore joins taps on one grid, those of encoder.name have strides {list(levels.strides)};"
            " choose a plain ViT"
        )
    return tuple(side // levels.strides[0] for side in size_hw)


def _balance_terms(gate_BTE: Tensor) -> BalanceTerms:
    images, tasks, _ = gate_BTE.shape
    nothing = gate_BTE.new_zeros(())
    load_TE = (gate_BTE > 0).sum(0).to(gate_BTE)
    return BalanceTerms(load_TE, nothing.expand(tasks), nothing + images, gate_BTE.sum(0), nothing)


def _figures(counts: Mapping[str, Tensor]) -> list[list[LoadFigures]]:
    return [[load_figures(load_E, 0) for load_E in load_TE] for load_TE in counts["load"].double().cpu().numpy()]
