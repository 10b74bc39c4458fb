"""``bench/compare A.json B.json``: what got slower from A to B, beyond noise.

The rule: of each row, the change is Thaw's value in B by that in A. Where both runs measured the
peer, whose code is the same, its change is taken out: a slower machine slows both. The noise of a
median is 1.25 x 1.48 x MAD / sqrt(n), the standard error that it has for normal samples; the noise
of the change is the root of the sum of squares of all medians' relative noises. A row got worse, or
better, when its change exceeds 10 % and 3 x its noise; with fewer than 3 samples on either side it
exceeds 50 % too. A value that is 0 or less in one run (lines lost, growth of memory) has no factor:
it got worse when it exceeds the row's own limit in B and not in A.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from bench.report import FORMAT, number
from bench.rows import PEER, THAW
from hostlib.errors import InvalidArgument, ThawError

FLOOR: Final = 0.10
FEW: Final = 3
FEW_FLOOR: Final = 0.50
SIGMAS: Final = 3.0
_MEDIAN_ERROR: Final = 1.25 * 1.48

Figure = Mapping[str, Any]
Outcome = Literal["worse", "better", "same"]


@dataclass(frozen=True)
class Change:
    """How one row moved; `factor` is B by A with the peer's change taken out."""

    title: str
    unit: str
    before: float
    after: float
    factor: float
    threshold: float
    outcome: Outcome


def value_of(figure: Figure, who: str) -> float:
    return float(figure[who]["p99" if figure["statistic"] == "p99" else "median"])


def noise_of(figure: Figure, who: str) -> float:
    """The relative noise of a median; without bound where the median is 0."""
    series = figure[who]
    if not series["median"]:
        return math.inf
    error = _MEDIAN_ERROR * float(series["spread"]) / math.sqrt(series["n"])
    return error / abs(float(series["median"]))


def change(before: Figure, after: Figure) -> Change:
    """Compare one row that both runs have."""
    old, new = value_of(before, THAW), value_of(after, THAW)
    title, unit = str(after["title"]), str(after["unit"])
    if old <= 0 or new <= 0:
        return Change(title, unit, old, new, 1.0, 0.0, _by_limit(old, new, after))
    sides = [(before, THAW), (after, THAW)]
    factor = new / old
    if all(PEER in each and value_of(each, PEER) > 0 for each in (before, after)):
        factor /= value_of(after, PEER) / value_of(before, PEER)
        sides += [(before, PEER), (after, PEER)]
    noise = math.sqrt(sum(noise_of(figure, who) ** 2 for figure, who in sides))
    few = min(figure[who]["n"] for figure, who in sides) < FEW
    threshold = max(FEW_FLOOR if few else FLOOR, SIGMAS * noise)
    # Twice as fast and half as fast are as far from the same.
    if abs(math.log(factor)) <= math.log1p(threshold):
        return Change(title, unit, old, new, factor, threshold, "same")
    return Change(title, unit, old, new, factor, threshold, _direction(factor - 1, after))


def _direction(difference: float, figure: Figure) -> Outcome:
    return "worse" if (difference > 0) == (figure["better"] == "less") else "better"


def _by_limit(old: float, new: float, figure: Figure) -> Outcome:
    limit = figure["goal"]["limit"]
    if limit is None or (old > limit) == (new > limit):
        return "same"
    return _direction(new - old, figure)


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[Change]:
    """Every row that Thaw has in both runs."""
    for key, figure in after["figures"].items():
        old = before["figures"].get(key)
        if old is not None and THAW in figure and THAW in old:
            yield change(old, figure)


def missing(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[str]:
    """The rows that only A has."""
    return [
        str(figure["title"])
        for key, figure in before["figures"].items()
        if THAW in figure and THAW not in after["figures"].get(key, {})
    ]


def load(path: Path) -> dict[str, Any]:
    """Read a results file. Raises `InvalidArgument`."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"{path}: {error}", hint="make bench writes such files") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise InvalidArgument(f"{path} is no results file of format {FORMAT}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="bench/compare", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("before", type=Path, metavar="A.json")
    parser.add_argument("after", type=Path, metavar="B.json")
    options = parser.parse_args()
    try:
        before, after = load(options.before), load(options.after)
    except ThawError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for key in ("cpus", "cpu", "kernel", "kvm"):
        if before["machine"][key] != after["machine"][key]:
            print(f"note: {key} differs: {before['machine'][key]} -> {after['machine'][key]}")
    worse = 0
    for each in compare(before, after):
        worse += each.outcome == "worse"
        mark = "" if each.outcome == "same" else each.outcome.upper()
        print(
            f"{each.title:40} {number(each.before):>8} -> {number(each.after):>8} {each.unit:10}"
            f" x {each.factor:5.2f}  noise {each.threshold:6.0%}  {mark}"
        )
    for title in missing(before, after):
        print(f"{title:40} only in {options.before}")
    print(f"{worse} rows got worse beyond noise; the factor has the peer's own change taken out")
    return 1 if worse else 0


if __name__ == "__main__":
    sys.exit(main())
