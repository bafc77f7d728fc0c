"""What a kind of expert says of itself: one file for each kind, and one line in `KINDS`.

A fine expert is a map into hidden units and a linear map out of these, `E(x) = hidden(x) w_out + b_out`. So experts
side by side are one wide expert, and a gate scales its expert's share of the hidden units.

Legend, also of the weights' names: E experts, C channels, and one letter for the hidden units (`Kind.unit`).
"""

from __future__ import annotations

import math
import zlib
from typing import NamedTuple, Optional, Sequence

import torch
from torch import Tensor


class Kind:
    """A kind of expert. It has no state: the weights are given to it, of one expert or of several side by side."""

    Weights: type[NamedTuple]  # stacked weights by name, which ends in the shape; first what maps into hidden units
    inner: int  # how many of them map into hidden units, the first as `[E, C, hidden]`; then weight, perhaps bias
    unit: str  # the letter of the hidden units in the names' shapes
    kept_units: int  # how often plain autograd keeps each hidden unit of a row for the backward pass
    pairs: bool = False  # a routed expert is a pair of vectors, which it shares with other pairs
    alone: bool = True  # an expert needs no more than a row and weights that no other expert has
    grid_hw: Optional[tuple[int, int]] = None  # of the images whose rows are neighbours; None: rows know no neighbours

    @property
    def weights(self) -> tuple[str, ...]:
        """Their names, which are those of checkpoints."""
        return self.Weights._fields

    def draw(self, channels: int, hidden: int, generator: torch.Generator) -> dict[str, Tensor]:
        """The first weights of one expert in fp32: names and layout of `Weights`, without E."""
        raise NotImplementedError

    def hidden(self, x: Tensor, *inner: Tensor) -> Tensor:
        """The hidden units of rows `x`."""
        raise NotImplementedError

    def on(self, grid_hw: Sequence[int]) -> Kind:
        """This kind, where the rows are those of images of so many rows and columns."""
        return self

    def initial(self, channels: int, hidden: int, *identity: object) -> dict[str, Tensor]:
        """What `draw` gives from a seed that `identity` alone decides."""
        return self.draw(channels, hidden, torch.Generator().manual_seed(zlib.crc32(repr(identity).encode())))

    def forward(self, x: Tensor, *weights: Tensor) -> Tensor:
        """The truth: `x [..., C]` through one expert, or `x [E, rows, C]` through as many as the weights have."""
        return affine(self.hidden(x, *weights[: self.inner]), *weights[self.inner :])

    def shapes(self, channels: int, hidden: int) -> dict[str, tuple[int, ...]]:
        """Of one expert's weights."""
        sizes = {"C": channels, self.unit: hidden}
        return {name: tuple(sizes[axis] for axis in axes_of(name)) for name in self.weights}

    def flops(self, channels: int, hidden: int) -> int:
        """Of one row's forward pass: what its products take."""
        return sum(2 * math.prod(shape) for shape in self.shapes(channels, hidden).values() if len(shape) > 1)


def axes_of(weight: str) -> str:
    """The axes of one expert's weight: `CH` of `w_in_ECH`."""
    return weight.rpartition("_")[2].removeprefix("E")


def affine(x: Tensor, weight: Tensor, bias: Optional[Tensor] = None) -> Tensor:
    """`x weight + bias`, of one expert or, where `weight` has three axes, of several side by side."""
    if weight.dim() == 3:
        return torch.bmm(x, weight) if bias is None else torch.baddbmm(bias[:, None], x, weight)
    if bias is None:
        return x @ weight
    # Not the same in the last bits: rows in a matrix take one operation, those that stock layers pass take two.
    return torch.addmm(bias, x, weight) if x.dim() == 2 else x @ weight + bias
