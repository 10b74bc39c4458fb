"""Many pods: at once, and one after another for long."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from bench.memory import resident_mib
from bench.node import Node
from bench.pods import Pod, remove_all
from bench.session import Session

BLOCK: Final = 25
"""Lives of one node in a row before it is the other's turn."""


def ten(session: Session) -> None:
    """Row parallel10."""
    _all_up(session, "parallel10", 10, session.rounds(5, 2, 45))


def fifty(session: Session) -> None:
    """Row parallel50: more than any default pool holds."""
    _all_up(session, "parallel50", 50, session.rounds(3, 0, 70))


def _all_up(session: Session, row: str, count: int, rounds: Iterator[int]) -> None:
    for _ in rounds:
        for node in session.nodes:
            session.quiet(node)
            with (
                ThreadPoolExecutor(count) as threads,
                session.figures.timed(row, node.name),
            ):
                pods = list(threads.map(Pod.up, [node] * count))
            remove_all(pods)


def sequence(session: Session) -> None:
    """Rows lives_rate, lives_drift, lives_growth: pods that come and go without a pause.

    A block ends when the pool is full again: what refilling costs is in its rate.
    """
    blocks = session.pick(8, 2)
    times: dict[str, list[list[float]]] = {node.name: [] for node in session.nodes}
    before: dict[str, float] = {}
    for number in session.rounds(blocks, blocks, 230):
        for node in session.nodes:
            session.quiet(node)
            if number == 1 or node.name not in before:
                # The first block is the warm-up: what a daemon's heap takes once is no growth.
                before[node.name] = resident_mib(node.daemon_pid())
            begun = time.perf_counter()
            times[node.name].append([_life(node) for _ in range(session.pick(BLOCK, 5))])
            node.settle()
            took = time.perf_counter() - begun
            rate = session.pick(BLOCK, 5) / took
            session.figures.add("lives_rate", node.name, rate, "1/s")
    for node in session.nodes:
        drift = drift_of(times[node.name])
        session.figures.add("lives_drift", node.name, drift, "x")
        grown = resident_mib(node.daemon_pid()) - before[node.name]
        session.figures.add("lives_growth", node.name, grown, "MiB")
    session.extra["lives"] = {name: {"up_ms": each} for name, each in times.items()}


def _life(node: Node) -> float:
    """Milliseconds until the pod was up; it is removed then."""
    begun = time.perf_counter()
    pod = Pod.up(node)
    took = (time.perf_counter() - begun) * 1000
    pod.remove()
    return took


def drift_of(blocks: list[list[float]]) -> float:
    """The median of the last quarter of the blocks by that of the first.

    Whole blocks, since each begins with a full pool.
    """
    quarter = max(1, len(blocks) // 4)
    first, last = (
        statistics.median(time for block in some for time in block)
        for some in (blocks[:quarter], blocks[-quarter:])
    )
    return last / first
