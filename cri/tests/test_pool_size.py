from __future__ import annotations

import itertools
import math

from hypothesis import given
from hypothesis import strategies as st

from cri.config import Pool as Settings
from cri.pool_size import FIRST_GUESS, HALF_LIFE, PoolSize, limits

gaps = st.lists(st.floats(0, 100, allow_nan=False), max_size=60)
bounds = st.tuples(st.integers(0, 50), st.integers(0, 100))


def learnt(times: list[float], floor: int, ceiling: int, **more: float) -> PoolSize:
    size = PoolSize(floor, ceiling, 1, **more)
    for time in times:
        size.arrived(time)
    return size


@given(gaps, bounds, st.lists(st.floats(0, 1000, allow_nan=False), max_size=5))
def test_always_between_floor_and_ceiling(
    gaps: list[float], bounds: tuple[int, int], restores: list[float]
) -> None:
    floor, ceiling = bounds
    size = PoolSize(floor, ceiling, 1)
    for seconds in restores:
        size.restored(seconds)
    for time in itertools.accumulate(gaps):
        size.arrived(time)
        assert floor <= size.wanted(time) <= max(floor, ceiling)


@given(gaps)
def test_the_peak_is_the_largest_burst_less_what_was_restored_meanwhile(gaps: list[float]) -> None:
    times = list(itertools.accumulate(gaps))
    size = learnt(times, 0, 1000, half_life=math.inf)
    peak = max(
        (
            last - first + 1 - (times[last] - times[first]) / FIRST_GUESS
            for first in range(len(times))
            for last in range(first, len(times))
        ),
        default=0.0,
    )
    assert abs(size.wanted(times[-1] if times else 0.0) - peak) < 1 + 1e-5


@given(gaps, gaps)
def test_more_pods_never_make_it_smaller(gaps: list[float], more: list[float]) -> None:
    times = list(itertools.accumulate(gaps))
    all_times = sorted([*times, *itertools.accumulate(more)])
    end = max(all_times, default=0.0)
    assert learnt(times, 2, 50).wanted(end) <= learnt(all_times, 2, 50).wanted(end)


@given(gaps, st.floats(0, 10_000), st.floats(0, 10_000))
def test_quiet_never_makes_it_larger(gaps: list[float], first: float, second: float) -> None:
    times = list(itertools.accumulate(gaps))
    end = max(times, default=0.0)
    size = learnt(times, 2, 50)
    before, after = size.wanted(end + first), size.wanted(end + first + second)
    assert after <= before


@given(gaps)
def test_a_long_quiet_brings_the_floor_back(gaps: list[float]) -> None:
    times = list(itertools.accumulate(gaps))
    end = max(times, default=0.0)
    assert learnt(times, 2, 50).wanted(end + 10 * HALF_LIFE) == 2


@given(gaps)
def test_a_clock_that_goes_back_does_no_harm(gaps: list[float]) -> None:
    size = learnt(list(itertools.accumulate(gaps))[::-1], 1, 10)
    assert 1 <= size.wanted(0.0) <= 10


def test_a_burst_that_came_is_held_for_minutes() -> None:
    size = learnt([5.0] * 40, 10, 50)
    assert size.wanted(5.0) == 40
    assert size.wanted(5.0 + HALF_LIFE) == 20


@given(gaps, gaps)
def test_what_is_forgotten_counts_no_more(before: list[float], after: list[float]) -> None:
    times = list(itertools.accumulate(after))
    size = learnt([0.0] * len(before), 2, 50)
    size.forget()
    for time in times:
        size.arrived(time)
    end = max(times, default=0.0)
    assert size.wanted(end) == learnt(times, 2, 50).wanted(end)


def test_a_steady_stream_that_is_restored_meanwhile_needs_no_more() -> None:
    assert learnt([2.0 * n for n in range(1000)], 10, 50).wanted(2000.0) == 10


def test_slow_restores_ask_for_more() -> None:
    times = [float(n) for n in range(20)]
    fast, slow = PoolSize(1, 50, 1), PoolSize(1, 50, 1)
    for _ in range(50):
        fast.restored(0.1)
        slow.restored(10.0)
    for time in times:
        fast.arrived(time)
        slow.arrived(time)
    assert fast.wanted(19.0) == 1
    assert slow.wanted(19.0) >= 18


def test_the_defaults_suit_small_and_large_hosts() -> None:
    small = limits(Settings(), 2, 8192)
    assert (small.floor, small.ceiling, small.parallel, small.on_the_spot) == (10, 10, 1, 4)
    large = limits(Settings(), 128, 512 * 1024)
    assert (large.floor, large.ceiling, large.parallel, large.on_the_spot) == (10, 512, 16, 256)
    assert limits(Settings(), 2, 4096).floor == 8
    assert limits(Settings(size=0), 128, 512 * 1024).ceiling == 0


def test_memory_bounds_floor_and_ceiling() -> None:
    found = limits(Settings(size=10, max_size=100, max_memory_mib=200), 2, 8192)
    assert (found.floor, found.ceiling) == (3, 3)
    assert limits(Settings(size=10, max_size=4), 2, 8192).ceiling == 10
