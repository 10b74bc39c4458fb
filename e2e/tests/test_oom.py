"""Out of memory: the guest ends who asked for too much, and the VM lives; how containers end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from e2e.harness.waiting import until
from hostlib import cgroup, errors, ids

MIB = 2**20
RUNTIME_CLASS_MIB = 320
"""The overhead of manifests/runtimeclass.yaml, as the kubelet adds it to a pod's group."""

GREEDY = ("/bin/sh", "-c", "exec tail /dev/zero")
"""Keeps all that it reads, as it waits for the end of a line."""


def limited(mib: int) -> v1_pb2.LinuxContainerConfig:
    resources = v1_pb2.LinuxContainerResources(memory_limit_in_bytes=mib * MIB)
    return v1_pb2.LinuxContainerConfig(resources=resources)


class Group:
    """A cgroup as the kubelet makes one for a pod, in whatever version the host has."""

    def __init__(self, name: str) -> None:
        self.name = name
        cgroup.create(name)

    @property
    def memory(self) -> Path:
        tree = cgroup.detect()
        return tree.folders(self.name)["unified" if tree.version == 2 else "memory"]

    def limit(self, mib: int) -> None:
        assert not cgroup.limit(self.name, cgroup.Limits(memory=mib * MIB))

    def kills(self) -> int:
        """How often the kernel ended something in it, or below it, for want of memory."""
        found = 0
        for folder in (self.memory, *(each for each in self.memory.iterdir() if each.is_dir())):
            two = (folder / "memory.events").exists()
            text = (folder / ("memory.events" if two else "memory.oom_control")).read_text()
            found += sum(
                int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill ")
            )
        return found


@pytest.fixture
def group() -> Iterator[Group]:
    made = Group(f"/kubepods-e2e-{ids.new_vm_id()}")
    yield made
    until("the group is empty", lambda: cgroup.remove(made.name))


def test_who_asks_for_too_much_is_killed_and_the_others_live(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    steady = pod.start(SHELL, SLEEP, name="steady", linux=limited(64))
    before = time.time_ns()
    greedy = pod.start(SHELL, GREEDY, name="greedy", linux=limited(48))
    status = greedy.wait()
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)
    assert before < status.started_at <= status.finished_at < time.time_ns()
    # A child is killed and its parent lives to tell: as with other runtimes, that counts too.
    script = "tail /dev/zero; echo $?; exit 3"
    parent = pod.start(SHELL, ["/bin/sh", "-c", script], name="parent", linux=limited(48))
    status = parent.wait()
    assert (status.reason, status.exit_code, parent.output()) == ("OOMKilled", 3, "137\n")
    # Unless all of a container is to end together, as the kubelet asks on hosts of version 2.
    together = limited(48)
    together.resources.unified["memory.oom.group"] = "1"
    whole = pod.start(SHELL, ["/bin/sh", "-c", script], name="whole", linux=together)
    status = whole.wait()
    assert (status.reason, status.exit_code, whole.output()) == ("OOMKilled", 137, "")
    # An end that has other reasons is none of these.
    plain = pod.start(SHELL, ["/bin/sh", "-c", "kill -9 $$"], name="plain", linux=limited(48))
    status = plain.wait()
    assert (status.reason, status.exit_code) == ("Error", 137)
    fine = pod.start(SHELL, ["/bin/true"], name="fine")
    status = fine.wait()
    assert (status.reason, status.exit_code) == ("Completed", 0)
    assert steady.sh("echo up") == "up"
    assert steady.status().state == v1_pb2.CONTAINER_RUNNING
    assert pod.state == v1_pb2.SANDBOX_READY


def test_a_guest_out_of_memory_ends_one_container(daemon: Daemon) -> None:
    """Nobody has a limit: the guest itself is full."""
    pod = Pod.run(daemon)
    protected = v1_pb2.LinuxContainerConfig(
        resources=v1_pb2.LinuxContainerResources(oom_score_adj=-997)
    )
    steady = pod.start(SHELL, SLEEP, name="steady", linux=protected)
    greedy = pod.start(SHELL, GREEDY, name="greedy")
    status = greedy.wait(300)
    assert (status.reason, status.exit_code) == ("OOMKilled", 137)
    assert steady.sh("echo up") == "up"
    assert pod.state == v1_pb2.SANDBOX_READY


def test_the_vm_lives_under_pressure_in_the_kubelets_group(
    daemon: Daemon, group: Group, tmp_path: Path
) -> None:
    """Page cache, volumes and memory to the brim, in a group that is limited as the kubelet's."""
    asked = 96 + 64
    group.limit(asked + RUNTIME_CLASS_MIB)
    sandbox = v1_pb2.LinuxPodSandboxConfig(
        cgroup_parent=group.name,
        resources=v1_pb2.LinuxContainerResources(memory_limit_in_bytes=asked * MIB),
    )
    pod = Pod.run(daemon, linux=sandbox)
    volume = v1_pb2.Mount(container_path="/data", host_path=str(tmp_path))
    worker = pod.start(SHELL, SLEEP, name="worker", mounts=[volume], linux=limited(96))
    steady = pod.start(SHELL, SLEEP, name="steady", linux=limited(64))
    for turn in range(3):
        for folder in ("/data", "/var"):
            file = f"{folder}/fill{turn}"
            worker.sh(f"dd if=/dev/zero of={file} bs=1M count=150 2>/dev/null", 300)
            worker.sh(f"cat {file} > /dev/null; rm {file}", 300)
        # What was killed is an exec, and the container lives.
        assert worker.sh("tail /dev/zero; echo $?", 120) == "137"
    greedy = pod.start(SHELL, GREEDY, name="greedy", linux=limited(48))
    assert greedy.wait(120).reason == "OOMKilled"
    assert group.kills() == 0
    assert pod.state == v1_pb2.SANDBOX_READY
    assert [each.sh("echo up") for each in (worker, steady)] == ["up", "up"]
    pod.remove()


def test_a_limit_of_the_pod_alone_is_the_guests_too(daemon: Daemon, group: Group) -> None:
    """Limits of the pod as a whole: no container has one, and the group on the host does."""
    group.limit(96 + RUNTIME_CLASS_MIB)
    sandbox = v1_pb2.LinuxPodSandboxConfig(
        cgroup_parent=group.name,
        resources=v1_pb2.LinuxContainerResources(memory_limit_in_bytes=96 * MIB),
    )
    pod = Pod.run(daemon, linux=sandbox)
    steady = pod.start(SHELL, SLEEP, name="steady")
    greedy = pod.start(SHELL, GREEDY, name="greedy")
    assert greedy.wait(120).reason == "OOMKilled"
    # The kubelet gives the pod more, and then tells so.
    group.limit(256 + RUNTIME_CLASS_MIB)
    request = v1_pb2.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod.id,
        resources=v1_pb2.LinuxContainerResources(memory_limit_in_bytes=256 * MIB),
    )
    daemon.client.runtime(
        "UpdatePodSandboxResources", request, v1_pb2.UpdatePodSandboxResourcesResponse
    )
    hold = "import time; kept = bytearray(150 << 20); print('held', flush=True); time.sleep(1e6)"
    holder = pod.start(WEBAPP, ["python3", "-c", hold], name="holder")
    until("it holds more than the former limit", lambda: "held" in holder.output())
    assert group.kills() == 0
    assert steady.sh("echo up") == "up"
    pod.remove()


def exited(container: Container) -> tuple[str, int, str]:
    status = container.status()
    assert status.state == v1_pb2.CONTAINER_EXITED
    assert 0 < status.created_at <= status.started_at <= status.finished_at
    return status.reason, status.exit_code, status.message


def test_a_start_that_fails_says_why(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    helper = pod.start(SHELL, SLEEP)
    del helper
    wrong = {
        "missing": (["/bin/none"], {}, "no such file"),
        "folder": (["/etc"], {}, "is a directory"),
        "no program": (["/etc/passwd"], {}, "permission denied"),
        "nowhere": (["/bin/true"], {"working_dir": "/etc/passwd"}, "chdir"),
    }
    for number, (command, more, said) in enumerate(wrong.values()):
        made = pod.create(SHELL, command, name=f"wrong{number}", **more)
        with pytest.raises(errors.ThawError, match=said):
            daemon.client.start_container(made.id)
        reason, code, message = exited(made)
        assert (reason, code) == ("StartError", 128)
        assert said in message
        time.sleep(0.2)
        assert exited(made) == (reason, code, message), "its init's end does not change the reason"
