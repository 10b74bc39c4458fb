from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.rows import BY_KEY, PEER, ROWS, THAW, judge
from bench.samples import Figures, Series


def test_median_and_spread_ignore_an_outlier() -> None:
    series = Series("ms", [10.0, 11.0, 9.0, 10.0, 500.0])
    assert series.median == 10.0
    assert series.spread == 1.0


@pytest.mark.parametrize(("count", "percent", "rank"), [(200, 99, 198), (1, 99, 1), (100, 50, 50)])
def test_percentile_is_the_nearest_rank(count: int, percent: float, rank: int) -> None:
    assert Series("ms", [float(n) for n in range(1, count + 1)]).percentile(percent) == rank


@given(st.lists(st.floats(0, 1e6), min_size=1), st.floats(0, 100))
def test_a_percentile_is_one_of_the_values(values: list[float], percent: float) -> None:
    series = Series("ms", values)
    found = series.percentile(percent)
    assert found in values
    assert sum(value <= found for value in values) >= len(values) * percent / 100 - 1e-9


def test_a_block_that_fails_is_no_sample() -> None:
    figures = Figures()
    with pytest.raises(KeyError), figures.timed("run", THAW):
        raise KeyError
    assert not figures
    with figures.timed("run", THAW):
        pass
    assert len(figures["run", THAW].values) == 1


def _figures(row: str, thaw: float, peer: float | None = None) -> Figures:
    figures = Figures()
    figures.add(row, THAW, thaw)
    if peer is not None:
        figures.add(row, PEER, peer)
    return figures


@pytest.mark.parametrize(
    ("row", "thaw", "peer", "met"),
    [
        ("run", 35.0, 100.0, True),
        ("run", 36.0, 100.0, False),
        ("run", 36.0, None, None),
        ("lives_rate", 6.0, 10.0, True),
        ("lives_rate", 5.9, 10.0, False),
        ("idle_shim", 5.0, None, True),
        ("idle_shim", 5.1, 0.1, False),
        ("restore_speedup", 35.0, None, True),
        ("restore_speedup", 34.0, None, False),
        ("http_pod_rate", 1.0, 2.0, None),
    ],
)
def test_goals(row: str, thaw: float, peer: float | None, met: bool | None) -> None:
    assert judge(BY_KEY[row], _figures(row, thaw, peer)).met is met


def test_a_row_without_data_is_not_judged() -> None:
    verdict = judge(BY_KEY["run"], Figures())
    assert (verdict.thaw, verdict.peer, verdict.ratio, verdict.met) == (None, None, None, None)


def test_the_p99_stands_for_the_lists() -> None:
    figures = Figures()
    for value in [1.0] * 99 + [50.0] * 3:
        figures.add("list_p99", THAW, value)
    assert judge(BY_KEY["list_p99"], figures).thaw == 50.0


def test_rows_are_unique_and_have_one_goal_at_most() -> None:
    assert len(BY_KEY) == len(ROWS)
    assert not [row.key for row in ROWS if row.ratio is not None and row.limit is not None]
