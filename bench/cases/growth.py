"""How cost grows with the number of pods: start, lists, memory, adoption; idle pods and thawd."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import Any, Final

from bench import memory
from bench.cpu import Usage, open_files, scheduled, tasks
from bench.images import ONE_LAYER
from bench.node import Node
from bench.pods import Pod, remove_all
from bench.rows import THAW
from bench.samples import Series
from bench.session import Session
from e2e.harness.refs import SLEEP

POINTS: Final = (1, 10, 20, 50, 100)
QUICK_POINTS: Final = (1, 10, 20)
LISTED: Final = 200
"""Containers for the rows list_p99*."""

LISTS: Final = 200
RESERVE_MIB: Final = 3000.0
"""No more pods are made when less memory than this is available: enough for the pods of the calls
under way and for a pool that is filled again, about 70 MiB each."""

TIME, MEMORY = "time", "memory"

SETTLE_SECONDS: Final = 2.0


def measure(session: Session) -> None:
    """Rows idle_*, daemon_*, adoption50, list_p99*; the curves."""
    pods: dict[str, list[Pod]] = {node.name: [] for node in session.nodes}
    curves: dict[str, list[dict[str, Any]]] = {node.name: [] for node in session.nodes}
    session.extra["growth"] = curves
    _start(session)
    points: Sequence[int] = session.points or (QUICK_POINTS if session.quick else POINTS)
    for point in points:
        ended = [_fill(session, node, pods[node.name], point) for node in session.nodes]
        if why := next(filter(None, ended), ""):
            fits = len(pods[session.thaw.name])
            session.say(f"{why} ends after {fits} pods, before {point}")
            session.extra["growth_ended"] = {"why": why, "fits": fits, "asked": point}
        if why == TIME:
            break
        for node in session.nodes:
            curve = curves[node.name]
            if not curve or curve[-1]["pods"] < len(pods[node.name]):
                curve.append(_point(session, node, pods[node.name]))
        if why:
            # As many as fit: the curves' last point.
            break
        if point == 20:
            _idle(session, pods)
        if point == 50:
            _fifty(session)
    if not (session.quick or session.late()):
        _lists(session, pods)
    for each in pods.values():
        remove_all(each)


def _start(session: Session) -> None:
    """Rows daemon_start, daemon_memory_0."""
    for _ in range(session.pick(5, 3)):
        session.quiet(session.thaw)
        session.figures.add("daemon_start", THAW, session.thaw.restart())
    for node in session.nodes:
        session.quiet(node)
        resident = memory.resident_mib(node.daemon_pid())
        session.figures.add("daemon_memory_0", node.name, resident, "MiB")


def _fill(session: Session, node: Node, pods: list[Pod], count: int) -> str:
    """Make pods until there are `count`; what is over before, time (but not before the first one)
    or memory."""
    while len(pods) < count:
        if pods and session.late():
            return TIME
        if memory.available_mib() < RESERVE_MIB:
            return MEMORY
        pods.append(Pod.up(node))
    return ""


def _point(session: Session, node: Node, pods: Sequence[Pod]) -> dict[str, Any]:
    starts = []
    for _ in session.rounds(5, 2, 30):
        session.quiet(node)
        begun = time.perf_counter()
        pod = Pod.up(node)
        starts.append((time.perf_counter() - begun) * 1000)
        pod.remove()
    session.quiet(node)
    lists = Series("ms", [_list(node) for _ in range(30)])
    pids = node.pids()
    point: dict[str, Any] = {
        "pods": len(pods),
        "up_ms": starts,
        "list_ms": lists.median,
        "list_p99_ms": lists.percentile(99),
        "daemon_mib": memory.resident_mib(node.daemon_pid()),
        "private_mib": memory.of(*pids).private,
        "tasks": sum(map(tasks, pids)),
        "files": sum(map(open_files, pids)),
        "daemon_files": open_files(node.daemon_pid()),
    }
    if node.name == THAW:
        point["adoption_ms"] = session.thaw.restart()
    return point


def _list(node: Node) -> float:
    """Milliseconds for what the kubelet asks each second."""
    begun = time.perf_counter()
    node.client.pods()
    node.client.containers()
    return (time.perf_counter() - begun) * 1000


def _idle(session: Session, pods: dict[str, list[Pod]]) -> None:
    """Rows idle_*: both are idle at the same time, so both are watched at the same time."""
    for node in session.nodes:
        session.quiet(node)
    time.sleep(SETTLE_SECONDS)
    for _ in range(session.pick(4, 2)):
        usages = {node.name: Usage(node.pids()) for node in session.nodes}
        time.sleep(5)
        for name, usage in usages.items():
            session.figures.add("idle_cpu", name, usage.percent(), "%")
    for node in session.nodes:
        for pod in pods[node.name]:
            shim, others = node.pod_pids(pod.id)
            own, rest = memory.of(*shim), memory.of(*others)
            total = own + rest
            session.figures.add("idle_memory", node.name, total.private, "MiB")
            session.figures.add("idle_memory_code", node.name, total.private - total.code, "MiB")
            session.figures.add("idle_shim", node.name, own.private, "MiB")


def _fifty(session: Session) -> None:
    """Rows daemon_memory_50, adoption50."""
    for _ in range(3):
        session.quiet(session.thaw)
        session.figures.add("adoption50", THAW, session.thaw.restart())
    for node in session.nodes:
        session.quiet(node)
        resident = memory.resident_mib(node.daemon_pid())
        session.figures.add("daemon_memory_50", node.name, resident, "MiB")


def _lists(session: Session, pods: dict[str, list[Pod]]) -> None:
    """Rows list_p99, list_p99_beside: the pods get more containers until there are `LISTED`."""
    for node in session.nodes:
        mine = pods[node.name]
        for number in range(LISTED - len(mine)):
            mine[number % len(mine)].start(ONE_LAYER, SLEEP, name=f"more{number // len(mine)}")
    if session.peer is not None:
        _list_often(session, "list_p99_beside", session.nodes)
        # One of both is on a node: what the other does with its pods is no part of this row.
        remove_all(pods.pop(session.peer.name))
    _list_often(session, "list_p99", [session.thaw])


def _list_often(session: Session, row: str, nodes: Sequence[Node]) -> None:
    shares: dict[str, dict[str, list[float]]] = {node.name: {} for node in nodes}
    session.extra.setdefault("lists", {})[row] = shares
    for _ in range(4):
        for node in nodes:
            session.quiet(node)
            for _ in range(LISTS // 4):
                session.figures.add(row, node.name, _shared_list(node, shares[node.name]))


def _shared_list(node: Node, shares: dict[str, list[float]]) -> float:
    """`_list`; adds to `shares` how long the threads of both sides ran for it, and waited until a
    core was theirs, in milliseconds. Threads that wait at the same time all count."""
    sides = {"daemon": [node.daemon_pid()], "client": [os.getpid()]}
    before = {side: scheduled(pids) for side, pids in sides.items()}
    took = _list(node)
    for side, pids in sides.items():
        spent = scheduled(pids).since(before[side])
        shares.setdefault(f"{side}_ran_ms", []).append(spent.ran * 1000)
        shares.setdefault(f"{side}_waited_ms", []).append(spent.waited * 1000)
    return took
