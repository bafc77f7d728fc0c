"""The module of MLoRE (CVPR 2024, arXiv 2403.17749), one page: a router per task over one bank of low-rank experts.

For task t, whose feature of an image is x:

    z = conv1x1_t(x)
    g, s = router_t(z)                             15 gates and a scalar, one of each for the whole image
    y = norm_t(sum_i g_i E_i(z))                   low-rank experts, one bank for all tasks
      + s L_t(z)                                   a low-rank convolution of the task's own
      + G(stopgrad(z))                             the generic path, which all tasks share
    answer = conv1x1_t(GELU(norm'_t(y)))

E_i = M_i (W_i z): 3x3 convolution to r_i channels, 1x1 back, nothing between; L_t alike, G a full 3x3 convolution. The
stop-gradient is meant: the generic path learns from every task and changes none's z. Both norms are batch norms.

Training computes the experts side by side as one wide 3x3 and one wide 1x1 convolution with the gates between them. In
evaluation all of y is linear in z, and one 3x3 convolution per image and task; zero padding is on the 3x3 alone, so
that this is exact at the border too.

Legend: B images, T tasks, C channels, X = T C, h x w grid of S cells, E experts, R the sum of their ranks, r the rank
of a task's own, Q = C // 4, K = 9 C inputs of a 3x3 window, N = B T; I and O whatever goes in and comes out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fgmoe_dist.decoders.parts.batch_norm import BatchNorm


class LowRankBank(nn.Module):
    """Low-rank convolutional experts side by side: an expert is some rows of `w_in` and those columns of `w_out`."""

    def __init__(self, channels: int, ranks: Sequence[int]):
        super().__init__()
        self.ranks = list(ranks)
        self.w_in_RC33 = nn.Parameter(torch.empty(sum(ranks), channels, 3, 3))
        self.b_in_R = nn.Parameter(torch.zeros(sum(ranks)))
        self.w_out_CR = nn.Parameter(torch.empty(channels, sum(ranks)))
        self.b_out_EC = nn.Parameter(torch.zeros(len(ranks), channels))
        nn.init.kaiming_uniform_(self.w_in_RC33, a=math.sqrt(5))
        for of_one in self.w_out_CR.data.split(self.ranks, dim=1):
            nn.init.kaiming_uniform_(of_one, a=math.sqrt(5))
        expert_R = torch.tensor([expert for expert, rank in enumerate(ranks) for _ in range(rank)])
        self.register_buffer("expert_R", expert_R, persistent=False)

    def forward(self, z_NChw: Tensor, gate_NE: Tensor) -> Tensor:
        """sum_i g_i E_i(z). The gates multiply weights, and not the many more numbers of the maps between."""
        weight_NCR = self.w_out_CR * gate_NE[:, None, self.expert_R]
        low_NRhw = F.conv2d(z_NChw, self.w_in_RC33, self.b_in_R, padding=1)
        y_NCS = torch.baddbmm((gate_NE @ self.b_out_EC)[:, :, None], weight_NCR, low_NRhw.flatten(2))
        return y_NCS.unflatten(2, z_NChw.shape[2:])

    def merged(self, gate_NE: Tensor) -> tuple[Tensor, Tensor]:
        """The same sum as one 3x3 convolution per row of gates: `kernel_NCK` and `bias_NC`.

        Each expert's own is made anew for all rows together: kept, they would take five times the bank's memory.
        """
        low = zip(self.w_out_CR.split(self.ranks, 1), self.w_in_RC33.flatten(1).split(self.ranks))
        kernel_ECK = torch.stack([out_Cr @ in_rK for out_Cr, in_rK in low])
        kernel_NCK = (gate_NE @ kernel_ECK.flatten(1)).unflatten(1, kernel_ECK.shape[1:])
        return kernel_NCK, gate_NE @ self.b_out_EC + (self.w_out_CR * gate_NE[:, None, self.expert_R]) @ self.b_in_R


class Router(nn.Module):
    """Each task's gates and scalar for an image, from two looks at z: cell by cell, and channel by channel.

    The second weighs all cells of the grid, which fixes its size. The decision is computed in fp32 at least.
    """

    def __init__(self, tasks: int, channels: int, cells: int, experts: int, top_k: int, early: bool, noise: float):
        super().__init__()
        quarter = channels // 4
        self.experts, self.top_k, self.early, self.noise = experts, top_k, early, noise
        self.squeeze, self.squeeze_norm = TaskLinear(tasks, channels, quarter), TaskLayerNorm(tasks, quarter)
        self.average = TaskLinear(tasks, quarter, quarter)
        self.weigh, self.weigh_norm = TaskLinear(tasks, cells, 1), TaskLayerNorm(tasks, channels)
        self.reduce = TaskLinear(tasks, channels, quarter)
        self.decide = TaskLinear(tasks, 2 * quarter, 2 * experts + 1)

    def forward(self, z_BTCS: Tensor) -> tuple[Tensor, Tensor]:
        """`gate_BTE` and `mix_BT`."""
        seen_BTSQ = F.gelu(self.squeeze_norm(self.squeeze(z_BTCS.transpose(2, 3))))
        by_cell_BT1Q = self.average(seen_BTSQ.mean(2, keepdim=True))  # the mean of a linear map is that of the mean
        weighed_BT1C = F.gelu(self.weigh_norm(self.weigh(z_BTCS).transpose(2, 3)))
        both_BT1O = torch.cat([by_cell_BT1Q, self.reduce(weighed_BT1C)], -1)
        decided_BTO = self.decide(both_BT1O.to(torch.promote_types(z_BTCS.dtype, torch.float32))).squeeze(2)
        logits_BTE, scale_BTE, mix_BT1 = decided_BTO.split([self.experts, self.experts, 1], -1)
        if self.training and self.noise:
            logits_BTE = logits_BTE + self.noise * torch.randn_like(logits_BTE) * scale_BTE
        return self.gates(logits_BTE), mix_BT1[..., 0]

    def gates(self, logits_BTE: Tensor) -> Tensor:
        """Zero but for the greatest `top_k`. Selected early, before the softmax, their sum is 1; else it is below."""
        chosen = logits_BTE.topk(self.top_k, -1).indices
        kept_BTE = torch.zeros_like(logits_BTE).scatter(-1, chosen, 1.0)
        if self.early:
            return logits_BTE.masked_fill(kept_BTE == 0, -1e10).softmax(-1)
        return logits_BTE.softmax(-1) * kept_BTE


class MLoREModule(nn.Module):
    """`x_BXhw`, or `x_BChw` where `inputs` is 1: a feature that all tasks share, to `y_BXhw` and `gate_BTE`."""

    def __init__(self, inputs: int, channels: int, own_rank: int, bank: LowRankBank, router: Router, tasks: int):
        super().__init__()
        self.tasks, wide = tasks, tasks * channels
        self.enter = nn.Conv2d(inputs * channels, wide, 1, groups=inputs)
        self.router, self.bank = router, bank
        self.down = nn.Conv2d(wide, tasks * own_rank, 3, padding=1, groups=tasks)
        self.up = nn.Conv2d(tasks * own_rank, wide, 1, groups=tasks)
        self.generic = nn.Conv2d(channels, channels, 3, padding=1)
        self.expert_norm, self.norm = BatchNorm(wide), BatchNorm(wide)
        self.leave = nn.Conv2d(wide, wide, 1, groups=tasks)

    def forward(self, x_BXhw: Tensor) -> tuple[Tensor, Tensor]:
        z_BXhw = self.enter(x_BXhw)
        gate_BTE, mix_BT = self.router(z_BXhw.unflatten(1, (self.tasks, -1)).flatten(3))
        combine = self.paths if self.training else self.merged
        y_BXhw = combine(z_BXhw, gate_BTE.to(z_BXhw.dtype), mix_BT.to(z_BXhw.dtype))
        return self.leave(F.gelu(self.norm(y_BXhw))), gate_BTE

    def paths(self, z_BXhw: Tensor, gate_BTE: Tensor, mix_BT: Tensor) -> Tensor:
        """y, path by path."""
        z_NChw = z_BXhw.unflatten(1, (self.tasks, -1)).flatten(0, 1)
        experts_BXhw = self.bank(z_NChw, gate_BTE.flatten(0, 1)).view_as(z_BXhw)
        own_BTChw = self.up(self.down(z_BXhw)).unflatten(1, (self.tasks, -1)) * mix_BT[..., None, None, None]
        generic_BXhw = self.generic(z_NChw.detach()).view_as(z_BXhw)
        return self.expert_norm(experts_BXhw) + own_BTChw.flatten(1, 2) + generic_BXhw

    def merged(self, z_BXhw: Tensor, gate_BTE: Tensor, mix_BT: Tensor) -> Tensor:
        """y as one 3x3 convolution per image and task, in evaluation, when the expert norm is a map of each channel.

        Its gradient is not that of training: merged, no path can be kept from z.
        """
        z_NChw = z_BXhw.unflatten(1, (self.tasks, -1)).flatten(0, 1)
        kernel_NCK, bias_NC = self.bank.merged(gate_BTE.flatten(0, 1))
        kernel_BTCK, bias_BTC = (value.unflatten(0, mix_BT.shape) for value in (kernel_NCK, bias_NC))
        scale_TC, shift_TC = (self._by_task(value_X.to(z_BXhw)) for value_X in self.expert_norm.affine())
        own_kernel_TCK, own_bias_TC = self._own_merged()
        kernel_BTCK = torch.addcmul(self.generic.weight.flatten(1), scale_TC[..., None], kernel_BTCK)
        kernel_BTCK = torch.addcmul(kernel_BTCK, mix_BT[..., None, None], own_kernel_TCK)
        bias_BTC = scale_TC * bias_BTC + shift_TC + mix_BT[..., None] * own_bias_TC + self.generic.bias
        window_NKS = F.unfold(z_NChw, 3, padding=1)
        y_NCS = torch.baddbmm(bias_BTC.flatten(0, 1)[..., None], kernel_BTCK.flatten(0, 1), window_NKS)
        return y_NCS.view_as(z_BXhw)

    def _own_merged(self) -> tuple[Tensor, Tensor]:
        """Each task's own low-rank convolution as one: `kernel_TCK`, `bias_TC`."""
        up_TCr, down_TrK = self._by_task(self.up.weight.flatten(1)), self._by_task(self.down.weight.flatten(1))
        bias_TC1 = up_TCr @ self._by_task(self.down.bias)[..., None]
        return up_TCr @ down_TrK, bias_TC1[..., 0] + self._by_task(self.up.bias)

    def _by_task(self, value: Tensor) -> Tensor:
        return value.unflatten(0, (self.tasks, -1))


class TaskLinear(nn.Module):
    """A linear map of each task's own, `x_BT...I` to `y_BT...O`, with the first weights of `nn.Linear`."""

    def __init__(self, tasks: int, inputs: int, outputs: int):
        super().__init__()
        bound = inputs**-0.5
        self.weight_TIO = nn.Parameter(torch.empty(tasks, inputs, outputs).uniform_(-bound, bound))
        self.bias_T1O = nn.Parameter(torch.empty(tasks, 1, outputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight_TIO.to(x.dtype) + self.bias_T1O.to(x.dtype)


class TaskLayerNorm(nn.Module):
    """A layer norm of each task's own over the last dimension of `x_BT.C`."""

    def __init__(self, tasks: int, channels: int):
        super().__init__()
        self.weight_T1C = nn.Parameter(torch.ones(tasks, 1, channels))
        self.bias_T1C = nn.Parameter(torch.zeros(tasks, 1, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:]) * self.weight_T1C + self.bias_T1C
