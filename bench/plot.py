"""The results as pictures, PNG and SVG; ``python -m bench.plot RESULTS.json`` draws them again."""

from __future__ import annotations

import json
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl

from bench.report import number
from bench.rows import BY_KEY, PEER, THAW, Row

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

MET: Final = "#2e8b57"
MISSED: Final = "#c8553d"
PLAIN: Final = "#7a8694"
COLOURS: Final = {THAW: "#1f6fb4", PEER: "#e08a1e", "client": "#9aa5b1"}
NAMES: Final = {THAW: "Thaw", PEER: "containerd + runc", "client": "the client's calls"}
INK: Final = "#222222"
HALO: Final = {"facecolor": "white", "edgecolor": "none", "pad": 1.5, "alpha": 0.85}
"""Behind a figure that may lie on a goal's line."""

LONGEST: Final = 3.0
"""A bar that exceeds its limit by more is cut."""

Results = Mapping[str, Any]


def draw(results: Results, target: Path) -> list[Path]:
    """Draw what the results have, beside `target`; the files."""
    charts: dict[str, Callable[[Results], Figure | None]] = {
        "peer": against_the_peer,
        "limits": against_limits,
        "timeline": timeline,
        "latency": latency,
        "memory": memory,
    }
    written = []
    with plt.rc_context({"font.size": 9, "svg.fonttype": "none", "text.color": INK}):
        for name, chart in charts.items():
            if (figure := chart(results)) is None:
                continue
            for suffix in ("png", "svg"):
                path = target.with_name(f"{target.stem}-{name}.{suffix}")
                figure.savefig(path, dpi=130, bbox_inches="tight", facecolor="white")
                written.append(path)
            plt.close(figure)
    return written


def _bare(axes: Axes, *, left: bool = False) -> None:
    axes.spines[["top", "right", *([] if left else ["left"])]].set_visible(False)
    axes.spines[["bottom"]].set_color("#bbbbbb")
    axes.tick_params(length=0)


def _title(axes: Axes, title: str, results: Results, note: str = "") -> None:
    machine = results["machine"]
    axes.set_title(title, loc="left", fontsize=13, fontweight="bold", pad=18)
    accelerator = str(results["extra"].get("accelerator", "")).partition(":")[0]
    under = (
        f"{machine['cpus']} cores, {machine['cpu']}"
        + (f", guests under {accelerator.upper()}" if accelerator else "")
        + f", load {machine['load'][0]:.1f} at the start. {note}"
    )
    axes.text(0, 1.0, under, transform=axes.transAxes, fontsize=8, color="#666666", va="bottom")


def cost(row: Row, ratio: float) -> float:
    """A ratio to the peer as a cost: a rate that is twice the peer's costs half."""
    return ratio if row.better == "less" else 1 / ratio


def _label_place(value: float, goal: float) -> float:
    """Beyond the end of a bar, or beyond its goal's line where that is in the label's way."""
    near = abs(math.log(goal / value)) < 0.33
    if value >= 1:
        return max(value, goal) if near else value
    return min(value, goal) if near else value


def _verdict_colour(met: bool | None) -> str:
    return PLAIN if met is None else MET if met else MISSED


def against_the_peer(results: Results) -> Figure | None:
    """A bar for each row that the peer has too: how far from the peer, and from the goal."""
    rows = [
        (BY_KEY[key], found)
        for key, found in results["figures"].items()
        if found["ratio"] and BY_KEY[key].limit is None
    ]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(10.5, 0.42 * len(rows) + 1.3))
    axes.set_xscale("log")
    for place, (row, found) in enumerate(rows):
        value = cost(row, found["ratio"])
        axes.barh(place, value - 1, left=1, height=0.62, color=_verdict_colour(found["met"]))
        if row.ratio is not None:
            goal = cost(row, row.ratio)
            axes.plot([goal, goal], [place - 0.42, place + 0.42], color=INK, linewidth=2.2)
        axes.annotate(
            f"{found['ratio']:.2f} x" if found["ratio"] < 10 else f"{found['ratio']:.1f} x",
            (_label_place(value, cost(row, row.ratio) if row.ratio else value), place),
            xytext=(5 if value >= 1 else -5, 0),
            textcoords="offset points",
            ha="left" if value >= 1 else "right",
            va="center",
            fontweight="bold",
            bbox=HALO,
            zorder=5,
        )
        axes.text(
            1.01,
            place,
            f"{number(_value(found, THAW))} / {number(_value(found, PEER))} {row.unit}"
            + (
                f"   goal {'<=' if row.better == 'less' else '>='} {row.ratio:g} x"
                if row.ratio
                else ""
            ),
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
    costs = [cost(row, found["ratio"]) for row, found in rows]
    goals = [cost(row, row.ratio) for row, _ in rows if row.ratio is not None]
    axes.set_xlim(min([0.25, *costs, *goals]) / 1.7, max([2.0, *costs, *goals]) * 1.7)
    axes.set_yticks(range(len(rows)), [row.title for row, _ in rows])
    axes.invert_yaxis()
    axes.axvline(1, color=INK, linewidth=1)
    axes.xaxis.set_major_locator(LogLocator(base=2))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g} x"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(
        "Thaw's cost / containerd's: left of 1 Thaw is cheaper (a higher rate is cheaper)"
    )
    axes.legend(
        handles=[
            Patch(color=MET, label="goal met"),
            Patch(color=MISSED, label="goal missed"),
            Patch(color=PLAIN, label="no goal"),
            Line2D([], [], color=INK, linewidth=2.2, label="goal"),
        ],
        loc="upper center",
        bbox_to_anchor=(0.5, -0.55 / (0.42 * len(rows))),
        ncols=4,
        frameon=False,
    )
    _bare(axes)
    _title(axes, "Thaw beside containerd + runc", results, "Medians; right: Thaw / containerd.")
    return figure


def _value(found: Mapping[str, Any], who: str) -> float:
    return float(found[who][found["statistic"]])


def against_limits(results: Results) -> Figure | None:
    """A bar for each row with a limit of its own, as a part of that limit."""
    rows = [
        (BY_KEY[key], found)
        for key, found in results["figures"].items()
        if BY_KEY[key].limit and THAW in found
    ]
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(10.5, 0.42 * len(rows) + 1.3))
    longest = 1.0
    for place, (row, found) in enumerate(rows):
        assert row.limit is not None
        value = _value(found, THAW)
        part = max(0.0, value / row.limit)
        longest = max(longest, min(part, LONGEST))
        axes.barh(place, min(part, LONGEST), height=0.62, color=_verdict_colour(found["met"]))
        sign = "<=" if row.better == "less" else ">="
        axes.annotate(
            f"{number(value)} {row.unit}",
            (min(part, LONGEST), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontweight="bold",
            bbox=HALO,
            zorder=5,
        )
        axes.text(
            1.01,
            place,
            f"goal {sign} {row.limit:g} {row.unit}",
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(rows)), [row.title for row, _ in rows])
    axes.set_xlim(0, longest * 1.2)
    axes.invert_yaxis()
    axes.axvline(1, color=INK, linewidth=2.2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:.0%}"))
    axes.set_xlabel("of the goal (the black line); a speed-up is to lie right of it, all else left")
    _bare(axes)
    _title(axes, "Thaw's own limits", results)
    return figure


def timeline(results: Results) -> Figure | None:
    """Where the milliseconds of one pod start go."""
    steps: Sequence[Mapping[str, Any]] = results["extra"].get("timeline") or []
    if not steps:
        return None
    figure, axes = plt.subplots(figsize=(10.5, 0.3 * len(steps) + 1.2))
    end = max(step["begin_ms"] + step["ms"] for step in steps)
    for place, step in enumerate(steps):
        colour = COLOURS[step["who"]]
        # What takes no time is still to be seen.
        axes.barh(
            place, max(step["ms"], end / 400), left=step["begin_ms"], height=0.7, color=colour
        )
        last = step["begin_ms"] + step["ms"]
        inside = last > 0.85 * end
        axes.annotate(
            f"{step['ms']:.1f} ms" if step["ms"] >= 0.05 else f"{step['ms'] * 1000:.0f} µs",
            (step["begin_ms"] if inside else last, place),
            xytext=(-4 if inside else 4, 0),
            textcoords="offset points",
            ha="right" if inside else "left",
            va="center",
            fontsize=8,
        )
    axes.set_yticks(range(len(steps)), [_step_name(step) for step in steps])
    axes.invert_yaxis()
    axes.set_xlim(-0.09 * end, end * 1.02)
    axes.set_xlabel("ms since the client called RunPodSandbox")
    axes.grid(axis="x", color="#eeeeee")
    axes.set_axisbelow(True)
    present = {step["who"] for step in steps}
    axes.legend(
        handles=[Patch(color=COLOURS[who], label=NAMES[who]) for who in COLOURS if who in present],
        loc="upper right",
        frameon=False,
    )
    _bare(axes)
    _title(axes, "One pod's start, step by step", results, "The start with the median time.")
    return figure


def _step_name(step: Mapping[str, Any]) -> str:
    name = str(step["step"])
    return name if step["who"] == "client" else "   " * (1 + name.count(".")) + name


Curves = Mapping[str, Sequence[Mapping[str, Any]]]


def _curves(results: Results) -> Curves:
    found: Curves = results["extra"].get("growth") or {}
    return {who: points for who, points in found.items() if points}


def _curve(axes: Axes, curves: Curves, key: str, title: str, unit: str) -> None:
    ends: list[tuple[float, int, str]] = []
    for who, points in curves.items():
        known = [point for point in points if key in point]
        if not known:
            continue
        samples = [point[key] if isinstance(point[key], list) else [point[key]] for point in known]
        counts = [point["pods"] for point in known]
        middle = [statistics.median(each) for each in samples]
        axes.plot(counts, middle, marker="o", markersize=4, color=COLOURS[who], label=NAMES[who])
        if any(len(each) > 1 for each in samples):
            low, high = [min(each) for each in samples], [max(each) for each in samples]
            axes.fill_between(counts, low, high, color=COLOURS[who], alpha=0.15, linewidth=0)
        ends.append((middle[-1], counts[-1], who))
    axes.set_title(title, loc="left", fontsize=10)
    axes.set_xlabel("pods on the node")
    axes.set_ylabel(unit)
    axes.margins(x=0.14)
    height, shift = 1.12 * axes.dataLim.y1, 0
    axes.set_ylim(0, height or 1)
    for place, (value, count, who) in enumerate(sorted(ends)):
        if place and value - sorted(ends)[place - 1][0] < 0.06 * height:
            shift = 10
        axes.annotate(
            number(value),
            (count, value),
            xytext=(6, shift),
            textcoords="offset points",
            va="center",
            color=COLOURS[who],
            fontweight="bold",
        )
    axes.grid(color="#eeeeee")
    _bare(axes, left=True)


def _panels(results: Results, title: str, panels: Sequence[tuple[str, str, str]]) -> Figure | None:
    curves = _curves(results)
    present = {key for points in curves.values() for point in points for key in point}
    panels = [panel for panel in panels if panel[0] in present]
    if not panels:
        return None
    figure, places = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.6), squeeze=False)
    for axes, (key, name, unit) in zip(places[0], panels, strict=True):
        _curve(axes, curves, key, name, unit)
    places[0][0].legend(frameon=False, loc="best")
    figure.suptitle(title, x=0.01, ha="left", fontsize=13, fontweight="bold")
    figure.tight_layout()
    return figure


def latency(results: Results) -> Figure | None:
    """Latency against the number of pods."""
    return _panels(
        results,
        "Latency against the number of pods",
        [
            ("up_ms", "one more pod up (band: least to most)", "ms"),
            ("list_ms", "ListPodSandbox + ListContainers", "ms"),
            ("adoption_ms", "thawd's start, all pods known again", "ms"),
        ],
    )


def memory(results: Results) -> Figure | None:
    """Memory, threads and open files against the number of pods."""
    ended = results["extra"].get("growth_ended") or {}
    note = f" ({ended['why']} ended after {ended['fits']})" if ended else ""
    return _panels(
        results,
        f"Memory, threads and open files against the number of pods{note}",
        [
            ("private_mib", "private memory, all processes", "MiB"),
            ("daemon_mib", "the daemon's resident memory", "MiB"),
            ("tasks", "threads, all processes", "threads"),
            ("files", "open files, all processes", "files"),
        ],
    )


if __name__ == "__main__":
    source = Path(sys.argv[1])
    for path in draw(json.loads(source.read_text()), source):
        print(path)
