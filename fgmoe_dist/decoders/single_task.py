"""Single-task models, all of them in one run: the baseline of Delta_m.

T networks of aggregator, mixer and head on the levels of the one frozen encoder, with nothing in common. What one
predicts is what `multi_task` with this task alone predicts, from the first weights on, and under Adam from step to step
as well, as long as no gradient is clipped: `train.clip_norm` bounds the norm of all T gradients together.

Parameters are counted together, all T models; `active` are those of one model, the mean over tasks.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field
from torch import nn

from fgmoe_dist.decoders.parts.columns import Columns, ColumnSettings


class SingleTaskSettings(ColumnSettings):
    kind: Literal["single_task"] = Field("single_task", description="a model of its own for each task, in one run")


class SingleTask(Columns):
    Settings = SingleTaskSettings

    def own_parameters(self) -> Iterator[nn.Parameter]:
        """All."""
        return self.parameters()
