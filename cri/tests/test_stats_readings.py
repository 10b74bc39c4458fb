"""Readings of pods: rates, the host's part, and what a silent guest costs others."""

from __future__ import annotations

import os
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from cri.stats import host
from cri.stats.rate import Rate

SECOND = 1_000_000_000


def test_the_first_window_reaches_back_to_the_counters_beginning() -> None:
    rate = Rate()
    assert rate.add(10 * SECOND, 2 * SECOND, 6 * SECOND) == SECOND // 2
    # Too soon for a window of its own: the same beginning.
    assert rate.add(10 * SECOND + SECOND // 10, 2 * SECOND, 6 * SECOND) is not None


def test_a_window_is_the_time_since_the_reading_before() -> None:
    rate = Rate()
    assert rate.add(10 * SECOND, 5 * SECOND, 0) is None
    assert rate.add(12 * SECOND, 6 * SECOND, 0) == SECOND // 2
    assert rate.add(14 * SECOND, 6 * SECOND, 0) == 0
    # Within a second of the last one the window is the one before it, and longer.
    assert rate.add(14 * SECOND + SECOND // 2, 7 * SECOND, 0) == SECOND * 2 // 5


@given(
    st.lists(st.tuples(st.integers(1, 3 * SECOND), st.integers(0, SECOND)), max_size=30),
    st.integers(0, 5),
)
def test_a_rate_is_never_negative_and_no_window_is_short(
    steps: list[tuple[int, int]], since: int
) -> None:
    rate, at, counter = Rate(), 10 * SECOND, 0
    for passed, used in steps:
        at, counter = at + passed, counter + min(used, passed)
        found = rate.add(at, counter, since)
        assert found is None or 0 <= found <= SECOND


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def process(proc: Path, pid: int, *, kib: int, ticks: int) -> None:
    folder = proc / str(pid)
    rollup = f"00-ff ---p 00:00 0 [rollup]\nRss: 9 kB\nPss_Anon: {kib} kB\nSwapPss: 1 kB\n"
    write(folder, smaps_rollup=rollup)
    fields = ["0"] * 50
    fields[0], fields[11], fields[12], fields[19] = "S", str(ticks), str(ticks), "100"
    (folder / "stat").write_text(f"{pid} (a) b) {' '.join(fields)}\n")


def test_version_2(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    write(root, cgroup__controllers="cpu memory")
    write(
        root / "pods" / "thaw-a",
        cpu__stat="usage_usec 1500\nuser_usec 1\n",
        memory__current="1000000",
        memory__max="max",
        memory__stat="anon 400000\nfile 600000\ninactive_file 250000\npgfault 5\npgmajfault 2\n",
    )
    process(proc, 7, kib=1000, ticks=1)
    found = host.read("/pods/thaw-a", [7, 0], root=root, proc=proc)
    assert (found.cpu_ns, found.since) == (1_500_000, 0)
    # What was charged to the pool's group before is in it.
    assert found.rss == 1_024_000
    assert found.memory == 600_000 + 1_024_000
    assert found.working_set == found.memory - 250_000
    assert found.limit is None
    assert (found.page_faults, found.major_page_faults, found.swap) == (5, 2, 1024)


def test_version_1_with_the_controllers_together_and_apart(tmp_path: Path) -> None:
    root, proc = tmp_path / "cgroup", tmp_path / "proc"
    for controller in ("memory", "cpu", "pids"):
        write(root / controller, tasks="")
        write(root / controller / "thaw-a")
    write(
        root / "memory" / "thaw-a",
        memory__usage_in_bytes="5000000",
        memory__limit_in_bytes="8000000",
        memory__stat="rss 1\ntotal_rss 4000000\ntotal_inactive_file 100000\ntotal_pgfault 9\n",
    )
    process(proc, 7, kib=1000, ticks=50)
    process(proc, 8, kib=500, ticks=25)
    found = host.read("/thaw-a", [7, 8], root=root, proc=proc)
    # Less anonymous memory than is charged: the charge counts.
    assert (found.memory, found.working_set, found.limit) == (5_000_000, 4_900_000, 8_000_000)
    assert found.cpu_ns == 150 * (1_000_000_000 // os.sysconf("SC_CLK_TCK"))
    assert found.since > 0
    write(root / "cpu" / "thaw-a", cpuacct__usage="77")
    found = host.read("/thaw-a", [7, 8], root=root, proc=proc)
    assert (found.cpu_ns, found.since) == (77, 0)


def test_without_groups_and_without_processes(tmp_path: Path) -> None:
    assert host.read("", [99], root=tmp_path, proc=tmp_path).memory == 0
    assert host.read("/x", [os.getpid()], root=tmp_path / "none").rss > 0
