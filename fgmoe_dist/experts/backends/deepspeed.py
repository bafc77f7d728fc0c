"""DeepSpeed's own layer, as oracle and as the peer in benchmarks."""

from __future__ import annotations

from deepspeed.moe.layer import MoE
from torch import Tensor, nn

from fgmoe_dist.experts.backends.stock import FineExpert, StockExperts


class DeepSpeedExperts(StockExperts):
    """`deepspeed.moe.layer.MoE`, dropless."""

    def _create_layer(self, task: int) -> MoE:
        layer = MoE(
            self.channels,
            FineExpert(self.kind, self.channels, self.config.fine_hidden),
            num_experts=self.num_experts,
            ep_size=self.ep_size,
            k=self.config.top_k,
            drop_tokens=False,
            use_rts=False,
            top2_2nd_expert_sampling=False,
        )
        # Its experts are deep copies of one; give each its own weights.
        for own, (_, expert) in zip(self._experts(layer), self.local_experts(task)):
            own.load_state_dict(self._fine_expert(task, expert).state_dict())
        return layer

    @staticmethod
    def _experts(layer: MoE) -> nn.ModuleList:
        return layer.deepspeed_moe.experts.deepspeed_experts

    def _gates(self) -> list[nn.Linear]:
        return [layer.deepspeed_moe.gate.wg for layer in self.layers]

    def _run_layer(self, layer: MoE, x_NC: Tensor) -> Tensor:
        return layer(x_NC)[0]
