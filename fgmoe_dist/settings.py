"""What every section of a configuration is: strict, frozen, each field with its meaning."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Refuses unknown keys, NaN and infinity. Each field's `description` is its comment in the written YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
