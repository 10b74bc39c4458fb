"""What a family of metrics is: its descriptor, and where its numbers come from."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cri.api import v1_pb2 as v1
from cri.stats import messages
from cri.vms import Wire

LABELS: Final = ("pod", "namespace", "container", "id", "image")


@dataclass(frozen=True)
class Seen:
    """One container at one time, as the guest tells, and what it asked for."""

    at: int
    said: Wire
    written: int
    scratch: Wire
    started_at: int
    asked: v1.LinuxContainerResources


Values = Iterable[tuple[tuple[str, ...], int | None]]
"""The values of a family's own labels, and the metric's; None is left out."""


@dataclass(frozen=True)
class Family:
    name: str
    help: str
    kind: v1.MetricType
    of: Callable[[Seen], Values]
    labels: tuple[str, ...] = ()

    def descriptor(self) -> v1.MetricDescriptor:
        return v1.MetricDescriptor(
            name=self.name, help=self.help, label_keys=(*LABELS, *self.labels)
        )

    def metric(self, at: int, who: tuple[str, ...], own: tuple[str, ...], found: int) -> v1.Metric:
        return v1.Metric(
            name=self.name,
            timestamp=at,
            metric_type=self.kind,
            label_values=(*who, *own),
            value=messages.value(found),
        )


def counter(name: str, text: str, of: Callable[[Seen], int | None]) -> Family:
    return Family(name, text, v1.COUNTER, lambda seen: [((), of(seen))])


def gauge(name: str, text: str, of: Callable[[Seen], int | None]) -> Family:
    return Family(name, text, v1.GAUGE, lambda seen: [((), of(seen))])


def seconds(name: str, text: str, key: str) -> Family:
    return counter(name, text, lambda seen: seen.said["cpu"].get(key, 0) // 1_000_000)


def memory(name: str, text: str, key: str) -> Family:
    return gauge(name, text, lambda seen: seen.said["memory"].get(key, 0))
