"""DeepSpeed's own layer, as oracle and as the peer in benchmarks."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from fgmoe_dist.experts.backends.stock import FineExpert, StockExperts
from fgmoe_dist.ranks import TIMEOUT, quieten_deepspeed


class DeepSpeedExperts(StockExperts):
    """`deepspeed.moe.layer.MoE`, dropless."""

    gate, experts = "deepspeed_moe.gate.wg", "deepspeed_moe.experts.deepspeed_experts"

    def _create_layer(self, task: int) -> nn.Module:
        quieten_deepspeed()
        from deepspeed.moe.layer import MoE  # here, so that one may ask this class about checkpoints without DeepSpeed

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
        for own, (_, expert) in zip(layer.get_submodule(self.experts), self.local_experts(task)):
            own.load_state_dict(self._fine_expert(task, expert).state_dict())
        return layer

    def run_layer(self, layer: nn.Module, x_NC: Tensor) -> Tensor:
        if layer.deepspeed_moe.ep_group is None:  # its own engine would have set it
            join_process_group()
            layer.deepspeed_moe._set_ep_group(self.group)
        return layer(x_NC)[0]


def join_process_group() -> None:
    """Lets DeepSpeed, its layer here or its engine, communicate over the process group that torch has. Repeatable."""
    quieten_deepspeed()
    import deepspeed.ops

    # Its shared-memory all-reduce for CPUs wants a C++ compiler at the first start, and spins for ever on the flag
    # of a rank that died; gloo needs neither and reports the death.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist.get_backend(), timeout=TIMEOUT, verbose=False)
