from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import compare
from bench.report import FORMAT
from bench.rows import BY_KEY, PEER, THAW
from bench.samples import Series
from hostlib.errors import InvalidArgument


def _figure(row: str, thaw: list[float], peer: list[float] | None = None) -> dict[str, Any]:
    found = BY_KEY[row]
    sides = {THAW: thaw} if peer is None else {THAW: thaw, PEER: peer}
    return {
        "title": found.title,
        "unit": found.unit,
        "better": found.better,
        "statistic": found.statistic,
        "goal": {"ratio": found.ratio, "limit": found.limit},
        **{who: Series(found.unit, values).to_dict() for who, values in sides.items()},
    }


STEADY = [10.0, 10.1, 9.9, 10.0, 10.1]


def _times(factor: float, values: list[float] = STEADY) -> list[float]:
    return [value * factor for value in values]


@pytest.mark.parametrize(
    ("factor", "outcome"),
    [(1.0, "same"), (1.05, "same"), (1.3, "worse"), (0.95, "same"), (0.7, "better")],
)
def test_a_change_beyond_the_floor_counts(factor: float, outcome: str) -> None:
    found = compare.change(_figure("cold_boot", STEADY), _figure("cold_boot", _times(factor)))
    assert found.outcome == outcome


def test_more_may_be_better() -> None:
    before = _figure("log_rate", STEADY)
    assert compare.change(before, _figure("log_rate", _times(1.3))).outcome == "better"
    assert compare.change(before, _figure("log_rate", _times(0.7))).outcome == "worse"


def test_noise_hides_a_change() -> None:
    noisy = [5.0, 10.0, 15.0, 20.0, 9.0, 11.0]
    found = compare.change(_figure("run", noisy), _figure("run", _times(1.3, noisy)))
    assert found.threshold > 0.3
    assert found.outcome == "same"


def test_many_samples_show_what_few_hide() -> None:
    noisy = [8.0, 10.0, 12.0, 9.0, 11.0]
    few = compare.change(_figure("run", noisy), _figure("run", _times(1.3, noisy)))
    many = compare.change(_figure("run", noisy * 20), _figure("run", _times(1.3, noisy * 20)))
    assert (few.outcome, many.outcome) == ("same", "worse")


def test_a_slower_machine_is_taken_out() -> None:
    before = _figure("run", STEADY, STEADY)
    assert compare.change(before, _figure("run", _times(2), _times(2))).outcome == "same"
    assert compare.change(before, _figure("run", STEADY, _times(0.5))).outcome == "worse"


def test_single_samples_must_differ_by_half() -> None:
    before = _figure("pull_cold", [100.0])
    assert compare.change(before, _figure("pull_cold", [140.0])).outcome == "same"
    assert compare.change(before, _figure("pull_cold", [160.0])).outcome == "worse"


def test_a_first_lost_line_is_worse() -> None:
    before, after = _figure("log_lost", [0.0, 0.0, 0.0]), _figure("log_lost", [2.0, 2.0, 2.0])
    assert compare.change(before, after).outcome == "worse"
    assert compare.change(after, before).outcome == "better"
    assert compare.change(before, before).outcome == "same"


@pytest.mark.parametrize(
    ("old", "new", "outcome"),
    [(-3.0, 0.1, "same"), (0.1, -3.0, "same"), (-1.0, 9.0, "worse"), (9.0, 0.0, "better")],
)
def test_growth_below_zero_is_judged_by_its_limit(old: float, new: float, outcome: str) -> None:
    before, after = (_figure("lives_growth", [value], [-value]) for value in (old, new))
    assert compare.change(before, after).outcome == outcome


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=30))
def test_nothing_is_worse_than_itself(values: list[float]) -> None:
    figure = _figure("run", values, values)
    assert compare.change(figure, figure).outcome == "same"


def _file(path: Path, figures: dict[str, Any], **fields: Any) -> Path:
    machine = {"cpus": 2, "cpu": "x", "kernel": "6", "kvm": False, **fields}
    path.write_text(json.dumps({"format": FORMAT, "machine": machine, "figures": figures}))
    return path


def _main(monkeypatch: pytest.MonkeyPatch, *files: Path) -> int:
    monkeypatch.setattr("sys.argv", ["compare", *map(str, files)])
    return compare.main()


def test_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    old = _file(tmp_path / "a.json", {"run": _figure("run", STEADY), "exec": _figure("exec", [1])})
    new = _file(tmp_path / "b.json", {"run": _figure("run", _times(2))}, kernel="7")
    assert _main(monkeypatch, old, new) == 1
    out = capsys.readouterr().out
    assert "WORSE" in out
    assert "note: kernel differs: 6 -> 7" in out
    assert "ExecSync true" in out.split("only in")[0].splitlines()[-1]
    assert _main(monkeypatch, new, new) == 0


def test_other_files_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "x.json"
    other.write_text('{"format": 1}')
    with pytest.raises(InvalidArgument, match="no results file of format"):
        compare.load(other)
    assert _main(monkeypatch, other, tmp_path / "missing.json") == 2
    assert "error: " in capsys.readouterr().err
