"""What every section of a configuration is: strict, frozen, each field with its meaning."""

from __future__ import annotations

from typing import Any, Mapping

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """Refuses unknown keys, NaN and infinity. Each field's `description` is its comment in the written YAML."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


def flatten(nested: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """`{"a": {"b": 1}}` -> `{"a.b": 1}`, keys as `--set` takes and MLflow records them. Empty mappings vanish."""
    flat: dict[str, Any] = {}
    for key, value in nested.items():
        flat.update(flatten(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value})
    return flat
