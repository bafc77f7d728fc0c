"""Kinds of experts: what `experts.kind` can name. A new one is a file here and a line in `KINDS` (see base.py).

Every kernel `reference` computes it; a faster one is a line in `kernels.KERNELS`.
"""

from __future__ import annotations

from fgmoe_dist.experts.kinds.base import Kind
from fgmoe_dist.experts.kinds.conv_lora import ConvLoRA
from fgmoe_dist.experts.kinds.ffn import FFN
from fgmoe_dist.experts.kinds.lora import LoRA
from fgmoe_dist.experts.kinds.rank_one import RankOne

KINDS: dict[str, Kind] = {"ffn": FFN(), "lora": LoRA(), "conv_lora": ConvLoRA(), "rank_one": RankOne()}
