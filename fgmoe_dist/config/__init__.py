"""Typed configuration: `schema` has every key on one page, `rules` what keys must agree on, `reading` the files."""

from fgmoe_dist.config.reading import build_config, load_config, to_yaml
from fgmoe_dist.config.rules import check_world
from fgmoe_dist.config.schema import REDUCTION_BUCKET, Config, Train

__all__ = [
    "REDUCTION_BUCKET",
    "Config",
    "Train",
    "build_config",
    "check_world",
    "load_config",
    "to_yaml",
]
