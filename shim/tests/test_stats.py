"""What of the guest's words on its use is passed on."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib.errors import DeadlineExceeded
from shim.stats import MAX, MAX_INTERFACES, Asker, Bounds, GuestStats

BOUNDS = Bounds(vcpus=2, memory_bytes=2**30, disk_bytes=2**34)
SECOND = 1_000_000_000


def group(usec: int = 5, **more: Any) -> dict[str, Any]:
    return {
        "cpu": {"usage_usec": usec, "nr_periods": 3},
        "memory": {"current": 4096, "limit": 8192, "pgfault": 7, "anon": 1},
        "io": {"rbytes": 10},
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
        "scratch": {"bytes": 100, "bytes_free": 50, "inodes": 10, "inodes_free": 5},
    }


def take(stats: GuestStats, said: dict[str, Any], *ids: str, at: int = 100 * SECOND) -> Any:
    return stats.take(said, ids, at)


def test_what_is_well_said_is_passed_on() -> None:
    said = answer(a=group(upper={"bytes": 4096, "inodes": 3}))
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
        )
    )
    found = take(GuestStats(BOUNDS), said, "a", at=3 * SECOND)["containers"]["a"]
    assert found["cpu"]["usage_usec"] == 6_000_000
    assert found["memory"] == {"current": 2**30, "anon": 0}
    assert found["upper"] == {"bytes": 2**34, "inodes": 2**26}
    assert found["tasks"] == 4_194_304
    stalls = {"total": MAX // 1000, "avg10": 0.0, "avg60": 99.0, "avg300": 0.0}
    assert found["pressure"] == {"io": {"full": stalls}}


def test_strangers_are_not_spoken_of() -> None:
    said = answer(a=group(), b=group())
    said["interfaces"] += [
        {"name": name, "received": [0] * 4, "sent": [0] * 4}
        for name in ("eth0", "bad\nname", "a" * 16, 5, "", "../x", "eth1", *map(str, range(99)))
    ]
    found = take(GuestStats(BOUNDS), said, "a")
    assert list(found["containers"]) == ["a"]
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
             "total", "avg10", "interfaces", "name", "received", "scratch", "bytes", "upper", "io"]
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
