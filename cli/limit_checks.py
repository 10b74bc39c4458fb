"""Limits of the host that a number of pods runs into; docs/scale.md says where each comes from.

What thawd can raise by itself, its soft limit of open files, it raises as it starts.
"""

from __future__ import annotations

import re
import resource
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cli.host_checks import Finding
from cri.network.netlink import BRIDGE_PORTS

DEFAULT_PODS: Final = 110
"""The kubelet's own maxPods."""

POD_MIB: Final = 70
FILES_BASE, FILES_PER_POD = 256, 4
"""thawd's open files: one connection for each VM, and a few more while one starts."""


@dataclass(frozen=True)
class Need:
    """A setting below ``/proc/sys`` that has to be `base` + `per_pod` for each pod at least."""

    setting: str
    base: int
    per_pod: int
    what: str

    @property
    def name(self) -> str:
        return self.setting.replace("/", ".")

    def least(self, pods: int) -> int:
        return self.base + self.per_pod * pods


NEEDS: Final = (
    Need("kernel/pid_max", 2048, 16, "processes and threads"),
    Need("kernel/threads-max", 2048, 16, "processes and threads"),
    Need("fs/file-max", 8192, 128, "open files of all processes"),
    Need("user/max_net_namespaces", 64, 2, "network namespaces"),
    Need("user/max_mnt_namespaces", 64, 2, "mount namespaces"),
    Need("fs/mount-max", 1024, 8, "mounts in one namespace, the kubelet's volumes among them"),
    Need("net/netfilter/nf_conntrack_max", 4096, 64, "connections that are tracked"),
    Need(
        "net/ipv4/neigh/default/gc_thresh3",
        64,
        1,
        "neighbours; the built-in network's are not counted, a CNI network's are",
    ),
)


def findings(pods: int, address: str, proc: Path = Path("/proc")) -> Iterator[Finding]:
    """What is too low for so many pods; one finding that is good where nothing is."""
    found = [
        *_settings(pods, proc / "sys"),
        *_overcommit(proc / "sys"),
        *_files(pods, address, proc),
        *_bridge(pods),
        *_memory(pods, proc),
    ]
    yield from found or [Finding("limits", "ok", f"high enough for {pods} pods")]


def _settings(pods: int, sysctls: Path) -> Iterator[Finding]:
    for need in NEEDS:
        try:
            value = int((sysctls / need.setting).read_text())
        except (OSError, ValueError):
            # Not in this kernel, or its module is not loaded: no limit.
            continue
        if value < need.least(pods):
            yield Finding(
                need.name,
                "warning",
                f"{value} is too low for {pods} pods ({need.what})",
                f"sysctl -w {need.name}={need.least(pods)}",
            )


def _overcommit(sysctls: Path) -> Iterator[Finding]:
    path = sysctls / "vm" / "overcommit_memory"
    if path.exists() and path.read_text().strip() == "2":
        yield Finding(
            "vm.overcommit_memory",
            "warning",
            "2 counts each VM with all the memory of its shape, touched or not",
            "sysctl -w vm.overcommit_memory=0",
        )


def _files(pods: int, address: str, proc: Path) -> Iterator[Finding]:
    least = FILES_BASE + FILES_PER_POD * pods
    limit = open_files(address, proc)
    if limit < least:
        yield Finding(
            "open files",
            "warning",
            f"the hard limit of {limit} is too low for {pods} pods",
            f"set LimitNOFILE={least} or more in thawd's unit, or ulimit -Hn before it starts",
        )


def open_files(address: str, proc: Path = Path("/proc")) -> int:
    """The hard limit of the thawd at `address`; where none answers, this process's own."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
            sock.settimeout(1.0)
            sock.connect(address.removeprefix("unix://"))
            size = struct.calcsize("3i")
            peer = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid = struct.unpack("3i", peer)[0]
        text = (proc / str(pid) / "limits").read_text()
        match = re.search(r"^Max open files\s+\S+\s+(\d+)", text, re.MULTILINE)
    except OSError:
        match = None
    return int(match[1]) if match else resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _bridge(pods: int) -> Iterator[Finding]:
    if pods > BRIDGE_PORTS:
        yield Finding(
            "bridge",
            "warning",
            f"the built-in network connects {BRIDGE_PORTS} VMs, those that wait included",
            "use a CNI network that is no bridge for more",
        )


def _memory(pods: int, proc: Path) -> Iterator[Finding]:
    match = re.search(r"MemTotal:\s+(\d+) kB", (proc / "meminfo").read_text())
    total = int(match[1]) // 1024 if match else 0
    if total < pods * POD_MIB:
        yield Finding(
            "memory for pods",
            "warning",
            f"{total} MiB hold about {total // POD_MIB} idle pods, not {pods}",
            f"set the kubelet's maxPods to {max(1, total // POD_MIB)} or less",
        )
