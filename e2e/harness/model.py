"""What may be true of a runtime that several clients use at once.

Each call has a beginning and an end. What happened before a question was asked must show in its
answer, what began after the answer came must not, and between the two either may be: `Model` keeps
these times, and judges answers by them. Times are of one monotonic clock, in seconds. Hypothesis
has state machines too, which take one step after the other; what is judged here are calls that
overlap.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from cri.api import v1_pb2 as v1

ORDER: Final[Mapping[int, int]] = {
    v1.CONTAINER_CREATED: 0,
    v1.CONTAINER_RUNNING: 1,
    v1.CONTAINER_EXITED: 2,
}
"""A container's states, which only go forward."""

KEPT: Final = 256
"""Pods that were removed and are still known in full; so an hour's judgements cost as much at its
end as at its beginning."""


@dataclass
class Span:
    """When something was first asked for, and when it was first known to be done."""

    asked: float = math.inf
    done: float = math.inf

    def ask(self, at: float) -> None:
        self.asked = min(self.asked, at)

    def finish(self, at: float) -> None:
        self.done = min(self.done, at)


@dataclass
class Object:
    """A pod sandbox or a container that a call made."""

    id: str
    pod: str = ""
    made: Span = field(default_factory=Span)
    started: Span = field(default_factory=Span)
    stopped: Span = field(default_factory=Span)
    removed: Span = field(default_factory=Span)
    seen: int = 0
    """The furthest state that an answer told, as `ORDER` counts."""
    seen_at: float = -math.inf


@dataclass
class Call:
    """One call under way; `ended` is set when its answer is there."""

    begun: float
    ended: float = math.inf


class Model:
    """What the clients did. Thread-safe; `wrong` collects what cannot be true."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.pods: dict[str, Object] = {}
        self.containers: dict[str, Object] = {}
        self.made: Counter[str] = Counter()
        """How many there were of each kind in all."""
        self.wrong: list[str] = []
        self.calls = 0
        self._gone: deque[str] = deque()
        """Pods that were removed and are still known, the oldest first."""
        self._forgotten: dict[str, float] = {}
        """When others were known to be removed."""
        self.lost: Counter[str] = Counter()
        """Calls that another client's had made impossible."""

    @contextmanager
    def call(self) -> Iterator[Call]:
        """A call's time; the answer is judged after the block."""
        made = Call(time.monotonic())
        try:
            yield made
        finally:
            made.ended = time.monotonic()
            with self._lock:
                self.calls += 1

    def made_pod(self, pod: str, call: Call) -> None:
        with self._lock:
            self._made("pods", self.pods, Object(pod), call)

    def made_container(self, container: str, pod: str, call: Call) -> None:
        with self._lock:
            place = self.pods.get(pod)
            if place is None:
                # Long gone, and the container with it.
                return
            known = self._made("containers", self.containers, Object(container, pod), call)
            # Its pod may be on its way out already.
            known.removed.ask(place.removed.asked)
            known.stopped.ask(min(place.stopped.asked, place.removed.asked))

    def _made(self, kind: str, objects: dict[str, Object], new: Object, call: Call) -> Object:
        if new.id not in objects and new.id not in self._forgotten:
            objects[new.id] = new
            self.made[kind] += 1
        # A call that is repeated with the same names may get the first one's.
        known = objects.get(new.id, new)
        known.made.ask(call.begun)
        known.made.finish(call.ended)
        return known

    def asked(self, kind: str, thing: str) -> None:
        """A client is about to start, stop or remove it, and with a pod its containers."""
        now = time.monotonic()
        with self._lock:
            for each in self._with_its_own(thing):
                getattr(each, kind).ask(now)
                if kind == "removed":
                    each.stopped.ask(now)

    def did(self, kind: str, thing: str, call: Call) -> None:
        """The same was answered with success."""
        with self._lock:
            for each in self._with_its_own(thing):
                # To stop what did not run yet changes nothing; what came later is not touched.
                before = each.started if kind == "stopped" and each.pod else each.made
                if before.done < call.begun:
                    getattr(each, kind).finish(call.ended)
            if kind == "removed" and thing in self.pods and thing not in self._gone:
                self._gone.append(thing)
                if len(self._gone) > KEPT:
                    self._forget(self._gone.popleft())

    def _forget(self, pod: str) -> None:
        for each in self._with_its_own(pod):
            self._forgotten[each.id] = each.removed.done
            (self.containers if each.pod else self.pods).pop(each.id)

    def _with_its_own(self, thing: str) -> list[Object]:
        if thing in self.pods:
            own = [each for each in self.containers.values() if each.pod == thing]
            return [self.pods[thing], *own]
        return [self.containers[thing]] if thing in self.containers else []

    def listed(self, objects: Mapping[str, Object], states: Mapping[str, int], call: Call) -> None:
        """Judge a list of all, with the state of each."""
        with self._lock:
            for thing in states:
                if self._forgotten.get(thing, math.inf) < call.begun:
                    self._say(f"{thing[:8]} was removed long ago and is listed")
            for thing, known in objects.items():
                if thing in states:
                    if known.removed.done < call.begun:
                        self._say(f"{thing[:8]} was removed and is listed")
                elif known.made.done < call.begun and known.removed.asked > call.ended:
                    self._say(f"{thing[:8]} is not listed")

    def told(self, container: str, state: int, call: Call) -> None:
        """Judge the state of a container in an answer."""
        rank = ORDER[state]
        with self._lock:
            known = self.containers.get(container)
            if known is None:
                return
            if rank < known.seen and known.seen_at < call.begun:
                self._say(f"{container[:8]} went back from state {known.seen} to {rank}")
            if rank == 0 and known.started.done < call.begun:
                self._say(f"{container[:8]} was started and is created")
            if rank < 2 and known.stopped.done < call.begun and known.started.done < call.begun:
                self._say(f"{container[:8]} was stopped and is in state {rank}")
            if rank == 1 and known.started.asked > call.ended:
                self._say(f"{container[:8]} runs, and nobody started it")
            if rank == 2 and known.stopped.asked > call.ended and known.started.done < math.inf:
                self._say(f"{container[:8]} ended, and nobody stopped it")
            if rank > known.seen:
                known.seen, known.seen_at = rank, call.ended

    def ran(self, container: str, call: Call) -> None:
        """Judge a command that ran in a container."""
        with self._lock:
            known = self.containers.get(container)
            if known is None:
                if self._forgotten.get(container, math.inf) < call.begun:
                    self._say(f"{container[:8]} ran a command after its end")
                return
            if known.started.asked > call.ended:
                self._say(f"{container[:8]} ran a command before its start")
            if known.stopped.done < call.begun:
                self._say(f"{container[:8]} ran a command after its end")

    def met(self, what: str) -> None:
        with self._lock:
            self.lost[what] += 1

    def failed(self, what: str) -> None:
        with self._lock:
            self._say(what)

    def _say(self, text: str) -> None:
        if len(self.wrong) < 50:
            self.wrong.append(text)
