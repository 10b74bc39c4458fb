from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.pressure import Memory, Pressure, Reading, Thresholds

THRESHOLDS = Thresholds(min_available_percent=10, max_stall_percent=20, relief_seconds=60)
FINE = Reading(10_000, 9_000)
SHORT = Reading(10_000, 999)


def fake_proc(folder: Path, available_kb: int, stalled: int | None = None) -> Path:
    (folder / "meminfo").write_text(
        f"MemTotal:       10240000 kB\nMemFree:  1 kB\nMemAvailable:    {available_kb} kB\n"
    )
    if stalled is not None:
        (folder / "pressure").mkdir(exist_ok=True)
        (folder / "pressure" / "memory").write_text(
            f"some avg10=0.00 avg60=0.00 avg300=0.00 total={stalled}\n"
            "full avg10=0.00 avg60=0.00 avg300=0.00 total=7\n"
        )
    return folder


def test_the_hosts_own_memory_is_read() -> None:
    found = Memory().read()
    assert found is not None
    assert 0 < found.available_mib <= found.total_mib


def test_without_stall_information(tmp_path: Path) -> None:
    assert Memory(fake_proc(tmp_path, 2_048_000)).read() == Reading(10_000, 2_000)


def test_stalls_are_counted_between_readings(tmp_path: Path) -> None:
    now = 100.0
    memory = Memory(fake_proc(tmp_path, 1024, stalled=5_000_000), lambda: now)
    assert memory.read() == Reading(10_000, 1)
    now = 102.0
    fake_proc(tmp_path, 1024, stalled=5_500_000)
    assert memory.read() == Reading(10_000, 1, 0.25)
    # A counter that began anew, and two readings at one instant.
    fake_proc(tmp_path, 1024, stalled=0)
    now = 103.0
    assert memory.read() == Reading(10_000, 1)
    assert memory.read() == Reading(10_000, 1)


@pytest.mark.parametrize("text", ["", "MemTotal: 5 kB\n", "MemAvailable: x kB\nMemTotal: 1 kB\n"])
def test_a_kernel_that_does_not_say(tmp_path: Path, text: str) -> None:
    assert Memory(tmp_path).read() is None
    (tmp_path / "meminfo").write_text(text)
    assert Memory(tmp_path).read() is None


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_text_is_read_without_an_error(
    tmp_path_factory: pytest.TempPathFactory, meminfo: bytes, stalls: bytes
) -> None:
    folder = tmp_path_factory.mktemp("proc")
    (folder / "pressure").mkdir()
    (folder / "meminfo").write_bytes(b"MemTotal: 8 kB\nMemAvailable: 4 kB\n" + meminfo)
    (folder / "pressure" / "memory").write_bytes(stalls)
    memory = Memory(folder)
    for _ in range(2):
        found = memory.read()
        assert found is None or 0 <= found.stalled <= 1


def test_begins_at_once_and_ends_after_a_while() -> None:
    pressure = Pressure(THRESHOLDS)
    pressure.update(FINE, 0, 0)
    assert pressure.reason == ""
    pressure.update(SHORT, 1, 0)
    assert "999 MiB of memory are available, less than 1000" in pressure.reason
    pressure.update(FINE, 2, 0)
    pressure.update(FINE, 61, 0)
    assert pressure.reason
    pressure.update(FINE, 62, 0)
    assert pressure.reason == ""


def test_a_bad_reading_begins_the_wait_anew() -> None:
    pressure = Pressure(THRESHOLDS)
    for now, reading in ((0, SHORT), (1, FINE), (50, SHORT), (51, FINE), (110, FINE)):
        pressure.update(reading, now, 0)
        assert pressure.reason
    pressure.update(FINE, 111, 0)
    assert not pressure.reason


def test_does_not_end_while_the_pool_would_bring_it_back() -> None:
    pressure = Pressure(THRESHOLDS)
    pressure.update(SHORT, 0, 0)
    for now in range(1, 1000, 10):
        pressure.update(Reading(10_000, 1_500), now, 600)
        assert pressure.reason
    pressure.update(Reading(10_000, 1_600), 1000, 600)
    pressure.update(Reading(10_000, 1_600), 1060, 600)
    assert not pressure.reason


def test_stalls_count_while_memory_is_scarce() -> None:
    pressure = Pressure(THRESHOLDS)
    # A control group at its own limit, on a host that has memory.
    pressure.update(Reading(10_000, 4_000, 1.0), 0, 0)
    assert not pressure.reason
    pressure.update(Reading(10_000, 3_999, 0.2), 0, 0)
    assert not pressure.reason
    pressure.update(Reading(10_000, 3_999, 0.21), 0, 0)
    assert "21 % of the time" in pressure.reason


def test_each_sign_can_be_switched_off() -> None:
    neither = Pressure(Thresholds(0, 0, 60))
    neither.update(Reading(10_000, 0, 1.0), 0, 0)
    assert not neither.reason
    stalls = Pressure(Thresholds(0, 20, 60))
    stalls.update(Reading(10_000, 10_000, 0.5), 0, 0)
    assert stalls.reason


readings = st.builds(
    Reading, st.just(10_000), st.integers(0, 10_000), st.floats(0, 1, allow_nan=False)
)


@given(st.lists(st.tuples(readings, st.integers(0, 50)), max_size=50), st.integers(0, 5_000))
def test_never_ends_within_the_relief_after_a_bad_reading(
    steps: list[tuple[Reading, int]], room: int
) -> None:
    pressure = Pressure(THRESHOLDS)
    now, bad = 0, -1_000
    for reading, passed in steps:
        now += passed
        fresh = Pressure(THRESHOLDS)
        fresh.update(reading, 0, 0)
        if fresh.reason:
            bad = now
        pressure.update(reading, now, room)
        if now - bad < THRESHOLDS.relief_seconds:
            assert pressure.reason
