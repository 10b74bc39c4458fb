"""What the daemon counts of itself, for Prometheus.

Counting costs microseconds and is always on. What can be read off at any time, the pool and the
numbers of pods and containers, is read when somebody asks.
"""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable, Iterator
from typing import Any, Final, Protocol

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from cri.index import Index
from cri.pool import Pool

SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the buckets; a list takes a millisecond, a pull minutes."""


class _Pulls(Protocol):
    @property
    def received_bytes(self) -> int: ...
    def list(self) -> list[Any]: ...


class Telemetry:
    """The daemon's counters; `watch` adds what is read off its parts."""

    def __init__(self, version: str = "") -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._calls = Histogram(
            "thawd_rpc_duration_seconds",
            "How long calls took, failed ones too. A stream lasts as long as its reader.",
            ["method"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._failures = Counter(
            "thawd_rpc_failures",
            "Calls that failed, by the gRPC status they were answered with.",
            ["method", "reason"],
            registry=self.registry,
        )
        self._restores = Histogram(
            "thawd_vm_restore_duration_seconds",
            "How long it took to restore a VM from its snapshot until it waited, paused.",
            ["use"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._restore_failures = Counter(
            "thawd_vm_restore_failures",
            "VMs that could not be restored, by the kind of error.",
            ["use", "reason"],
            registry=self.registry,
        )
        self._lost = Counter(
            "thawd_pods_lost",
            "Pods that ended though nobody stopped them, by what of them ended.",
            ["reason"],
            registry=self.registry,
        )
        self._version = version

    def call(self, method: str, seconds: float, failure: str = "") -> None:
        """A call ended; `failure` is the name of its gRPC status unless that is OK."""
        self._calls.labels(method).observe(seconds)
        if failure:
            self._failures.labels(method, failure).inc()

    def restored(self, waits: bool, seconds: float) -> None:
        """A VM was restored, for the pool or for a pod that found none there."""
        self._restores.labels(_use(waits)).observe(seconds)

    def not_restored(self, waits: bool, reason: str) -> None:
        self._restore_failures.labels(_use(waits), reason).inc()

    def lost(self, what: str) -> None:
        """A pod ended unasked: its "vm" or its "shim" did."""
        self._lost.labels(what).inc()

    def watch(self, index: Index, pool: Pool, images: _Pulls) -> None:
        self.registry.register(_Parts(index, pool, images, self._version))

    def text(self) -> bytes:
        """All of it in Prometheus' text format. Takes milliseconds: for a worker thread."""
        return generate_latest(self.registry)


def _use(waits: bool) -> str:
    return "pool" if waits else "pod"


class _Parts(Collector):
    """What is read off the daemon's parts. Runs in a worker thread: it changes nothing, and copies
    before it walks."""

    def __init__(self, index: Index, pool: Pool, images: _Pulls, version: str) -> None:
        self._index, self._pool, self._images, self._version = index, pool, images, version

    def describe(self) -> Iterable[Metric]:
        return ()

    def collect(self) -> Iterator[Metric]:
        build = GaugeMetricFamily("thawd_build_info", "1, with the version.", labels=["version"])
        build.add_metric([self._version], 1)
        yield build
        yield from self._pooled()
        pods = Tally[str](pod.record.state for pod in self._index.pods)
        yield _by_state("thawd_pods", "Pods, by state.", ("ready", "notready"), pods)
        containers = Tally[str](each.record.state for each in self._index.containers)
        states = ("created", "running", "exited")
        yield _by_state("thawd_containers", "Containers, by state.", states, containers)
        yield GaugeMetricFamily("thawd_images", "Images.", value=len(self._images.list()))
        yield CounterMetricFamily(
            "thawd_image_received_bytes",
            "Bytes of layers received from registries, as they came, compressed or not.",
            value=self._images.received_bytes,
        )

    def _pooled(self) -> Iterator[Metric]:
        pool = self._pool
        yield GaugeMetricFamily(
            "thawd_pool_wanted", "VMs that are to wait; 0 while memory is short.", value=pool.aim
        )
        yield GaugeMetricFamily("thawd_pool_ready", "VMs that wait.", value=len(pool))
        yield GaugeMetricFamily(
            "thawd_pool_starting", "VMs that are restored for the pool.", value=pool.starting
        )
        yield GaugeMetricFamily(
            "thawd_pool_memory_short",
            "1 while no VM waits since the host's memory is short.",
            value=int(bool(pool.pressure)),
        )
        taken = CounterMetricFamily(
            "thawd_pool_takes",
            "VMs that pods asked for: hit, one waited; miss, it was restored on the spot.",
            labels=["result"],
        )
        taken.add_metric(["hit"], pool.hits)
        taken.add_metric(["miss"], pool.misses)
        yield taken


def _by_state(name: str, text: str, states: Iterable[str], found: Tally[str]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text, labels=["state"])
    for state in states:
        family.add_metric([state], found[state])
    return family
