"""Stats beside what the guest's own files say at the same time, field by field."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from cri.api import v1_pb2 as v1
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.waiting import until
from e2e.tests.test_stats import stats_of, stats_of_pod

T = TypeVar("T")

MIB = 2**20
GROUP = "/sys/fs/cgroup"
PRIVILEGED = v1.LinuxContainerConfig(
    resources=v1.LinuxContainerResources(
        memory_limit_in_bytes=96 * MIB,
        memory_swap_limit_in_bytes=128 * MIB,
        cpu_quota=50_000,
        cpu_period=100_000,
    ),
    security_context=v1.LinuxContainerSecurityContext(privileged=True),
)


def privileged(daemon: Daemon) -> Container:
    may = v1.LinuxSandboxSecurityContext(privileged=True)
    pod = Pod.run(daemon, linux=v1.LinuxPodSandboxConfig(security_context=may))
    return pod.start(SHELL, SLEEP, linux=PRIVILEGED)


def keyed(box: Container, *files: str) -> dict[str, int]:
    """Lines of names and numbers of the container's control group."""
    text = box.sh("cat " + " ".join(f"{GROUP}/{each}" for each in files))
    return {name: int(number) for name, number in map(str.split, text.splitlines())}


def take_memory(box: Container) -> None:
    """Have a program hold some 4 MB of its own, and no more than for a moment while it takes it."""
    take = "x=$(head -c 4000000 /dev/zero | tr '\\0' x); touch /taken; sleep 100000; echo $x"
    box.sh(f"({take}) >/dev/null 2>&1 & until [ -e /taken ]; do sleep 0.1; done")
    assert keyed(box, "memory.stat")["anon"] > 4_000_000


def averages(box: Container, resource: str) -> dict[str, list[float]]:
    """Of a file of pressure, by kind: over 10, 60 and 300 seconds."""
    found = {}
    for line in box.sh(f"cat {GROUP}/{resource}.pressure").splitlines():
        kind, *words = line.split()
        found[kind] = [float(word.partition("=")[2]) for word in words[:3]]
    return found


def beside(read: Callable[[], T], stats: Callable[[], Any], ready: Callable[[T], bool]) -> Any:
    """What the guest says and stats that were taken meanwhile, once it says the same before and
    after them, and what a test waits for."""

    def once() -> tuple[T, Any] | None:
        before = read()
        found = stats()
        return (before, found) if ready(before) and read() == before else None

    return until("the guest says the same before and after", once, 120)


def container_disks(daemon: Daemon) -> v1.FilesystemUsage:
    request = v1.ImageFsInfoRequest()
    answer = daemon.client.image("ImageFsInfo", request, v1.ImageFsInfoResponse)
    [found] = answer.container_filesystems
    return found


def test_numbers_are_those_of_the_guests_files(daemon: Daemon) -> None:
    begun = time.time_ns()
    box = privileged(daemon)
    # Memory of a program's own, and a program that is on the disk alone.
    take_memory(box)
    box.sh("mkdir /x && cp /bin/busybox /x && sync && echo 3 >/proc/sys/vm/drop_caches")
    box.sh("/x/busybox true")

    before = keyed(box, "memory.stat", "cpu.stat")
    found, of_pod = stats_of(box), stats_of_pod(box.pod)
    after = keyed(box, "memory.stat", "cpu.stat")
    for name, number in (
        ("pgfault", found.memory.page_faults.value),
        ("pgmajfault", found.memory.major_page_faults.value),
        ("usage_usec", found.cpu.usage_core_nano_seconds.value // 1000),
    ):
        assert 0 < before[name] <= number <= after[name], name
    # The commands that read these files are in the control group too, and take memory.
    assert abs(found.memory.rss_bytes.value - before["anon"]) < 2 * MIB
    used = int(box.sh(f"cat {GROUP}/memory.current"))
    assert abs(found.memory.usage_bytes.value - used) < 4 * MIB
    idle = found.memory.usage_bytes.value - found.memory.working_set_bytes.value
    assert abs(idle - before["inactive_file"]) < 2 * MIB
    left = 96 * MIB - found.memory.working_set_bytes.value
    assert found.memory.available_bytes.value == left

    times = [
        *(each.timestamp for each in (found.cpu, found.memory, found.io, found.swap)),
        *(each.timestamp for each in (of_pod.cpu, of_pod.memory, of_pod.io)),
        *(each.timestamp for each in (of_pod.process, of_pod.network)),
    ]
    assert all(begun < each < time.time_ns() for each in times)

    names = ("rx_bytes", "rx_errors", "tx_bytes", "tx_errors")
    files = " ".join(f"/sys/class/net/eth0/statistics/{each}" for each in names)
    said, of_pod = beside(
        lambda: box.sh(f"cat {files}").split(), lambda: stats_of_pod(box.pod), lambda _: True
    )
    shown = of_pod.network.default_interface
    assert [str(getattr(shown, each).value) for each in names] == said
    assert all(shown.HasField(each) for each in names)


def test_pressure_and_its_averages_are_those_of_the_guest(daemon: Daemon) -> None:
    box = privileged(daemon)
    box.sh("(while :; do :; done) >/dev/null 2>&1 &")
    box.sh("dd if=/dev/zero of=/big bs=1M count=8 && sync")
    said, found = beside(
        lambda: averages(box, "cpu"), lambda: stats_of(box), lambda said: min(said["some"]) > 0
    )
    for kind, shown in (("some", found.cpu.psi.Some), ("full", found.cpu.psi.Full)):
        assert [shown.Avg10, shown.Avg60, shown.Avg300] == said[kind]
    io = found.io.psi.Some.Total
    assert io > 0
    # All that holds up a container holds up its pod.
    of_pod = stats_of_pod(box.pod)
    assert of_pod.io.psi.Some.Total >= io
    assert of_pod.cpu.psi.Some.Total >= found.cpu.psi.Some.Total


def test_swap_and_the_disks_of_containers(daemon: Daemon) -> None:
    box = privileged(daemon)
    before = container_disks(daemon)
    assert before.fs_id == stats_of(box).writable_layer.fs_id
    assert stats_of(box).swap.swap_available_bytes.value == 32 * MIB
    # Guests have no swap: this one is given some.
    box.sh("dd if=/dev/urandom of=/swap bs=1M count=16 && sync")
    assert container_disks(daemon).used_bytes.value >= before.used_bytes.value + 15 * MIB
    box.sh("[ -e /dev/loop0 ] || mknod /dev/loop0 b 7 0")
    box.sh("busybox losetup /dev/loop0 /swap && busybox mkswap /dev/loop0")
    box.sh("busybox swapon /dev/loop0")
    take_memory(box)
    box.sh(f"echo 64M >{GROUP}/memory.reclaim || true")
    said, found = beside(
        lambda: int(box.sh(f"cat {GROUP}/memory.swap.current")),
        lambda: stats_of(box),
        lambda said: said > 0,
    )
    assert found.swap.swap_usage_bytes.value == said
    assert found.swap.swap_available_bytes.value == 32 * MIB - said
