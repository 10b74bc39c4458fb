"""Samples and what is said of them."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Series:
    """Values of one figure, in `unit`, in the order in which they were measured."""

    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    @property
    def spread(self) -> float:
        """The median of the distances from the median (MAD)."""
        middle = self.median
        return statistics.median(abs(value - middle) for value in self.values)

    def percentile(self, percent: float) -> float:
        """The least value that at least `percent` of all do not exceed (nearest rank)."""
        ordered = sorted(self.values)
        return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]

    def to_dict(self) -> dict[str, Any]:
        return {
            "n": len(self.values),
            "median": self.median,
            "spread": self.spread,
            "p99": self.percentile(99),
            "min": min(self.values),
            "max": max(self.values),
            "samples": self.values,
        }


class Figures(dict[tuple[str, str], Series]):
    """Series by row and by the name of who was measured."""

    def add(self, row: str, who: str, value: float, unit: str = "ms") -> None:
        self.setdefault((row, who), Series(unit)).values.append(value)

    @contextmanager
    def timed(self, row: str, who: str) -> Iterator[None]:
        """Add the time that the block took, in milliseconds, unless it fails."""
        start = time.perf_counter()
        yield
        self.add(row, who, (time.perf_counter() - start) * 1000)
