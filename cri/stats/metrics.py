"""The metrics of pods and containers, by cadvisor's names, for the kubelet to pass on.

Each family has the labels `LABELS` and then its own; the kubelet matches values to keys by their
order alone. CRI has whole numbers only, so that times are in full seconds. Series of a pod itself
have an empty container and image, as those of a pod's control group have with cadvisor, and are of
the whole VM.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Final

from cri.api import v1_pb2 as v1
from cri.index import Container, Pod
from cri.stats import disk_metrics, messages
from cri.stats.collect import Reading
from cri.stats.family import Family, Seen, Values, counter, gauge, memory, seconds

_HUGE_PAGE: Final = "2MB"
"""The size that cgroups name so; the only one that a guest has."""


def _stall(resource: str, kind: str, word: str, text: str) -> Family:
    def of(seen: Seen) -> int | None:
        line = seen.said["pressure"].get(resource, {}).get(kind)
        return None if line is None else line["total"] // 1_000_000

    return counter(f"container_pressure_{resource}_{word}_seconds_total", text, of)


def _failures(seen: Seen) -> Values:
    memory = seen.said["memory"]
    for kind in ("pgfault", "pgmajfault"):
        # A control group of version 2 counts for all below it.
        for scope in ("container", "hierarchy"):
            yield (kind, scope), memory.get(kind, 0)


def _open_files(seen: Seen, which: str) -> int | None:
    # A shim that is older than this daemon says nothing of them.
    found: int | None = (seen.said.get("open_files") or {}).get(which)
    return found


CPU_USAGE: Final = Family(
    "container_cpu_usage_seconds_total",
    "Processor time taken, in full seconds.",
    v1.COUNTER,
    lambda seen: [(("total",), seen.said["cpu"].get("usage_usec", 0) // 1_000_000)],
    ("cpu",),
)
MEMORY_USAGE: Final = memory(
    "container_memory_usage_bytes",
    "Memory in use, in bytes, files included.",
    "current",
)
WORKING_SET: Final = gauge(
    "container_memory_working_set_bytes",
    "Memory in use without files that were not used of late, in bytes.",
    lambda seen: messages.working_set(seen.said["memory"]),
)
RSS: Final = memory("container_memory_rss", "Anonymous memory in bytes.", "anon")
SWAP: Final = memory("container_memory_swap", "Swap in use, in bytes.", "swap")
PROCESSES: Final = gauge(
    "container_processes",
    "Processes in the container.",
    lambda seen: seen.said["processes"],
)
THREADS: Final = gauge(
    "container_threads",
    "Threads in the container.",
    lambda seen: seen.said["tasks"],
)
LAST_SEEN: Final = gauge(
    "container_last_seen",
    "When the container was last looked at, in seconds since the epoch.",
    lambda seen: seen.at // 1_000_000_000,
)
START_TIME: Final = gauge(
    "container_start_time_seconds",
    "When the container started, in seconds since the epoch.",
    lambda seen: seen.started_at // 1_000_000_000,
)

FAMILIES: Final = (
    CPU_USAGE,
    seconds(
        "container_cpu_user_seconds_total",
        "Processor time taken by programs, in full seconds.",
        "user_usec",
    ),
    seconds(
        "container_cpu_system_seconds_total",
        "Processor time taken by the kernel, in full seconds.",
        "system_usec",
    ),
    counter(
        "container_cpu_cfs_periods_total",
        "Periods of the processor quota that have passed.",
        lambda seen: seen.said["cpu"].get("nr_periods", 0),
    ),
    counter(
        "container_cpu_cfs_throttled_periods_total",
        "Periods in which the processor quota was used up.",
        lambda seen: seen.said["cpu"].get("nr_throttled", 0),
    ),
    seconds(
        "container_cpu_cfs_throttled_seconds_total",
        "Time without processor for want of quota, in full seconds.",
        "throttled_usec",
    ),
    counter(
        "container_cpu_cfs_burst_periods_total",
        "Periods in which more was used than the processor quota, from what was left before.",
        lambda seen: seen.said["cpu"].get("nr_bursts", 0),
    ),
    seconds(
        "container_cpu_cfs_burst_seconds_total",
        "Processor time taken beyond the quota so, in full seconds.",
        "burst_usec",
    ),
    MEMORY_USAGE,
    WORKING_SET,
    RSS,
    SWAP,
    memory("container_memory_cache", "Memory that caches files, in bytes.", "file"),
    memory("container_memory_kernel_usage", "Memory of the kernel's own, in bytes.", "kernel"),
    memory("container_memory_mapped_file", "Mapped files in memory, in bytes.", "file_mapped"),
    memory(
        "container_memory_max_usage_bytes", "The most memory that was in use, in bytes.", "peak"
    ),
    memory(
        "container_memory_total_active_file_bytes",
        "Cached files that were used of late, in bytes.",
        "active_file",
    ),
    memory(
        "container_memory_total_inactive_file_bytes",
        "Cached files that were not used of late, in bytes.",
        "inactive_file",
    ),
    counter(
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
    counter(
        "container_oom_events_total",
        "Processes killed for want of memory.",
        lambda seen: seen.said["memory"].get("oom_kill", 0),
    ),
    PROCESSES,
    THREADS,
    gauge(
        "container_threads_max",
        "The limit of threads; 0 is none.",
        lambda seen: seen.said["tasks_limit"] or 0,
    ),
    gauge(
        "container_file_descriptors",
        "Open file descriptors of the container's processes.",
        lambda seen: _open_files(seen, "all"),
    ),
    gauge(
        "container_sockets",
        "Open sockets of the container's processes.",
        lambda seen: _open_files(seen, "sockets"),
    ),
    Family(
        "container_ulimits_soft",
        "Soft limits of the container's first process; one that is none is left out.",
        v1.GAUGE,
        lambda seen: [(("max_open_files",), seen.said.get("open_files_limit"))],
        ("ulimit",),
    ),
    Family(
        "container_hugetlb_usage_bytes",
        "Huge pages in use, in bytes.",
        v1.GAUGE,
        lambda seen: [((_HUGE_PAGE,), seen.said.get("huge", {}).get("current"))],
        ("pagesize",),
    ),
    Family(
        "container_hugetlb_failcnt",
        "How often the limit of huge pages was met.",
        v1.COUNTER,
        lambda seen: [((_HUGE_PAGE,), seen.said.get("huge", {}).get("max"))],
        ("pagesize",),
    ),
    *disk_metrics.FAMILIES,
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
    gauge(
        "container_spec_cpu_period",
        "The period of the processor quota, in microseconds.",
        lambda seen: seen.asked.cpu_period or None,
    ),
    gauge(
        "container_spec_cpu_quota",
        "The processor quota, in microseconds for a period.",
        lambda seen: max(0, seen.asked.cpu_quota) or None,
    ),
    gauge(
        "container_spec_cpu_shares",
        "The share of processors that others want too.",
        lambda seen: seen.asked.cpu_shares or None,
    ),
    gauge(
        "container_spec_memory_limit_bytes",
        "The memory limit, in bytes; 0 is none.",
        lambda seen: seen.said["memory"].get("limit", 0),
    ),
    gauge(
        "container_spec_memory_reservation_limit_bytes",
        "Memory that is not taken from the container for others (memory.min), in bytes.",
        lambda seen: seen.said["memory"].get("min", 0),
    ),
    gauge(
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
    of_pods = (family for family, _, _ in (*disk_metrics.OF_THE_DISK, *NETWORK))
    return [each.descriptor() for each in (*FAMILIES, *of_pods)]


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
    counts = (reading.guest["scratch"] or {}).get("io")
    if counts is not None:
        yield from disk_metrics.of_disk(at, who, counts)
    for each in reading.guest["interfaces"]:
        for family, way, number in NETWORK:
            yield family.metric(at, who, (each["name"],), each[way][number])
