"""Curves, fits and sharing of a machine's profile, by hand; and the file it is kept in."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fgmoe_dist.errors import UserError
from fgmoe_dist.files import write_json
from fgmoe_dist.planning.profile import Compute, Link, Links, fit_link, interpolate, machine_json, read_machine
from tests.planning.machines import flat_compute, machine


def test_a_rate_is_straight_on_logarithmic_paper_and_flat_beyond():
    curve = [(10, 100.0), (1000, 10000.0)]
    assert interpolate(curve, 100) == pytest.approx(1000)
    assert interpolate(curve, 1) == 100 and interpolate(curve, 10**6) == 10000
    assert interpolate([(1, 7.0)], 50) == 7


def test_seconds_are_amount_over_rate_and_an_overhead_a_call():
    compute = Compute(1, 1e-3, {"fp32": {"matmul": [(1, 2e9)]}})
    assert compute.seconds("matmul", "fp32", 4e9, calls=5) == pytest.approx(2 + 5e-3)


def test_the_nearest_width_is_the_nearest_in_proportion():
    compute = Compute(1, 0.0, {"fp32": {"experts:96x32": [], "experts:256x64": [], "gelu": []}})
    assert compute.nearest_width("experts", "fp32", 128, 32) == "experts:96x32"
    assert compute.nearest_width("experts", "fp32", 1024, 512) == "experts:256x64"


@given(latency=st.floats(1e-7, 1e-2), rate=st.floats(1e6, 1e12))
def test_a_fit_finds_the_link_that_made_the_points(latency, rate):
    points = [(m, size, m * latency + size / rate) for m in (1, 3) for size in (10.0**n for n in range(2, 11))]
    link = fit_link(points)
    assert link.latency_s == pytest.approx(latency, rel=1e-3)
    assert link.bytes_per_s == pytest.approx(rate, rel=1e-3)


def test_a_fit_to_noise_is_still_a_link():
    assert fit_link([(1, 1e3, 1e-6), (1, 1e6, 9e-3)]).latency_s >= 0
    link = fit_link([(1, 1e3, 5e-3), (1, 1e6, 1e-3)])
    assert link.latency_s > 0 and link.bytes_per_s > 0


def test_a_cpu_s_cores_are_shared_beyond_what_was_measured_and_a_gpu_s_are_not():
    cpu = machine(device="cpu", cores=2, compute={1: flat_compute(1e-6), 4: flat_compute(2e-6)})
    assert cpu.compute_at(4).rates["fp32"]["gelu"] == [(1, 1e9)]
    crowded = cpu.compute_at(16)  # 8 ranks a core where 2 were measured
    assert crowded.rates["fp32"]["gelu"][0][1] == pytest.approx(1e9 / 4) and crowded.overhead_s == pytest.approx(8e-6)
    assert cpu.compute_at(1).overhead_s == 1e-6
    gpu = machine(cores=2)
    assert gpu.compute_at(16) is gpu.compute[1]
    assert (cpu.memory_per_rank(4), gpu.memory_per_rank(4)) == (4 * 2**30, 16 * 2**30)


def test_a_profile_is_read_as_it_was_written(tmp_path):
    one = machine(links={2: Links(Link(1e-5, 1e9), Link(2e-5, 2e9), 0.5)}, versions={"torch": "2.13"})
    write_json(tmp_path / "machine.json", machine_json(one))
    assert read_machine(tmp_path / "machine.json") == one
    alone = replace(one, links={}, internode=None, internode_source="unknown")
    write_json(tmp_path / "alone.json", machine_json(alone))
    assert read_machine(tmp_path / "alone.json") == alone


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": 1}', '{"format": 9, "name": "x"}'])
def test_another_file_is_refused_in_one_line(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match="fgmoe bench machine") as raised:
        read_machine(tmp_path / "x.json")
    assert "\n" not in str(raised.value) and str(raised.value).count("x.json") == 1  # and not to write over it
    with pytest.raises(UserError, match="none.json"):
        read_machine(tmp_path / "none.json")


def test_a_profile_with_something_unknown_is_refused(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps({**machine_json(machine()), "colour": "red"}))
    with pytest.raises(UserError, match="colour"):
        read_machine(tmp_path / "x.json")
