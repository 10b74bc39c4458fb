"""What one pod costs on a full node is what it costs on an empty one. Needs root."""

from __future__ import annotations

import pytest

from bench.scale import __main__ as scale

FEW, MANY = 100, 1000
COUNTS = {"forks": (30, 300), "mounts": (100, 500)}
"""Less, where each pod is a process, and where the kernel copies the host's own table of mounts."""

GENEROUS = 4.0
"""How much more processor time a pod may cost beside ten times as many: caches and trees cost a
little more when they are larger, a scan of everything costs ten times as much."""

LARGEST_KIB = 64.0
"""What one pod may take of the daemon's memory."""


@pytest.mark.parametrize("part", scale.PARTS)
def test_a_pod_costs_the_same_beside_many(part: str) -> None:
    few, many = (scale.measure(part, count) for count in COUNTS.get(part, (FEW, MANY)))
    assert [each.name for each in few] == [each.name for each in many]
    for before, after in zip(few, many, strict=True):
        if before.unit == "KiB":
            # Few may find room that tests before them have left.
            assert after.value <= LARGEST_KIB, after
        elif before.is_time:
            assert after.value <= GENEROUS * before.value, (before, after)
        elif before.unit != "ms of time":
            assert after.value <= 1.25 * before.value + 0.5, (before, after)


def test_every_part_is_in_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    scale.table(["leases"], (1, 10))
    head, row = capsys.readouterr().out.splitlines()
    assert head.split() == ["one", "pod", "costs", "at", "1", "at", "10", "unit"]
    assert row.startswith("leases: address given and taken")
