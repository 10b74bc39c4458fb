"""Where the start of a pod spends its time: the last starts, in memory, for Thaw.Trace."""

from __future__ import annotations

import contextlib
import time
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

KEPT: Final = 256
MAX_STEPS: Final = 128


@dataclass
class Step:
    """A step that ended; times in nanoseconds."""

    name: str
    offset_ns: int
    duration_ns: int
    error: str = ""


@dataclass
class Trace:
    """The steps of one pod's start, in the order in which they ended."""

    pod_id: str
    name: str
    namespace: str
    started_at: int = field(default_factory=time.time_ns)
    steps: list[Step] = field(default_factory=list)
    _zero: int = field(default_factory=time.monotonic_ns)

    @contextlib.contextmanager
    def step(self, name: str) -> Iterator[None]:
        """Time what runs in the block."""
        begun = time.monotonic_ns()
        error = ""
        try:
            yield
        except BaseException as failure:
            error = str(failure) or type(failure).__name__
            raise
        finally:
            self.add(name, begun - self._zero, time.monotonic_ns() - begun, error)

    def add(self, name: str, offset_ns: int, duration_ns: int, error: str = "") -> None:
        """Note a step that was timed elsewhere."""
        if len(self.steps) < MAX_STEPS:
            self.steps.append(Step(name, offset_ns, duration_ns, error))

    def add_parts(self, name: str, begun_ns: int, timings: Mapping[str, int]) -> None:
        """Note the steps within `name` that a shim timed, in nanoseconds, one after the other from
        `begun_ns`."""
        for part, took in timings.items():
            self.add(f"{name}.{part}", begun_ns, took)
            begun_ns += took

    def elapsed(self) -> int:
        """Nanoseconds since the start."""
        return time.monotonic_ns() - self._zero


class Traces:
    """The last `KEPT` starts."""

    def __init__(self) -> None:
        self._traces: OrderedDict[str, Trace] = OrderedDict()

    def begin(self, pod_id: str, name: str, namespace: str) -> Trace:
        trace = Trace(pod_id, name, namespace)
        self._traces[pod_id] = trace
        while len(self._traces) > KEPT:
            self._traces.popitem(last=False)
        return trace

    def of(self, pod_id: str) -> Trace | None:
        return self._traces.get(pod_id)

    def find(self, prefix: str) -> list[Trace]:
        """Those whose pod's id begins with `prefix`, newest first."""
        found = [trace for key, trace in self._traces.items() if key.startswith(prefix)]
        return found[::-1]
