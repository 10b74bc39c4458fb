from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest

from bench import cpu


def _stat(user: int, idle: int, iowait: int = 0, guest: int = 0) -> str:
    return f"cpu  {user} 0 0 {idle} {iowait} 0 0 0 {guest} 0\ncpu0 1 2 3\n"


@pytest.mark.parametrize(
    ("before", "after", "busy"),
    [
        (_stat(100, 100), _stat(150, 150), 0.5),
        (_stat(100, 100), _stat(100, 200), 0.0),
        (_stat(100, 100), _stat(100, 100, iowait=50), 0.0),
        (_stat(100, 100), _stat(200, 100, guest=100), 1.0),
        (_stat(100, 100), _stat(100, 100), 0.0),
    ],
)
def test_busy(before: str, after: str, busy: float) -> None:
    assert cpu.busy_of(before, after) == busy


def _gate(busy: list[float], budget: float = 60.0) -> cpu.Gate:
    ticks, values = itertools.count(), iter(busy)
    return cpu.Gate(budget, busy=lambda _: next(values), clock=lambda: float(next(ticks)))


def test_the_gate_waits_until_the_machine_is_quiet() -> None:
    gate = _gate([0.9, 0.5, 0.05])
    assert gate.wait()
    assert (gate.passed, gate.noisy) == (1, 0)


def test_the_gate_does_not_wait_for_ever_and_counts() -> None:
    gate = _gate([1.0] * 100)
    assert not gate.wait()
    assert (gate.passed, gate.noisy) == (1, 1)


def test_a_gate_without_budget_looks_once() -> None:
    looked = [0.9, 0.9]
    gate = _gate(looked, budget=0.0)
    assert not gate.wait()
    assert gate.noisy == 1


def test_time_of_processes() -> None:
    usage = cpu.Usage([os.getpid(), 2**22 + 1])
    # The kernel counts in hundredths of a second.
    begun = time.process_time()
    while time.process_time() - begun < 0.05:
        sum(range(1000))
    assert usage.percent() > 0


def test_what_threads_ran_and_waited(tmp_path: Path) -> None:
    for task, text in (("1/task/1", "5000000000 1000000000 9"), ("1/task/2", "250000000 0 1")):
        (tmp_path / task).mkdir(parents=True)
        (tmp_path / task / "schedstat").write_text(f"{text}\n")
    found = cpu.scheduled([1, 2], tmp_path)
    assert found == cpu.Scheduled(5.25, 1.0)
    assert found.since(cpu.Scheduled(5.0, 0.25)) == cpu.Scheduled(0.25, 0.75)
