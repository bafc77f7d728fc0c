"""benchmarks/options.py: its variants are configurations, and its figures those of the runs."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from fgmoe_dist.config import load_config
from fgmoe_dist.tracking.compare import RunRecord

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("options", ROOT / "benchmarks/options.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_variant_is_a_configuration_and_differs_from_the_defaults(script):
    found = {
        name: load_config(ROOT / "configs/demo.yaml", [*script.SMALL, *own]) for name, own in script.VARIANTS.items()
    }
    assert [name for name, config in found.items() if config == found["defaults"]] == ["defaults"]
    together = found["all"]
    preset = load_config(ROOT / "configs/decoders/fgmoe_degmix.yaml")
    for key in ("aggregator", "mixer_offsets"):
        assert getattr(together.decoder, key) == getattr(preset.decoder, key)
    assert together.experts.global_input == preset.experts.global_input
    assert together.decoder.head_channels == together.decoder.channels * preset.decoder.head_channels // 256


def test_gains_are_over_the_defaults_of_the_same_seed(script):
    headlines = {"depth": {"metric": "rmse", "lower_is_better": True}}

    def runs(*errors: float) -> list[RunRecord]:
        return [
            RunRecord(
                "run", "FINISHED", {}, scores={"depth": {"rmse": error}}, model={"trained": 7.0}, headlines=headlines
            )
            for error in errors
        ]

    found = script._summary({"defaults": runs(0.5, 0.4), "tasks": runs(0.4, 0.5)})
    assert found["defaults"]["delta_m"] == [0, 0]
    assert found["tasks"]["delta_m"] == pytest.approx([20, -25])
    assert found["tasks"]["scores"] == {"depth rmse": [0.4, 0.5]}
    assert script._table(found).splitlines()[-1] == "| tasks | 7 | 0.4 0.5 | +20.00 -25.00 |"
