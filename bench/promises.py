"""What SPECIFICATION.md promises in figures: Thaw's own values, whatever the peer does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

from bench.rows import BY_KEY, THAW
from bench.samples import Figures


@dataclass(frozen=True)
class Promise:
    """`row`, divided by the row `by` where there is one, compared with `bound`."""

    text: str
    row: str
    relation: Literal["<=", ">="]
    bound: float
    by: str = ""

    def value(self, figures: Figures) -> float | None:
        """What came out; None where it was not measured."""
        found = []
        for key in (self.row, self.by):
            if key:
                series = figures.get((key, THAW))
                if series is None:
                    return None
                found.append(BY_KEY[key].value(series))
        return found[0] / found[1] if self.by else found[0]

    def met(self, value: float) -> bool:
        return value <= self.bound if self.relation == "<=" else value >= self.bound


PROMISES: Final = (
    Promise("cold boot / restore, to the agent's answer", "restore_speedup", ">=", 30.0),
    Promise("pod up: from the pool / restored on the spot", "up1", "<=", 1 / 3, by="drained"),
    Promise("ExecSync true, ms", "exec", "<=", 15.0),
    Promise("idle pod, translated code included, MiB", "idle_memory", "<=", 60.0),
)


def document(figures: Figures) -> list[dict[str, Any]]:
    """The promises that were measured, as they go into the results file."""
    return [
        {
            "promise": each.text,
            "value": value,
            "relation": each.relation,
            "bound": each.bound,
            "met": each.met(value),
        }
        for each in PROMISES
        if (value := each.value(figures)) is not None
    ]
