"""Samples and what is said of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Series:
    """Values of one figure, in `unit`, in the order in which they were measured."""

    unit: str
    values: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.values)

    def to_dict(self) -> dict[str, object]:
        return {
            "unit": self.unit,
            "n": len(self.values),
            "median": self.median,
            "min": min(self.values),
            "max": max(self.values),
            "samples": self.values,
        }


class Figures(dict[str, Series]):
    """Series by name."""

    def add(self, name: str, value: float, unit: str) -> None:
        self.setdefault(name, Series(unit)).values.append(value)

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time that the block took, in milliseconds, unless it fails."""
        start = time.perf_counter()
        yield
        self.add(name, (time.perf_counter() - start) * 1000, "ms")
