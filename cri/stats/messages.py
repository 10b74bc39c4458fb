"""Readings as CRI has them, filled as containerd fills them for control groups of version 2."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from cri.api import v1_pb2 as v1
from cri.index import Container, Pod
from cri.stats.collect import Reading
from cri.vms import Wire

_CPU_UNIT = 1000
"""Nanoseconds in the microseconds of cpu.stat and of pressure."""


def value(number: int) -> v1.UInt64Value:
    return v1.UInt64Value(value=number)


def working_set(memory: Wire) -> int:
    """The kubelet's working set: what is used, without files that were not used of late."""
    return max(0, int(memory.get("current", 0)) - int(memory.get("inactive_file", 0)))


def cpu_ns(said: Wire, name: str = "usage_usec") -> int:
    return int(said["cpu"].get(name, 0)) * _CPU_UNIT


def container(entry: Container, reading: Reading | None, mountpoint: str) -> v1.ContainerStats:
    """Of a container that has ended, or whose guest says nothing: who it is, and what it wrote."""
    record = entry.record
    found = v1.ContainerStats(
        attributes=v1.ContainerAttributes(
            id=record.id,
            metadata=v1.ContainerMetadata(
                name=record.metadata.name, attempt=record.metadata.attempt
            ),
            labels=record.labels,
            annotations=record.annotations,
        ),
        writable_layer=v1.FilesystemUsage(
            timestamp=entry.written.at,
            fs_id=v1.FilesystemIdentifier(mountpoint=mountpoint),
            used_bytes=value(entry.written.bytes),
            inodes_used=value(entry.written.inodes),
        ),
    )
    said = reading.container(record.id) if reading is not None else None
    if said is None or reading is None or record.state == "exited":
        return found
    at = reading.at
    used = cpu_ns(said)
    rate = entry.rate.add(at, used, record.created_at)
    found.cpu.CopyFrom(_cpu(at, used, rate, said))
    memory = said["memory"]
    kept = working_set(memory)
    found.memory.CopyFrom(
        v1.MemoryUsage(
            timestamp=at,
            working_set_bytes=value(kept),
            available_bytes=value(_left(memory.get("limit"), kept)),
            usage_bytes=value(memory.get("current", 0)),
            rss_bytes=value(memory.get("anon", 0)),
            page_faults=value(memory.get("pgfault", 0)),
            major_page_faults=value(memory.get("pgmajfault", 0)),
            psi=_psi(said, "memory"),
        )
    )
    swap = memory.get("swap", 0)
    found.swap.CopyFrom(
        v1.SwapUsage(
            timestamp=at,
            swap_available_bytes=value(_left(memory.get("swap_limit"), swap)),
            swap_usage_bytes=value(swap),
        )
    )
    if (pressure := _psi(said, "io")) is not None:
        found.io.CopyFrom(v1.IoUsage(timestamp=at, psi=pressure))
    return found


def pod(
    entry: Pod, reading: Reading, containers: Iterable[v1.ContainerStats]
) -> v1.PodSandboxStats:
    """Processor and memory are the VM's whole cost on the host; stalls, tasks and interfaces are
    the guest's."""
    at, cost, guest = reading.at, reading.host, reading.guest
    said: Wire = guest["pod"] if guest is not None else {}
    rate = entry.rate.add(at, cost.cpu_ns, cost.since or entry.record.created_at)
    linux = v1.LinuxPodSandboxStats(
        cpu=_cpu(at, cost.cpu_ns, rate, said),
        memory=v1.MemoryUsage(
            timestamp=at,
            working_set_bytes=value(cost.working_set),
            available_bytes=value(_left(cost.limit, cost.working_set)),
            usage_bytes=value(cost.memory),
            rss_bytes=value(cost.rss),
            page_faults=value(cost.page_faults),
            major_page_faults=value(cost.major_page_faults),
            psi=_psi(said, "memory"),
        ),
        containers=containers,
    )
    if guest is not None:
        linux.process.CopyFrom(
            v1.ProcessUsage(timestamp=at, process_count=value(said["processes"]))
        )
        linux.network.CopyFrom(_network(at, guest["interfaces"], entry.record.network.interface))
        if (pressure := _psi(said, "io")) is not None:
            linux.io.CopyFrom(v1.IoUsage(timestamp=at, psi=pressure))
    record = entry.record
    metadata = record.metadata
    return v1.PodSandboxStats(
        attributes=v1.PodSandboxAttributes(
            id=record.id,
            metadata=v1.PodSandboxMetadata(
                name=metadata.name,
                uid=metadata.uid,
                namespace=metadata.namespace,
                attempt=metadata.attempt,
            ),
            labels=record.labels,
            annotations=record.annotations,
        ),
        linux=linux,
    )


def _cpu(at: int, used: int, rate: int | None, said: Wire) -> v1.CpuUsage:
    return v1.CpuUsage(
        timestamp=at,
        usage_core_nano_seconds=value(used),
        usage_nano_cores=None if rate is None else value(rate),
        psi=_psi(said, "cpu"),
    )


def _left(limit: int | None, used: int) -> int:
    return 0 if limit is None else max(0, limit - used)


def _psi(said: Wire, resource: str) -> v1.PsiStats | None:
    found = said.get("pressure", {}).get(resource)
    if not found:
        return None
    kinds = {kind.capitalize(): _stalls(line) for kind, line in found.items()}
    return v1.PsiStats(**kinds)


def _stalls(line: Wire) -> v1.PsiData:
    return v1.PsiData(
        Total=line["total"] * _CPU_UNIT,
        Avg10=line["avg10"],
        Avg60=line["avg60"],
        Avg300=line["avg300"],
    )


def _network(at: int, interfaces: list[Wire], usual: str) -> v1.NetworkUsage:
    """All interfaces but loopback; the default one is among them and besides, as containerd has
    it."""
    shown = {each["name"]: _interface(each) for each in interfaces}
    main = shown.get(usual) or shown.get("eth0") or next(iter(shown.values()), None)
    return v1.NetworkUsage(timestamp=at, default_interface=main, interfaces=shown.values())


def _interface(said: dict[str, Any]) -> v1.NetworkInterfaceUsage:
    received, sent = said["received"], said["sent"]
    return v1.NetworkInterfaceUsage(
        name=said["name"],
        rx_bytes=value(received[0]),
        rx_errors=value(received[2]),
        tx_bytes=value(sent[0]),
        tx_errors=value(sent[2]),
    )
