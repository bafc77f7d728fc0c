"""The rank-one experts of T-REX (arXiv 2404.08985): N vectors a_i and m vectors b_j make N m experts.

    E_ij(x) = b_j (a_i . x),   y = sum_ij W_ij E_ij(x)

The routed experts are the pairs: N is `experts.count`, m `experts.split`, pair (i, j) expert i m + j, and W the
router's gates, of all pairs (T-REX) or the top k. A pair's rank is 1, so that H has to be m. The vectors a_i live where
their pairs do; the b_j, which pairs of all ranks share, are on every rank. As in LoRA b starts at zero.

What differs from T-REX: its gates are 32 times a softmax, here `experts.gate_scale`; its two learnt factors on the sum
are left out, and so is the part of W that comes from clusters of instructions, of which images have none. Experts that
are not routed have no pairs: they are LoRA's, shared ones of rank 1 and global ones of rank H.
"""

from __future__ import annotations

from fgmoe_dist.experts.kinds.lora import LoRA


class RankOne(LoRA):
    pairs, alone = True, False
