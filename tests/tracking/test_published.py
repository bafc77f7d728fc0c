"""The file of published results, and how it is shown."""

from __future__ import annotations

import pytest

from fgmoe_dist.tracking.compare import RunRecord
from fgmoe_dist.tracking.published import SETS, systems, table

RANGES = {"semseg": (40, 90), "human_parts": (50, 90), "sal": (80, 90), "normals": (10, 25), "edge": (50, 90),
          "depth": (0.3, 0.7)}  # fmt: skip


@pytest.mark.parametrize("data_set", SETS)
def test_every_result_is_of_its_sets_tasks_and_says_where_it_is_from(data_set):
    found, protocols = systems(data_set)
    assert len(found) > 15
    for system in found:
        assert system["scores"].keys() <= set(SETS[data_set]) and system["source"], system
        assert set(system["protocol"]) <= protocols.keys() and system["encoder"]
        for task, value in system["scores"].items():
            least, most = RANGES[task]
            assert least < value < most, (system["system"], task, value)
    names = [(system["system"], system["encoder"]) for system in found]
    assert len(set(names)) == len(names)


def test_mlores_readme():
    """81.41 / 70.52 / 84.90 / 13.51 / 75.42 and 55.96 / .5076 / 18.33 / 78.43."""
    for data_set, scores in (("pascal", [81.41, 70.52, 84.90, 13.51, 75.42]), ("nyud", [55.96, 0.5076, 18.33, 78.43])):
        (system,) = [each for each in systems(data_set)[0] if (each["system"], each["encoder"]) == ("MLoRE", "ViT-L")]
        assert [system["scores"][task] for task in SETS[data_set]] == scores


def test_runs_stand_above_what_was_published_with_what_differs_below():
    run = RunRecord(
        "mine", "FINISHED", {"encoder.name": "vit"}, scores={"semseg": {"mIoU": 50.5}}, model={"trained": 9000}
    )
    lines = table([run], "nyud").splitlines()
    assert lines[2] == "| mine | vit | 9,000 | 50.5 | - | - | - |  |"
    assert "| InvPT | ViT-L | - | 53.65 | 0.5083 | 18.68 | 77.8 | [1] [5] |" in lines
    assert "[1] The encoder is trained; here it is frozen." in lines
    assert "[5] Boundaries are scored by the MATLAB tool of InvPT's authors." in lines
    assert lines[-1].startswith("Sources. ") and "github.com/YuqiYang213/MLoRE" in lines[-1]
