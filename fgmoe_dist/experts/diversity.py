"""How differently a block's routed experts answer the same tokens (MMoEEx, arXiv 2106.10595, section 3).

    mean over tasks, tokens and pairs of experts that a task may choose, of ||E_i(x) - E_j(x)||_2

The tokens are the first of the first rank's, so that the figure is one whatever ranks there are. For the log alone:
nothing is trained by it.

Legend: T tasks, P tokens, C channels, E routed experts of a task, L those of it that live here.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor

from fgmoe_dist.experts.backends.fused import FusedExperts


@torch.no_grad()
def diversity(layer: FusedExperts, x_TPC: Tensor) -> Tensor:
    """The figure of one block, on every rank; a collective."""
    x_TPC = x_TPC.contiguous()
    if dist.is_initialized():
        dist.broadcast(x_TPC, 0)
    tasks, kind = len(x_TPC), layer.kind
    banks = layer.config.banks(tasks)
    mine = [weight.unflatten(0, (banks, -1)) for weight in layer.bank.weights]
    found = []
    for task, x_PC in enumerate(x_TPC):
        weights = [weight[0 if banks == 1 else task] for weight in mine]
        out_LPC = kind.forward(x_PC.expand(len(weights[0]), *x_PC.shape), *weights)
        out_EPC = _gather(out_LPC.float(), layer)
        if layer.routers.closed_TE is not None:
            out_EPC = out_EPC[~layer.routers.closed_TE[task]]
        distance_PX = torch.stack([torch.nn.functional.pdist(out_EC) for out_EC in out_EPC.movedim(1, 0)])
        found.append(distance_PX.mean())
    return torch.stack(found).mean()


def _gather(out_LPC: Tensor, layer: FusedExperts) -> Tensor:
    """`out_EPC`, the experts of all ranks that hold a copy together, in their order."""
    if layer.ep_size == 1:
        return out_LPC
    parts = [torch.empty_like(out_LPC) for _ in range(layer.ep_size)]
    dist.all_gather(parts, out_LPC.contiguous(), group=layer.group)
    return torch.cat(parts)
