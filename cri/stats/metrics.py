"""The metrics of pods and containers, by cadvisor's names, for the kubelet to pass on.

Each family has the labels `LABELS` and then its own; the kubelet matches values to keys by their
order alone. CRI has whole numbers only, so that times are in full seconds. Series of a pod itself
have an empty container and image, as those of a pod's control group have with cadvisor, and are of
the whole VM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from cri.api import v1_pb2 as v1
from cri.index import Container, Pod
from cri.stats import messages
from cri.stats.collect import Reading
from cri.vms import Wire

LABELS: Final = ("pod", "namespace", "container", "id", "image")

_DEVICE: Final = "scratch"
"""The disk of all writable layers of a pod; the only one that containers write to."""


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


def _counter(name: str, text: str, of: Callable[[Seen], int | None]) -> Family:
    return Family(name, text, v1.COUNTER, lambda seen: [((), of(seen))])


def _gauge(name: str, text: str, of: Callable[[Seen], int | None]) -> Family:
    return Family(name, text, v1.GAUGE, lambda seen: [((), of(seen))])


def _seconds(name: str, text: str, key: str) -> Family:
    return _counter(name, text, lambda seen: seen.said["cpu"].get(key, 0) // 1_000_000)


def _memory(name: str, text: str, key: str) -> Family:
    return _gauge(name, text, lambda seen: seen.said["memory"].get(key, 0))


def _disk(name: str, text: str, key: str) -> Family:
    return Family(
        name,
        text,
        v1.COUNTER,
        lambda seen: [((_DEVICE,), seen.said["io"].get(key, 0))],
        ("device",),
    )


def _room(name: str, text: str, of: Callable[[Seen], int | None]) -> Family:
    return Family(name, text, v1.GAUGE, lambda seen: [((_DEVICE,), of(seen))], ("device",))


def _stall(resource: str, kind: str, word: str, text: str) -> Family:
    def of(seen: Seen) -> int | None:
        line = seen.said["pressure"].get(resource, {}).get(kind)
        return None if line is None else line["total"] // 1_000_000

    return _counter(f"container_pressure_{resource}_{word}_seconds_total", text, of)


def _failures(seen: Seen) -> Values:
    memory = seen.said["memory"]
    for kind in ("pgfault", "pgmajfault"):
        # A control group of version 2 counts for all below it.
        for scope in ("container", "hierarchy"):
            yield (kind, scope), memory.get(kind, 0)


CPU_USAGE: Final = Family(
    "container_cpu_usage_seconds_total",
    "Processor time taken, in full seconds.",
    v1.COUNTER,
    lambda seen: [(("total",), seen.said["cpu"].get("usage_usec", 0) // 1_000_000)],
    ("cpu",),
)
MEMORY_USAGE: Final = _memory(
    "container_memory_usage_bytes",
    "Memory in use, in bytes, files included.",
    "current",
)
WORKING_SET: Final = _gauge(
    "container_memory_working_set_bytes",
    "Memory in use without files that were not used of late, in bytes.",
    lambda seen: messages.working_set(seen.said["memory"]),
)
RSS: Final = _memory("container_memory_rss", "Anonymous memory in bytes.", "anon")
SWAP: Final = _memory("container_memory_swap", "Swap in use, in bytes.", "swap")
PROCESSES: Final = _gauge(
    "container_processes",
    "Processes in the container.",
    lambda seen: seen.said["processes"],
)
THREADS: Final = _gauge(
    "container_threads",
    "Threads in the container.",
    lambda seen: seen.said["tasks"],
)
LAST_SEEN: Final = _gauge(
    "container_last_seen",
    "When the container was last looked at, in seconds since the epoch.",
    lambda seen: seen.at // 1_000_000_000,
)
START_TIME: Final = _gauge(
    "container_start_time_seconds",
    "When the container started, in seconds since the epoch.",
    lambda seen: seen.started_at // 1_000_000_000,
)

FAMILIES: Final = (
    CPU_USAGE,
    _seconds(
        "container_cpu_user_seconds_total",
        "Processor time taken by programs, in full seconds.",
        "user_usec",
    ),
    _seconds(
        "container_cpu_system_seconds_total",
        "Processor time taken by the kernel, in full seconds.",
        "system_usec",
    ),
    _counter(
        "container_cpu_cfs_periods_total",
        "Periods of the processor quota that have passed.",
        lambda seen: seen.said["cpu"].get("nr_periods", 0),
    ),
    _counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the processor quota was used up.",
        lambda seen: seen.said["cpu"].get("nr_throttled", 0),
    ),
    _seconds(
        "container_cpu_cfs_throttled_seconds_total",
        "Time without processor for want of quota, in full seconds.",
        "throttled_usec",
    ),
    MEMORY_USAGE,
    WORKING_SET,
    RSS,
    SWAP,
    _memory("container_memory_cache", "Memory that caches files, in bytes.", "file"),
    _memory("container_memory_kernel_usage", "Memory of the kernel's own, in bytes.", "kernel"),
    _memory("container_memory_mapped_file", "Mapped files in memory, in bytes.", "file_mapped"),
    _memory(
        "container_memory_max_usage_bytes", "The most memory that was in use, in bytes.", "peak"
    ),
    _memory(
        "container_memory_total_active_file_bytes",
        "Cached files that were used of late, in bytes.",
        "active_file",
    ),
    _memory(
        "container_memory_total_inactive_file_bytes",
        "Cached files that were not used of late, in bytes.",
        "inactive_file",
    ),
    _counter(
        "container_memory_failcnt",
        "How often the memory limit was met.",
        lambda seen: seen.said["memory"].get("max", 0),
    ),
    Family(
        "container_memory_failures_total",
        "Page faults.",
        v1.COUNTER,
        _failures,
        ("failure_type", "scope"),
    ),
    _counter(
        "container_oom_events_total",
        "Processes killed for want of memory.",
        lambda seen: seen.said["memory"].get("oom_kill", 0),
    ),
    PROCESSES,
    THREADS,
    _gauge(
        "container_threads_max",
        "The limit of threads; 0 is none.",
        lambda seen: seen.said["tasks_limit"] or 0,
    ),
    _disk("container_fs_reads_bytes_total", "Bytes read from the disk.", "rbytes"),
    _disk("container_fs_writes_bytes_total", "Bytes written to the disk.", "wbytes"),
    _disk("container_fs_reads_total", "Reads from the disk.", "rios"),
    _disk("container_fs_writes_total", "Writes to the disk.", "wios"),
    _room(
        "container_fs_usage_bytes",
        "What the writable layer takes, in bytes.",
        lambda seen: seen.written,
    ),
    _room(
        "container_fs_limit_bytes",
        "What the disk of the writable layers holds, in bytes.",
        lambda seen: seen.scratch.get("bytes"),
    ),
    _room(
        "container_fs_inodes_free",
        "Inodes that are free on it.",
        lambda seen: seen.scratch.get("inodes_free"),
    ),
    _room(
        "container_fs_inodes_total", "Inodes that it has.", lambda seen: seen.scratch.get("inodes")
    ),
    *(
        _stall(resource, kind, word, text)
        for resource, noun in (("cpu", "processors"), ("memory", "memory"), ("io", "the disk"))
        for kind, word, text in (
            ("some", "waiting", f"Time for which some task waited for {noun}, in full seconds."),
            ("full", "stalled", f"Time for which all tasks waited for {noun}, in full seconds."),
        )
    ),
    START_TIME,
    LAST_SEEN,
    _gauge(
        "container_spec_cpu_period",
        "The period of the processor quota, in microseconds.",
        lambda seen: seen.asked.cpu_period or None,
    ),
    _gauge(
        "container_spec_cpu_quota",
        "The processor quota, in microseconds for a period.",
        lambda seen: max(0, seen.asked.cpu_quota) or None,
    ),
    _gauge(
        "container_spec_cpu_shares",
        "The share of processors that others want too.",
        lambda seen: seen.asked.cpu_shares or None,
    ),
    _gauge(
        "container_spec_memory_limit_bytes",
        "The memory limit, in bytes; 0 is none.",
        lambda seen: seen.said["memory"].get("limit", 0),
    ),
    _gauge(
        "container_spec_memory_swap_limit_bytes",
        "The limit of memory and swap together, in bytes; 0 is none.",
        lambda seen: max(0, seen.asked.memory_swap_limit_in_bytes),
    ),
)

_WAYS: Final = (("receive", "received", "received"), ("transmit", "sent", "transmitted"))
_COUNTS: Final = (
    ("bytes", "Bytes {}."),
    ("packets", "Packets {}."),
    ("errors", "Packets that an error kept from being {}."),
    ("packets_dropped", "Packets dropped instead of being {}."),
)
NETWORK: Final = tuple(
    (
        Family(
            f"container_network_{way}_{name}_total",
            text.format(verb),
            v1.COUNTER,
            lambda _seen: (),
            ("interface",),
        ),
        key,
        at,
    )
    for way, key, verb in _WAYS
    for at, (name, text) in enumerate(_COUNTS)
)


def descriptors() -> list[v1.MetricDescriptor]:
    return [each.descriptor() for each in (*FAMILIES, *(family for family, _, _ in NETWORK))]


def of_pod(
    pod: Pod,
    reading: Reading,
    containers: Iterable[Container],
    asked: Callable[[Container], v1.LinuxContainerResources],
) -> v1.PodSandboxMetrics:
    metadata = pod.record.metadata
    name, namespace = metadata.name, metadata.namespace
    found = v1.PodSandboxMetrics(
        pod_sandbox_id=pod.id,
        metrics=_of_vm(pod, reading, (name, namespace, "", pod.id, "")),
    )
    for each in containers:
        said = reading.container(each.id)
        record = each.record
        if said is None or record.state == "exited" or reading.guest is None:
            continue
        seen = Seen(
            reading.at,
            said,
            each.written.bytes,
            reading.guest["scratch"] or {},
            record.started_at,
            asked(each),
        )
        who = (name, namespace, record.metadata.name, record.id, record.image.ref)
        found.container_metrics.append(
            v1.ContainerMetrics(
                container_id=record.id,
                metrics=[
                    family.metric(reading.at, who, own, value)
                    for family in FAMILIES
                    for own, value in family.of(seen)
                    if value is not None
                ],
            )
        )
    return found


def _of_vm(pod: Pod, reading: Reading, who: tuple[str, ...]) -> Iterator[v1.Metric]:
    at, cost = reading.at, reading.host
    yield CPU_USAGE.metric(at, who, ("total",), cost.cpu_ns // 1_000_000_000)
    yield MEMORY_USAGE.metric(at, who, (), cost.memory)
    yield WORKING_SET.metric(at, who, (), cost.working_set)
    yield RSS.metric(at, who, (), cost.rss)
    yield SWAP.metric(at, who, (), cost.swap)
    yield START_TIME.metric(at, who, (), pod.record.created_at // 1_000_000_000)
    yield LAST_SEEN.metric(at, who, (), at // 1_000_000_000)
    if reading.guest is None:
        return
    yield PROCESSES.metric(at, who, (), reading.guest["pod"]["processes"])
    yield THREADS.metric(at, who, (), reading.guest["pod"]["tasks"])
    for each in reading.guest["interfaces"]:
        for family, way, number in NETWORK:
            yield family.metric(at, who, (each["name"],), each[way][number])
