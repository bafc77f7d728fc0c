"""fairscale's own layer, as the peer in benchmarks.

Legend: N tokens, C channels, E routed experts, S sequences.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.experts.backends.stock import StockExperts
from fgmoe_dist.experts.settings import Experts


class FairscaleExperts(StockExperts):
    """`fairscale.nn.moe.MOELayer` with its top-2 gate.

    What its users know and its peers must: it draws the second expert at random, and drops tokens beyond 2 N / E
    an expert. Outside training the draw is seeded here, so that evaluation repeats.
    """

    gate, experts = "gate.wg", "experts"

    @classmethod
    def conflicts(cls, config: Experts, precision: str) -> list[str]:
        found = super().conflicts(config, precision)
        if config.top_k != 2 or not config.renormalise:
            found.append(
                "experts.backend=fairscale has a renormalised top-2 gate only; set experts.top_k=2"
                " experts.renormalise=true"
            )
        if precision != "fp32":
            found.append("experts.backend=fairscale computes in fp32 only; set train.precision=fp32")
        return found

    def _create_layer(self, task: int) -> nn.Module:
        from fairscale.nn.moe import MOELayer, Top2Gate

        experts = nn.ModuleList(self._fine_expert(*place) for place in self.local_experts(task))
        gate = Top2Gate(self.channels, self.num_experts)
        gate.register_forward_hook(_note_kept)
        return MOELayer(gate, experts, group=self.group)  # it takes a group even for whole copies

    def _dropped(self, tokens: int) -> Tensor:
        return torch.stack([2 * tokens - layer.gate.kept_N[:tokens].sum() for layer in self.layers])

    def run_layer(self, layer: nn.Module, x_NC: Tensor) -> Tensor:
        tokens = len(x_NC)
        x_NC = F.pad(x_NC, (0, 0, 0, -tokens % self.num_experts))  # it takes multiples of E only,
        x_SNC = x_NC.unflatten(0, (self.num_local_experts, -1))  # and as many sequences S as it has experts
        if self.training:
            return layer(x_SNC).flatten(0, 1)[:tokens]
        with torch.random.fork_rng(devices=[x_NC.device] if x_NC.is_cuda else []):
            torch.manual_seed(self.seed)
            return layer(x_SNC).flatten(0, 1)[:tokens]


def _note_kept(gate: nn.Module, _, output: tuple[Tensor, Tensor, Tensor]) -> None:
    """Keeps how many of a token's two slots found room; the last output is `dispatch_mask[token, expert, place]`."""
    gate.kept_N = output[2].sum((1, 2))
