"""thawd as a systemd service, on control groups of version 2 alone: a pod in a slice that systemd
owns.

One pod lives through the tests, which are in the order of its life.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from cli import host_checks
from cri import cgroups
from cri.api import v1_pb2 as v1
from e2e.harness import leaks
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.resources import Resources, limited, update_pod
from e2e.harness.waiting import until
from hostlib import cgroup

MIB: Final = 2**20
ROOT: Final = Path("/sys/fs/cgroup")
UNITS: Final = Path("/run/systemd/system")
LONG: Final = 300.0
"""Seconds for what a VM in an emulated host does."""

SLICE: Final = "kubepods-burstable-pod0c1d.slice"
SLICE_PATH: Final = f"/kubepods.slice/kubepods-burstable.slice/{SLICE}"
GROUP: Final = "/byhand/pod7"
"""A pod's group as a kubelet with the driver cgroupfs names it."""
WORKER_MIB: Final = cgroups.worker_mib(1, emulated=True)
ASKED_MIB: Final = 96
OVERHEAD_MIB: Final = 320
"""Of manifests/runtimeclass.yaml."""
ASKED_CPUS: Final = 0.9
"""Nearly all that the VM has: a limit that hardly makes a slow VM slower."""


def systemctl(*argv: str) -> str:
    return subprocess.run(
        ["systemctl", *argv], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


def read(path: str, name: str) -> str:
    return (ROOT / path.lstrip("/") / name).read_text().strip()


def group_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cgroup").read_text().strip().removeprefix("0::")


class Service(Daemon):
    """The daemon as a service, with the places that are its own by default."""

    def __init__(self) -> None:
        super().__init__(Path("/run/inside"), root=Path("/var/lib/thaw"), share_snapshots=False)
        self.state = Path("/run/thaw")
        self.socket = self.state / "thawd.sock"
        self.config = Path("/etc/thaw/config.toml")

    @property
    def pid(self) -> int:
        return int(systemctl("show", "--property", "MainPID", "--value", "thawd"))

    def await_ready(self) -> None:
        # Type=notify: it is active once it serves.
        until(
            "thawd is active",
            lambda: systemctl("show", "-P", "ActiveState", "thawd") == "active",
            LONG,
            pause=0.5,
        )
        until("thawd can run pods", lambda: self.runtime().status, LONG, pause=0.5)

    def driver(self) -> int:
        answer = self.client.runtime(
            "RuntimeConfig", v1.RuntimeConfigRequest(), v1.RuntimeConfigResponse
        )
        return int(answer.linux.cgroup_driver)

    def pids(self, vm: str) -> list[int]:
        record = self.records()[vm]
        return [record["qemu_pid"], record["shim_pid"]]

    def groups(self, vm: str) -> set[str]:
        """The groups that QEMU and shim of a VM are in."""
        return {group_of(pid) for pid in self.pids(vm)}


@pytest.fixture(scope="module")
def node() -> Iterator[Service]:
    service = Service()
    service.await_ready()
    yield service
    service.close_client()


def resources(mib: int, cpus: float) -> Resources:
    return Resources(
        memory_limit_in_bytes=mib * MIB, cpu_period=100_000, cpu_quota=int(cpus * 100_000)
    )


def run(node: Service, name: str, parent: str) -> tuple[Pod, Container]:
    asked = resources(ASKED_MIB, ASKED_CPUS)
    pod = Pod.run(node, name, linux=v1.LinuxPodSandboxConfig(cgroup_parent=parent, resources=asked))
    return pod, pod.start(SHELL, SLEEP, linux=limited(asked))


def limits(path: str) -> tuple[str, str]:
    return read(path, "memory.max"), read(path, "cpu.max")


def expected(mib: int, cpus: float) -> tuple[str, str]:
    """The limits of a group whose pod asks for so much."""
    quota = int((cpus + cgroups.WORKER_CPUS) * 100_000)
    return str((mib + WORKER_MIB) * MIB), f"{quota} 100000"


def slice_unit(memory_mib: int) -> None:
    (UNITS / SLICE).write_text(f"[Slice]\nMemoryMax={memory_mib}M\nCPUWeight=50\nTasksMax=500\n")


@pytest.fixture(scope="module")
def first(node: Service) -> tuple[Pod, Container]:
    """A pod in a slice that systemd made and limits, as the kubelet's driver has it."""
    slice_unit(700)
    systemctl("daemon-reload")
    systemctl("start", SLICE)
    return run(node, "first", SLICE)


def in_force(node: Service, pod: Pod, path: str, mib: int, cpus: float) -> None:
    vm = pod.vm
    own = f"{path}/thaw-{vm}"
    until("the VM is in its group", lambda: node.groups(vm) == {f"{own}/vm"}, LONG)
    until(
        "the limits are in force", lambda: limits(f"{path}/thaw-{vm}") == expected(mib, cpus), LONG
    )
    assert pod.state == v1.SANDBOX_READY


def test_the_host_is_what_it_is_told_to_be(node: Service) -> None:
    assert Path("/proc/1/comm").read_text() == "systemd\n"
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    assert {(kind, at) for _, at, kind, *_ in mounts if kind.startswith("cgroup")} == {
        ("cgroup2", str(ROOT))
    }
    found = {each.name: each for each in host_checks.all_findings()}
    assert (found["cgroup"].level, found["cgroup"].message) == ("ok", "version 2")
    assert (found["kvm"].level, found["kvm"].message[:12]) == ("warning", "no /dev/kvm;")
    assert not [each for each in found.values() if each.level == "missing"]
    assert node.driver() == v1.SYSTEMD
    assert group_of(node.pid) == "/system.slice/thawd.service"


def test_a_pods_vm_is_in_the_slice_that_systemd_made(
    node: Service, first: tuple[Pod, Container]
) -> None:
    pod, container = first
    in_force(node, pod, SLICE_PATH, ASKED_MIB, ASKED_CPUS)
    assert read(SLICE_PATH, "memory.max") == str(700 * MIB)
    assert container.sh("echo up") == "up"


def test_systemd_leaves_a_vm_its_group_and_limits(
    node: Service, first: tuple[Pod, Container]
) -> None:
    pod, container = first
    before = node.pids(pod.vm)
    systemctl("daemon-reload")
    in_force(node, pod, SLICE_PATH, ASKED_MIB, ASKED_CPUS)
    # What a kubelet does as it resizes a pod.
    systemctl("set-property", "--runtime", SLICE, "MemoryMax=800M", "CPUWeight=60")
    assert read(SLICE_PATH, "memory.max") == str(800 * MIB)
    in_force(node, pod, SLICE_PATH, ASKED_MIB, ASKED_CPUS)
    # Units that come and go have systemd look at each group above them.
    for place in (SLICE, "kubepods-burstable.slice", "other.slice"):
        (UNITS / "neighbour.service").write_text(
            "[Unit]\nDefaultDependencies=no\n"
            f"[Service]\nType=oneshot\nSlice={place}\nExecStart=/bin/true\n"
        )
        systemctl("daemon-reload")
        systemctl("start", "neighbour.service")
        in_force(node, pod, SLICE_PATH, ASKED_MIB, ASKED_CPUS)
    assert node.pids(pod.vm) == before
    assert container.sh("echo up") == "up"


def test_a_daemon_that_dies_finds_its_pods_in_their_groups(
    node: Service, first: tuple[Pod, Container]
) -> None:
    pod, container = first
    before, daemon = node.pids(pod.vm), node.pid
    node.close_client()
    os.kill(daemon, signal.SIGKILL)
    until("systemd started another", lambda: node.pid not in (0, daemon), LONG, pause=0.5)
    node.await_ready()
    in_force(node, pod, SLICE_PATH, ASKED_MIB, ASKED_CPUS)
    assert node.pids(pod.vm) == before
    assert container.sh("echo up") == "up"


def test_limits_of_a_pod_are_changed(node: Service, first: tuple[Pod, Container]) -> None:
    pod, container = first
    # The pod's limits are no lower than its containers'.
    update_pod(pod, resources=resources(ASKED_MIB + 16, ASKED_CPUS + 0.05))
    in_force(node, pod, SLICE_PATH, ASKED_MIB + 16, ASKED_CPUS + 0.05)
    update_pod(pod, resources=resources(ASKED_MIB, ASKED_CPUS))
    in_force(node, pod, SLICE_PATH, ASKED_MIB, ASKED_CPUS)
    assert container.sh("echo up") == "up"


def kills(path: str) -> int:
    """How often the kernel ended something in a group, or below it, for want of memory."""
    events = dict(line.split() for line in read(path, "memory.events").splitlines())
    return int(events["oom_kill"])


def test_nobody_is_killed_for_the_pages_of_files(
    node: Service, first: tuple[Pod, Container]
) -> None:
    """A container writes more than the pod's slice may hold, through the guest's cache and the
    host's."""
    _, container = first
    # What a kubelet gives the slice: the pod's limit, and the overhead of its RuntimeClass.
    most = ASKED_MIB + OVERHEAD_MIB
    systemctl("set-property", "--runtime", SLICE, f"MemoryMax={most}M")
    script = f"dd if=/dev/zero of=/file bs=1M count={most + 64} && rm /file"
    container.sh(script, int(LONG))
    assert kills(SLICE_PATH) == 0
    assert read(SLICE_PATH, "memory.max") == str(most * MIB)
    systemctl("set-property", "--runtime", SLICE, "MemoryMax=800M")
    assert container.sh("echo up") == "up"


def test_figures_are_of_the_pods_group(node: Service, first: tuple[Pod, Container]) -> None:
    pod, container = first
    answer = node.client.runtime(
        "PodSandboxStats",
        v1.PodSandboxStatsRequest(pod_sandbox_id=pod.id),
        v1.PodSandboxStatsResponse,
    )
    linux = answer.stats.linux
    usage = int(read(f"{SLICE_PATH}/thaw-{pod.vm}", "cpu.stat").split()[1]) * 1000
    assert 0 < linux.cpu.usage_core_nano_seconds.value <= usage
    assert linux.memory.working_set_bytes.value > 16 * MIB
    assert [each.attributes.id for each in linux.containers] == [container.id]


def test_a_group_that_systemd_has_no_part_in(node: Service) -> None:
    cgroup.create(GROUP)
    pod, container = run(node, "second", GROUP)
    in_force(node, pod, GROUP, ASKED_MIB, ASKED_CPUS)
    assert container.sh("echo up") == "up"
    vm = pod.vm
    pod.remove()
    until("its group is gone", lambda: not (ROOT / GROUP.lstrip("/") / f"thaw-{vm}").exists(), LONG)
    os.rmdir(ROOT / GROUP.lstrip("/"))


def test_a_pod_that_is_removed_leaves_nothing(node: Service, first: tuple[Pod, Container]) -> None:
    pod, _ = first
    vm = pod.vm
    pod.remove()
    own = ROOT / SLICE_PATH.lstrip("/") / f"thaw-{vm}"
    until("its group is gone", lambda: not own.exists(), LONG)
    systemctl("stop", SLICE)
    until("its slice is gone", lambda: not own.parent.exists(), LONG)
    until(
        "nothing is left",
        lambda: not leaks.unclaimed(node.instance, node.root, node.state, node.pid),
        LONG,
    )
