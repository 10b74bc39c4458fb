"""One run of the benchmarks: the nodes, the figures, and how long each case may take."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bench.cpu import Gate
from bench.node import Node
from bench.peer import Peer
from bench.samples import Figures
from bench.thaw import Thaw
from hostlib import errors

FEWEST: Final = 3
"""Rounds that a case takes even when its own time is over, while the run's is not."""


@dataclass
class Session:
    """What the cases share."""

    thaw: Thaw
    peer: Peer | None
    gate: Gate
    quick: bool
    say: Callable[[str], None]
    deadline: float = math.inf
    """When the run's time is over, on the monotonic clock; then each case takes one round."""

    points: Sequence[int] = ()
    """Numbers of pods for the case growth, where the run names them."""

    figures: Figures = field(default_factory=Figures)
    extra: dict[str, Any] = field(default_factory=dict)
    """What is no figure: growth, the timeline, remarks."""

    @property
    def nodes(self) -> list[Node]:
        """Who is measured, in the order of alternation."""
        return [self.thaw] if self.peer is None else [self.thaw, self.peer]

    def quiet(self, node: Node) -> None:
        """Wait until the node has done what it does in the background, then for a quiet machine."""
        node.settle()
        self.gate.wait()

    def pick(self, full: int, quick: int) -> int:
        """A number that depends on the kind of run."""
        return quick if self.quick else full

    def late(self) -> bool:
        """Whether the run's time is over."""
        return time.monotonic() > self.deadline

    def rounds(
        self, full: int, quick: int, seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> Iterator[int]:
        """Count rounds: `full` or `quick` many, fewer when `seconds` or the run's are over."""
        begun = clock()
        for number in range(self.pick(full, quick)):
            now = clock()
            if (number >= FEWEST and now - begun > seconds) or (number and now > self.deadline):
                return
            yield number

    def clear(self) -> None:
        """Remove the pods that a failed case left."""
        for node in self.nodes:
            with contextlib.suppress(errors.ThawError, AssertionError):
                for pod in node.client.pods():
                    node.client.stop_pod(pod.id)
                    node.client.remove_pod(pod.id)
