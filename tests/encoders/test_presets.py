"""The encoders of the newest records as presets: their sizes fit, and each trains for a step with random weights."""

from __future__ import annotations

from pathlib import Path

import pytest

from fgmoe_dist.benches.measure_step import measure_step
from fgmoe_dist.benches.ranks import on_ranks
from fgmoe_dist.config import load_config

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
NYUD = sorted(path.name for path in CONFIGS.glob("nyud_*_vit[bl].yaml"))
SMALL = ["data.image_size=[112,112]", "train.micro_batch_size=1", "train.batch_size=1", "decoder.channels=32"]


@pytest.mark.parametrize("name", NYUD)
def test_pascal_has_the_same_encoder_and_both_sizes_hold_their_images(name):
    nyud, pascal = load_config(CONFIGS / name), load_config(CONFIGS / name.replace("nyud", "pascal"))
    assert nyud.encoder == pascal.encoder and nyud.run.name == name.removesuffix(".yaml")
    patch = 14 if "patch14" in nyud.encoder.name else 16
    for config, (height, width) in ((nyud, (425, 560)), (pascal, (500, 500))):
        size = config.data.image_size
        assert size[0] >= height and size[1] >= width
        assert not any(side % patch or side % config.decoder.stride for side in size)
    assert "Weights: " in (CONFIGS / name).read_text().splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("name", NYUD)
def test_it_trains_for_a_step_with_random_weights(name):
    config = load_config(CONFIGS / name, SMALL)
    found = on_ranks(1, measure_step, config, 1, True)
    assert found["seconds"] > 0
