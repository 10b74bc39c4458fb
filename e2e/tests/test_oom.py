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

    def __init__(self, name: str, parent: str = "") -> None:
        self.name = name
        self.parent = parent or name
        """As the kubelet names it to the runtime."""
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
    """As the driver cgroupfs has it."""
    made = Group(f"/kubepods-e2e-{ids.new_vm_id()}")
    yield made
    until("the group is empty", lambda: cgroup.remove(made.name))


@pytest.fixture
def slice_group() -> Iterator[Group]:
    """As the driver systemd has it."""
    name = f"e2e{ids.new_vm_id()}"
    made = Group(f"/{name}.slice/{name}-pod.slice", f"{name}-pod.slice")
    yield made
    until("the group is empty", lambda: cgroup.remove(made.name))
    assert cgroup.remove(f"/{name}.slice")


@pytest.mark.parametrize("driver", ["group", "slice_group"])
def test_a_vm_is_in_the_group_that_is_named(
    sized: Daemon, request: pytest.FixtureRequest, driver: str
) -> None:
    group: Group = request.getfixturevalue(driver)
    pod = Pod.run(sized, linux=v1_pb2.LinuxPodSandboxConfig(cgroup_parent=group.parent))
    qemu = str(sized.records()[pod.vm]["qemu_pid"])
    own = group.memory / f"thaw-{pod.vm}"
    inside = (own / "vm" if cgroup.detect().version == 2 else own) / "cgroup.procs"
    # It is moved beside what else a start does.
    until("QEMU is in it", lambda: qemu in inside.read_text().split())
    pod.remove()


def test_who_asks_for_too_much_is_killed_and_the_others_live(sized: Daemon) -> None:
    pod = Pod.run(sized)
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
    plain = pod.start(SHELL, ["/bin/sh", "-c", "exit 137"], name="plain", linux=limited(48))
    status = plain.wait()
    assert (status.reason, status.exit_code) == ("Error", 137)
    fine = pod.start(SHELL, ["/bin/true"], name="fine")
    status = fine.wait()
    assert (status.reason, status.exit_code) == ("Completed", 0)
    assert steady.sh("echo up") == "up"
    assert steady.status().state == v1_pb2.CONTAINER_RUNNING
    assert pod.state == v1_pb2.SANDBOX_READY


def test_a_guest_out_of_memory_ends_one_container(sized: Daemon) -> None:
    """Nobody has a limit: the guest itself is full."""
    pod = Pod.run(sized)
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
    sized: Daemon, group: Group, tmp_path: Path
) -> None:
    """Page cache, volumes and memory to the brim, in a group that is limited as the kubelet's."""
    asked = 88 + 64
    group.limit(asked + RUNTIME_CLASS_MIB)
    sandbox = v1_pb2.LinuxPodSandboxConfig(
        cgroup_parent=group.parent,
        resources=v1_pb2.LinuxContainerResources(memory_limit_in_bytes=asked * MIB),
    )
    pod = Pod.run(sized, linux=sandbox)
    volume = v1_pb2.Mount(container_path="/data", host_path=str(tmp_path))
    worker = pod.start(SHELL, SLEEP, name="worker", mounts=[volume], linux=limited(88))
    steady = pod.start(SHELL, SLEEP, name="steady", linux=limited(64))
    for turn in range(2):
        for folder in ("/data", "/var"):
            file = f"{folder}/fill{turn}"
            worker.sh(f"dd if=/dev/zero of={file} bs=1M count=110 2>/dev/null", 300)
            worker.sh(f"cat {file} > /dev/null; rm {file}", 300)
        # What was killed is an exec, and the container lives.
        assert worker.sh("tail /dev/zero; echo $?", 120) == "137"
    greedy = pod.start(SHELL, GREEDY, name="greedy", linux=limited(48))
    assert greedy.wait(120).reason == "OOMKilled"
    assert group.kills() == 0
    assert pod.state == v1_pb2.SANDBOX_READY
    assert [each.sh("echo up") for each in (worker, steady)] == ["up", "up"]
    pod.remove()


def test_a_limit_of_the_pod_alone_is_the_guests_too(sized: Daemon, slice_group: Group) -> None:
    """Limits of the pod as a whole: no container has one, and the group on the host does."""
    group = slice_group
    group.limit(80 + RUNTIME_CLASS_MIB)
    sandbox = v1_pb2.LinuxPodSandboxConfig(
        cgroup_parent=group.parent,
        resources=v1_pb2.LinuxContainerResources(memory_limit_in_bytes=80 * MIB),
    )
    pod = Pod.run(sized, linux=sandbox)
    steady = pod.start(SHELL, SLEEP, name="steady")
    greedy = pod.start(SHELL, GREEDY, name="greedy")
    assert greedy.wait(120).reason == "OOMKilled"
    # The kubelet gives the pod more, and then tells so.
    group.limit(150 + RUNTIME_CLASS_MIB)
    request = v1_pb2.UpdatePodSandboxResourcesRequest(
        pod_sandbox_id=pod.id,
        resources=v1_pb2.LinuxContainerResources(memory_limit_in_bytes=150 * MIB),
    )
    sized.client.runtime(
        "UpdatePodSandboxResources", request, v1_pb2.UpdatePodSandboxResourcesResponse
    )
    hold = "import time; kept = bytearray(100 << 20); print('held', flush=True); time.sleep(1e6)"
    holder = pod.start(WEBAPP, ["python3", "-c", hold], name="holder")
    until("it holds more than the former limit", lambda: "held" in holder.output(), 120)
    assert group.kills() == 0
    assert steady.sh("echo up") == "up"
    pod.remove()


def test_a_limit_too_low_for_any_process_says_so(sized: Daemon) -> None:
    pod = Pod.run(sized)
    tiny = limited(1)
    tiny.resources.memory_limit_in_bytes = 4096
    with pytest.raises(errors.FailedPrecondition, match="memory limit is too low"):
        pod.create(SHELL, SLEEP, name="tiny", linux=tiny)
    assert pod.start(SHELL, SLEEP).sh("echo up") == "up"


def exited(container: Container) -> tuple[str, int, str]:
    status = container.status()
    assert status.state == v1_pb2.CONTAINER_EXITED
    assert 0 < status.created_at <= status.started_at <= status.finished_at
    return status.reason, status.exit_code, status.message


def test_a_start_that_fails_says_why(sized: Daemon) -> None:
    pod = Pod.run(sized)
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
            sized.client.start_container(made.id)
        reason, code, message = exited(made)
        assert (reason, code) == ("StartError", 128)
        assert said in message
        time.sleep(0.2)
        assert exited(made) == (reason, code, message), "its init's end does not change the reason"


def test_attempts_and_ends_that_no_daemon_saw(durable: Daemon, tmp_path: Path) -> None:
    pod = Pod.run(durable)
    greedy = limited(48)
    lives = {
        "fails": ("exit 7", ("Error", 7)),
        "completes": ("exit 0", ("Completed", 0)),
        "starves": ("exec tail /dev/zero", ("OOMKilled", 137)),
    }
    gate = v1_pb2.Mount(container_path="/gate", host_path=str(tmp_path))
    wait = "while [ ! -e /gate/open ]; do sleep 0.1; done;"
    made = {
        name: pod.start(
            SHELL, ["/bin/sh", "-c", f"{wait} {end}"], name=name, linux=greedy, mounts=[gate]
        )
        for name, (end, _) in lives.items()
    }
    steady = pod.start(SHELL, SLEEP, name="steady")
    durable.kill()
    alone_from = time.time_ns()
    (tmp_path / "open").touch()
    until(
        "all have ended",
        lambda: all(
            '"exited"'
            in (durable.state / "vms" / pod.vm / "containers" / f"{each.id}.json").read_text()
            for each in made.values()
        ),
        60,
    )
    ended_by = time.time_ns()
    durable.start()
    for name, (_, expected) in lives.items():
        reason, code, _ = exited(made[name])
        assert (reason, code) == expected
        status = made[name].status()
        assert status.started_at < alone_from < status.finished_at < ended_by
    # The next attempt lives beside the last, and has its own end.
    config = v1_pb2.ContainerConfig()
    config.CopyFrom(made["fails"].config)
    config.metadata.attempt = 1
    config.log_path = "fails/1.log"
    client = durable.client
    with pytest.raises(errors.AlreadyExists):
        client.create_container(pod.id, made["fails"].config, pod.config)
    again = Container(pod, client.create_container(pod.id, config, pod.config), config)
    client.start_container(again.id)
    assert again.wait().exit_code == 7
    attempts = {(each.metadata.name, each.metadata.attempt) for each in client.containers(pod.id)}
    assert {("fails", 0), ("fails", 1)} <= attempts
    client.remove_container(made["fails"].id)
    assert exited(again)[:2] == ("Error", 7)
    assert steady.sh("echo up") == "up"
