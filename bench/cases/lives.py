"""One pod at a time, on a quiet machine with a full pool: up, exec, stop, remove."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from bench.images import BIG, ONE_LAYER
from bench.node import Node
from bench.pods import Pod, remove_all, true
from bench.rows import THAW
from bench.session import Session
from cri.api import thaw_pb2
from e2e.harness.refs import SLEEP

EXECS: Final = 5

MOST_WAITING: Final = 50
"""More pods are not started to empty a pool."""


@dataclass
class Calls:
    """When the client began each call of a pod's start, and how long it took; nanoseconds."""

    pod_id: str = ""
    steps: list[tuple[str, int, int]] = field(default_factory=list)

    @contextlib.contextmanager
    def call(self, name: str) -> Iterator[None]:
        begun = time.time_ns()
        yield
        self.steps.append((name, begun, time.time_ns() - begun))

    @property
    def total(self) -> int:
        return sum(took for _, _, took in self.steps)


def one_layer(session: Session) -> None:
    """Rows run, up1, first_exec, exec, remove; the timeline of one start."""
    seen: list[Calls] = []
    for _ in session.rounds(20, 4, 90):
        for node in session.nodes:
            session.quiet(node)
            calls = _life(session, node)
            if node.name == THAW:
                seen.append(calls)
    traces = {trace.pod_sandbox_id: trace for trace in session.thaw.client.traces()}
    known = sorted((c for c in seen if c.pod_id in traces), key=lambda calls: calls.total)
    if known:
        median = known[len(known) // 2]
        session.extra["timeline"] = timeline(median, traces[median.pod_id])


def _life(session: Session, node: Node) -> Calls:
    timed, client, calls = session.figures.timed, node.client, Calls()
    with timed("up1", node.name):
        with timed("run", node.name), calls.call("RunPodSandbox"):
            pod = Pod.run(node)
        with calls.call("CreateContainer"):
            container = pod.create(ONE_LAYER, SLEEP)
        with calls.call("StartContainer"):
            client.start_container(container)
    with timed("first_exec", node.name):
        true(node, container)
    for _ in range(EXECS):
        with timed("exec", node.name):
            true(node, container)
    with timed("remove", node.name):
        client.stop_container(container, 0)
        pod.remove()
    calls.pod_id = pod.id
    return calls


def timeline(calls: Calls, trace: thaw_pb2.Trace) -> list[dict[str, Any]]:
    """The client's calls and the daemon's steps on one axis, in milliseconds; calls first."""
    zero = min(begun for _, begun, _ in calls.steps)
    after = trace.started_at - zero
    rows: list[tuple[str, str, int, int]] = [
        ("client", name, begun - zero, took) for name, begun, took in calls.steps
    ]
    steps = sorted(trace.steps, key=lambda step: (step.offset_ns, -step.duration_ns))
    rows += [(THAW, step.name, step.offset_ns + after, step.duration_ns) for step in steps]
    return [
        {"who": who, "step": name, "begin_ms": begun / 1e6, "ms": took / 1e6}
        for who, name, begun, took in rows
    ]


def seven_layers(session: Session) -> None:
    """Row up7."""
    for _ in session.rounds(12, 3, 50):
        for node in session.nodes:
            session.quiet(node)
            with session.figures.timed("up7", node.name):
                pod = Pod.up(node, BIG)
            pod.remove()


def cni(session: Session) -> None:
    """Row run_cni: both with the same plugins."""
    with session.thaw.cni():
        for _ in session.rounds(15, 3, 45):
            for node in session.nodes:
                session.quiet(node)
                with session.figures.timed("run_cni", node.name):
                    pod = Pod.run(node)
                pod.remove()


def drained(session: Session) -> None:
    """Row drained: the pod that comes just after those that emptied the pool, while it is refilled.

    The peer has no pool: its pod comes alone.
    """
    for _ in session.rounds(8, 3, 40):
        for node in session.nodes:
            session.quiet(node)
            pods: list[Pod] = []
            if node.name == THAW:
                while session.thaw.pool().ready and len(pods) < MOST_WAITING:
                    pods.append(Pod.run(node))
            with session.figures.timed("drained", node.name):
                pods.append(Pod.up(node))
            remove_all(pods)
