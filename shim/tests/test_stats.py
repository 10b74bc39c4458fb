"""What of the guest's words on its use is passed on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib.errors import DeadlineExceeded
from shim.stats import (
    MAX,
    MAX_DISKS,
    MAX_INTERFACES,
    MAX_OPEN_FILES,
    Asker,
    Bounds,
    GuestStats,
)

BOUNDS = Bounds(vcpus=2, memory_bytes=2**30, disk_bytes=2**34)
SECOND = 1_000_000_000


def group(usec: int = 5, **more: Any) -> dict[str, Any]:
    return {
        "cpu": {"usage_usec": usec, "nr_periods": 3},
        "memory": {"current": 4096, "limit": 8192, "pgfault": 7, "anon": 1},
        "io": {"rbytes": 10},
        "disks": {"8:0": [10, 0]},
        "huge": {"current": 4096, "max": 1},
        "tasks": 2,
        "tasks_limit": None,
        "processes": 1,
        "pressure": {"cpu": {"some": {"total": 9, "avg10": 1.5, "avg60": 0.0, "avg300": 0.0}}},
        **more,
    }


def answer(**containers: Any) -> dict[str, Any]:
    return {
        "pod": group(),
        "containers": containers,
        "interfaces": [{"name": "eth0", "received": [1, 2, 3, 4], "sent": [5, 6, 7, 8]}],
        "scratch": {
            "bytes": 100, "bytes_free": 50, "inodes": 10, "inodes_free": 5, "io": list(range(11)),
        },
    }  # fmt: skip


def take(stats: GuestStats, said: dict[str, Any], *ids: str, at: int = 100 * SECOND) -> Any:
    return stats.take(said, ids, at)


def test_what_is_well_said_is_passed_on() -> None:
    files: dict[str, Any] = {"open_files": {"all": 9, "sockets": 2}, "open_files_limit": 1024}
    said = answer(a=group(upper={"bytes": 4096, "inodes": 3}, **files))
    found = take(GuestStats(BOUNDS), said, "a")
    assert found == said


def test_a_counter_never_falls() -> None:
    stats = GuestStats(BOUNDS)
    take(stats, answer(a=group(usec=500)), "a")
    found = take(stats, answer(a=group(usec=4)), "a")
    assert found["containers"]["a"]["cpu"]["usage_usec"] == 500
    take(stats, answer(), "a")
    found = take(stats, answer(a=group(usec=4)), "a")
    assert found["containers"]["a"]["cpu"]["usage_usec"] == 500
    # Of a container that is gone nothing is kept.
    take(stats, answer())
    found = take(stats, answer(a=group(usec=4)), "a")
    assert found["containers"]["a"]["cpu"]["usage_usec"] == 4


def test_nobody_uses_more_than_there_is() -> None:
    said = answer(
        a=group(
            usec=10**15,
            memory={"current": 2**40, "limit": MAX, "anon": -5},
            upper={"bytes": 2**60, "inodes": 2**60},
            pressure={"io": {"full": {"total": 2**70, "avg10": 1e9, "avg60": 99}}},
            tasks=2**40,
            huge={"current": 2**40, "max": -1},
            open_files={"all": 2**62, "sockets": "many"},
            open_files_limit=-1,
            disks={f"8:{disk}": [1, 1] for disk in range(99)},
        )
    )
    found = take(GuestStats(BOUNDS), said, "a", at=3 * SECOND)["containers"]["a"]
    assert found["cpu"]["usage_usec"] == 6_000_000
    assert found["memory"] == {"current": 2**30, "anon": 0}
    assert found["upper"] == {"bytes": 2**34, "inodes": 2**26}
    assert found["tasks"] == 4_194_304
    assert found["huge"] == {"current": 2**30, "max": 0}
    assert found["open_files"] == {"all": MAX_OPEN_FILES, "sockets": 0}
    assert found["open_files_limit"] is None
    assert len(found["disks"]) == MAX_DISKS
    stalls = {"total": MAX // 1000, "avg10": 0.0, "avg60": 99.0, "avg300": 0.0}
    assert found["pressure"] == {"io": {"full": stalls}}


def test_disks_that_come_and_go_are_not_kept() -> None:
    stats = GuestStats(BOUNDS)
    for turn in range(50):
        disks = {f"8:{turn * MAX_DISKS + disk}": [1, 1] for disk in range(MAX_DISKS)}
        take(stats, answer(a=group(disks=disks)), "a")
    assert len([key for key in stats._last if key[0] == "disk"]) <= 2 * (MAX_DISKS + 1)


def test_a_disks_counters_never_fall_and_what_is_under_way_does() -> None:
    stats = GuestStats(BOUNDS)
    for counts in ([100] * 11, [7] * 11):
        found = take(stats, answer() | {"scratch": {"io": counts}})["scratch"]["io"]
    assert found == [100] * 8 + [7] + [100] * 2
    for odd in (None, [], [1] * 12, "x"):
        assert take(stats, answer() | {"scratch": {"io": odd}})["scratch"]["io"] is None


def test_strangers_are_not_spoken_of() -> None:
    said = answer(
        a=group(disks={"8:0": [1, 2], "sda": [1, 2], "8:1\n": [1, 2], "8:2": 5}), b=group()
    )
    said["interfaces"] += [
        {"name": name, "received": [0] * 4, "sent": [0] * 4}
        for name in ("eth0", "bad\nname", "a" * 16, 5, "", "../x", "eth1", *map(str, range(99)))
    ]
    found = take(GuestStats(BOUNDS), said, "a")
    assert list(found["containers"]) == ["a"]
    assert found["containers"]["a"]["disks"] == {"8:0": [1, 2], "8:2": [0, 0]}
    names = [each["name"] for each in found["interfaces"]]
    assert names[:2] == ["eth0", "eth1"]
    assert len(names) == len(set(names)) <= MAX_INTERFACES


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(["", "eth0", "5", "a\n"]),
    lambda inner: st.lists(inner, max_size=4)
    | st.dictionaries(
        st.sampled_from(
            ["pod", "containers", "a", "cpu", "usage_usec", "memory", "current", "pressure", "some",
             "total", "avg10", "interfaces", "name", "received", "scratch", "bytes", "upper", "io",
             "disks", "8:0", "huge", "max", "open_files", "all", "open_files_limit"]
        ),
        inner,
        max_size=6,
    ),
    max_leaves=30,
)  # fmt: skip


@given(
    said=st.dictionaries(st.sampled_from(["pod", "containers", "interfaces", "scratch"]), anything)
)
def test_any_answer_gives_numbers_within_bounds(said: dict[str, Any]) -> None:
    stats = GuestStats(BOUNDS)
    for _ in range(2):
        found = take(stats, said, "a")
        # Not a number, and infinite ones, are no JSON.
        json.dumps(found, allow_nan=False)
        numbers: list[Any] = [found]
        while numbers:
            each = numbers.pop()
            if isinstance(each, dict):
                numbers += each.values()
            elif isinstance(each, list):
                numbers += each
            elif isinstance(each, int | float):
                assert 0 <= each <= MAX


async def test_a_deaf_guest_is_asked_once() -> None:
    asked = 0
    deaf = asyncio.Event()

    async def ask() -> dict[str, Any]:
        nonlocal asked
        asked += 1
        await deaf.wait()
        return {"n": asked}

    asker = Asker(ask, patience=0.02)
    for _ in range(5):
        with pytest.raises(DeadlineExceeded):
            await asker.answer()
    assert asked == 1
    deaf.set()
    assert await asker.answer() == {"n": 1}
    assert await asker.answer() == {"n": 2}
    await asker.close()
