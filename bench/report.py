"""The results file, and what is printed of it."""

from __future__ import annotations

import json
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from bench import peer
from bench.node import CNI_PLUGINS
from bench.rows import PEER, ROWS, THAW, Row, Verdict, judge
from bench.samples import Figures
from hostlib.process import ENVIRONMENT

FORMAT: Final = 2
"""Of the results file; `compare` refuses another."""

_CPU_NAME: Final = "model name"


def _output(*argv: str) -> str:
    """The first line that a command says; empty where it is not there."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, check=False, env=dict(ENVIRONMENT)
        )
    except FileNotFoundError:
        return ""
    return (done.stdout.splitlines() or [""])[0].strip()


def machine() -> dict[str, Any]:
    """The host, before anything is measured."""
    cpuinfo = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in cpuinfo if line.startswith(_CPU_NAME)]
    meminfo = Path("/proc/meminfo").read_text().split()
    return {
        "cpus": os.cpu_count(),
        "cpu": names[0] if names else platform.machine(),
        "memory_mib": int(meminfo[1]) // 1024,
        "load": list(os.getloadavg()),
        "kernel": platform.release(),
        "kvm": os.access("/dev/kvm", os.R_OK | os.W_OK),
    }


def versions() -> dict[str, str]:
    """Of Thaw and of all that the figures depend on."""
    here = Path(__file__).parent
    return {
        "thaw": _output("git", "-C", str(here), "describe", "--always", "--dirty"),
        "python": platform.python_version(),
        "qemu": _output("qemu-system-x86_64", "--version"),
        "containerd": _output(str(peer.BIN / "containerd"), "--version"),
        "runc": _output(str(peer.BIN / "runc"), "--version"),
        "cni_bridge": _output(f"{CNI_PLUGINS}/bridge", "--version"),
        "docker_registry": _output("docker-registry", "--version"),
        "wrk": _output("dpkg-query", "-W", "-f", "${Version}", "wrk"),
    }


def document(figures: Figures) -> dict[str, Any]:
    """The figures as they go into the results file, by row."""
    found = {}
    for row in ROWS:
        series = {who: figures.get((row.key, who)) for who in (THAW, PEER)}
        if not any(series.values()):
            continue
        verdict = judge(row, figures)
        found[row.key] = {
            "title": row.title,
            "unit": row.unit,
            "better": row.better,
            "statistic": row.statistic,
            **{who: each.to_dict() for who, each in series.items() if each is not None},
            "ratio": verdict.ratio,
            "goal": {"ratio": row.ratio, "limit": row.limit},
            "met": verdict.met,
        }
    return found


def write(target: Path, results: Mapping[str, Any]) -> None:
    """Write the results file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text(json.dumps(results, indent=1) + "\n")
    partial.replace(target)


def number(value: float | None) -> str:
    """Three digits that matter."""
    if value is None:
        return "-"
    size = abs(value)
    return f"{value:.0f}" if size >= 100 else f"{value:.1f}" if size >= 10 else f"{value:.2f}"


def goal(row: Row) -> str:
    """The goal in words; empty where a figure is only reported."""
    sign = "<=" if row.better == "less" else ">="
    if row.ratio is not None:
        return f"{sign} {row.ratio:g} x peer"
    return f"{sign} {row.limit:g} {row.unit}" if row.limit is not None else ""


def lines(figures: Figures) -> Iterator[str]:
    """The table for people."""
    yield (
        f"{'':40} {'Thaw':>8} {'containerd':>10}  {'unit':10} {'ratio':>6}"
        f"  {'goal':15} {'':7} spread (n)"
    )
    for row in ROWS:
        verdict = judge(row, figures)
        yield f"{row.title:40} {_values(verdict)} {_spreads(row, figures)}"


def _values(verdict: Verdict) -> str:
    row = verdict.row
    met = {True: "met", False: "MISSED", None: ""}[verdict.met]
    if verdict.thaw is None:
        met = "no data"
    return (
        f"{number(verdict.thaw):>8} {number(verdict.peer):>10}  {row.unit:10}"
        f" {number(verdict.ratio):>6}  {goal(row):15} {met:7}"
    )


def _spreads(row: Row, figures: Figures) -> str:
    parts = []
    for who in (THAW, PEER):
        if (series := figures.get((row.key, who))) is not None:
            low, high = number(min(series.values)), number(max(series.values))
            parts.append(f"{low}..{high} ({len(series.values)})")
    return " | ".join(parts)
