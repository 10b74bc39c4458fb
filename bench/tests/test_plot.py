from __future__ import annotations

from pathlib import Path
from typing import Any

from bench import plot, report
from bench.rows import BY_KEY, PEER, ROWS, THAW
from bench.samples import Figures


def _results(figures: Figures, **extra: Any) -> dict[str, Any]:
    return {
        "machine": {"cpus": 2, "cpu": "x", "load": [0.5, 0.5, 0.5]},
        "figures": report.document(figures),
        "extra": {"accelerator": "tcg: no kvm", **extra},
    }


def _figures() -> Figures:
    figures = Figures()
    for row in ROWS:
        figures.add(row.key, THAW, 3.0, row.unit)
        figures.add(row.key, PEER, 4.0, row.unit)
    return figures


def test_every_chart_is_drawn(tmp_path: Path) -> None:
    point = {"pods": 1, "up_ms": [1.0, 2.0], "list_ms": 1.0, "private_mib": 5.0, "daemon_mib": 6.0}
    results = _results(
        _figures(),
        timeline=[{"who": "client", "step": "RunPodSandbox", "begin_ms": 0.0, "ms": 3.0}],
        growth={THAW: [{**point, "adoption_ms": 9.0}], PEER: [point]},
    )
    written = plot.draw(results, tmp_path / "r.json")
    assert {path.name for path in written} == {
        f"r-{name}.{suffix}"
        for name in ("peer", "limits", "timeline", "latency", "memory")
        for suffix in ("png", "svg")
    }
    assert all(path.stat().st_size > 1000 for path in written)
    assert "RunPodSandbox, CNI bridge" in (tmp_path / "r-peer.svg").read_text()


def test_what_is_missing_is_not_drawn(tmp_path: Path) -> None:
    assert plot.draw(_results(Figures()), tmp_path / "r.json") == []


def test_a_rate_is_turned_into_a_cost() -> None:
    assert plot.cost(BY_KEY["run"], 0.5) == 0.5
    assert plot.cost(BY_KEY["log_rate"], 0.5) == 2.0


def test_the_table_says_what_was_not_measured() -> None:
    figures = Figures()
    figures.add("run", THAW, 20.0)
    figures.add("run", PEER, 40.0)
    lines = {line.split("  ")[0]: line for line in report.lines(figures)}
    assert "MISSED" in lines["RunPodSandbox, built-in network"]
    assert "0.50" in lines["RunPodSandbox, built-in network"]
    assert "no data" in lines["RunPodSandbox, CNI bridge"]


def test_results_are_written_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "r.json"
    report.write(target, {"a": 1})
    assert target.read_text() == '{\n "a": 1\n}\n'
    assert [path.name for path in target.parent.iterdir()] == ["r.json"]
