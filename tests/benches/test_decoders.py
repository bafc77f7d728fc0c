"""The bench of all decoders: what it measures, what it refuses, and the page that it writes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fgmoe_dist.benches import decoders
from fgmoe_dist.config import load_config
from fgmoe_dist.decoders import DECODERS
from fgmoe_dist.errors import UserError
from tests.runs import fgmoe

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "configs/decoders"


def test_every_decoder_and_preset_is_there_with_its_own_settings():
    base = load_config(ROOT / "configs/nyud_vitb.yaml", ["data.image_size=[64,96]"])
    systems = dict(decoders._systems(base, PRESETS))
    assert systems.keys() >= {path.stem for path in PRESETS.glob("*.yaml")}
    assert {config.decoder.kind for config in systems.values()} == set(DECODERS)
    assert all(config.data == base.data and config.encoder == base.encoder for config in systems.values())
    assert systems["mlore_pascal_vitl"].decoder.channels == 452 and systems["t_rex"].experts.kind == "rank_one"


def test_what_is_said_to_be_refused_is_with_one_line_that_names_a_setting():
    for each in decoders._refused():
        assert "\n" not in each["why"] and re.search(r"\b(decoder|experts|train|parallel|data)\.\w+", each["why"])


@pytest.mark.slow
def test_the_page_is_written_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# Mine\n\n{decoders.BEGIN}\nold\n{decoders.END}\n\nfurther\n")
    said = fgmoe("bench", "decoders", "--config", ROOT / "configs/nyud_vitb.yaml", "--presets", PRESETS,
                 "--only", "multi_task", "--steps", "1", "--markdown", page, "data.image_size=[32,32]",
                 "encoder.name=vit_tiny_patch16_224", "train.micro_batch_size=1")  # fmt: skip
    written = page.read_text()
    assert written.startswith("# Mine\n\n") and written.endswith("\n\nfurther\n") and "old" not in written
    (row,) = [line for line in written.splitlines() if line.startswith("| multi_task |")]
    trained = float(row.split("|")[3])
    # Four projections of 192 channels to 256, a norm, and per task a 3x3 convolution, a norm and a 1x1 to its outputs.
    numbers = 4 * 192 * 256 + 2 * 256 + 4 * (9 * 256**2 + 2 * 256) + (40 + 1 + 3 + 1) * 257
    assert trained == pytest.approx(numbers / 1e6, abs=0.005)
    assert "multi_task" in said


def test_a_page_without_marks_and_an_unknown_name_are_told(tmp_path):
    (tmp_path / "page.md").write_text("# Mine\n")
    with pytest.raises(UserError, match="has no lines <!-- fgmoe bench decoders"):
        decoders._marked(tmp_path / "page.md")
    with pytest.raises(UserError, match="holds no .yaml file"):
        dict(decoders._systems(load_config(ROOT / "configs/nyud_vitb.yaml"), tmp_path))
