"""A running pod's VM grows with its limits, beyond what it was restored with, and shrinks again."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from e2e.harness.resources import group_memory, in_force, limited, setting, update, update_pod
from e2e.harness.waiting import until
from hostlib import errors
from vmm import accel

MIB = 2**20
CPUS = 2 if accel.probe().name == "kvm" and (os.cpu_count() or 1) > 1 else 1
"""Processors of a VM that has grown here: under TCG it keeps those that it has."""

Resources = v1_pb2.LinuxContainerResources

FIRST = Resources(memory_limit_in_bytes=100 * MIB, cpu_quota=50_000, cpu_period=100_000)

TAKE = (
    "import sys\n"
    "kept = bytearray(int(sys.argv[1]) << 20)\n"
    "for at in range(0, len(kept), 4096): kept[at] = 1\n"
    "print('taken')"
)


@pytest.fixture
def pod(sized: Daemon) -> Iterator[Pod]:
    """A pod in the smaller VM, as the kubelet asks for one."""
    made = Pod.run(sized, linux=v1_pb2.LinuxPodSandboxConfig(resources=FIRST))
    assert size(made) == {"vcpus": 1, "memory_mib": 256}
    yield made
    sized.arm("")
    if not sized.alive():
        sized.close_client()
        sized.start()


def size(pod: Pod) -> dict[str, int]:
    """What the pod's VM has."""
    record = pod.daemon.records()[pod.vm]
    found: dict[str, int] = record.get("size") or record["shape"]
    return found


def takes(container: Container, mib: int) -> bool:
    """Whether a process can have so much memory."""
    argv = ["python3", "-c", TAKE, str(mib)]
    answer = container.pod.daemon.client.exec_sync(container.id, argv, 120)
    return bool(answer.stdout == b"taken\n")


def stats(pod: Pod) -> v1_pb2.LinuxPodSandboxStats:
    request = v1_pb2.PodSandboxStatsRequest(pod_sandbox_id=pod.id)
    answer = pod.daemon.client.runtime("PodSandboxStats", request, v1_pb2.PodSandboxStatsResponse)
    return answer.stats.linux


def held(pod: Pod) -> int:
    """The bytes of its own that the pod's QEMU holds."""
    qemu = pod.daemon.records()[pod.vm]["qemu_pid"]
    with open(f"/proc/{qemu}/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon:"))


def test_a_container_gets_what_its_vm_was_not_restored_with(pod: Pod) -> None:
    main = pod.start(WEBAPP, SLEEP, linux=limited(FIRST))
    before, resident = group_memory(pod), held(pod)
    assert not takes(main, 400)
    update(main, memory_limit_in_bytes=600 * MIB, cpu_quota=CPUS * 100_000, cpu_period=100_000)
    grown = size(pod)
    assert (grown["vcpus"], grown["memory_mib"] > 600) == (CPUS, True)
    assert group_memory(pod) >= before + 500 * MIB
    assert (in_force(main).memory_limit_in_bytes, in_force(main).cpu_quota) == (
        600 * MIB,
        CPUS * 100_000,
    )
    assert setting(main, "memory.max") == str(600 * MIB)
    assert main.sh("nproc") == str(CPUS)
    assert takes(main, 400)
    told = stats(pod)
    memory = told.containers[0].memory
    assert memory.available_bytes.value + memory.working_set_bytes.value == 600 * MIB
    assert told.memory.available_bytes.value > 100 * MIB
    assert held(pod) > resident + 350 * MIB, "the process has ended, and its pages are the guest's"
    shown = pod.daemon.client.pod_status(pod.id, verbose=True).info["info"]
    assert json.loads(shown)["vm"]["size"] == f"{CPUS}x{grown['memory_mib']}"
    # The limits fall, and what the VM grew by is the host's again.
    update(main, memory_limit_in_bytes=100 * MIB, cpu_quota=50_000, cpu_period=100_000)
    assert size(pod) == {"vcpus": 1, "memory_mib": 256}
    assert in_force(main) == FIRST
    assert main.sh("nproc") == "1"
    assert group_memory(pod) == before
    assert held(pod) < resident + 200 * MIB
    assert not takes(main, 400)
    assert main.status().state == v1_pb2.CONTAINER_RUNNING


def test_a_sum_grows_the_vm_and_a_new_container_does(pod: Pod) -> None:
    first = pod.start(WEBAPP, SLEEP, name="first", linux=limited(FIRST))
    update_pod(pod, resources=Resources(memory_limit_in_bytes=500 * MIB, cpu_quota=50_000))
    ahead = size(pod)
    assert ahead["memory_mib"] > 500
    second = Resources(memory_limit_in_bytes=450 * MIB, cpu_quota=50_000)
    greedy = pod.start(WEBAPP, SLEEP, name="second", linux=limited(second))
    assert size(pod)["memory_mib"] > 550, "both of them"
    assert takes(greedy, 350)
    assert takes(first, 50)
    pod.daemon.client.remove_container(greedy.id)
    update_pod(pod, resources=FIRST)
    assert size(pod) == {"vcpus": 1, "memory_mib": 256}


def test_what_is_in_use_stays_with_the_vm(pod: Pod) -> None:
    hold = "import time; kept = bytearray(300 << 20); print('held', flush=True); time.sleep(1e6)"
    free = Resources(memory_limit_in_bytes=400 * MIB)
    holder = pod.start(WEBAPP, ["python3", "-c", hold], name="holder", linux=limited(free))
    grown = size(pod)
    until("it holds its memory", lambda: "held" in holder.output(), 120)
    with pytest.raises(errors.FailedPrecondition, match="more than"):
        update(holder, memory_limit_in_bytes=100 * MIB)
    assert size(pod) == grown
    assert in_force(holder).memory_limit_in_bytes == 400 * MIB
    update(holder, memory_limit_in_bytes=350 * MIB)
    assert size(pod)["memory_mib"] > 350
    assert holder.status().state == v1_pb2.CONTAINER_RUNNING


@pytest.mark.parametrize(
    "point", ["growth.begin", "growth.device", "growth.memory", "growth.grown", "container.update"]
)
def test_a_growth_that_fails_leaves_size_and_limits(pod: Pod, point: str) -> None:
    main = pod.start(SHELL, SLEEP, linux=limited(FIRST))
    before = group_memory(pod)
    pod.daemon.arm(f"{point}=1*error")
    more: dict[str, Any] = {
        "memory_limit_in_bytes": 600 * MIB,
        "cpu_quota": CPUS * 100_000,
        "cpu_period": 100_000,
    }
    with pytest.raises(errors.ThawError, match="failpoint"):
        update(main, **more)
    pod.daemon.arm("")
    assert size(pod) == {"vcpus": 1, "memory_mib": 256}
    assert group_memory(pod) == before
    assert in_force(main) == FIRST
    update(main, **more)
    assert size(pod)["memory_mib"] > 600
    assert main.sh("nproc") == str(CPUS)


@pytest.mark.parametrize("point", ["growth.begin", "growth.grown", "container.update"])
def test_a_daemon_that_dies_while_a_vm_grows(pod: Pod, point: str) -> None:
    node = pod.daemon
    main = pod.start(SHELL, SLEEP, linux=limited(FIRST))
    before = group_memory(pod)
    node.arm(f"{point}=kill")
    with pytest.raises(errors.ThawError):
        update(main, memory_limit_in_bytes=600 * MIB)
    node.await_end()
    node.arm("")
    node.start()
    until("the VM is as its limits need it", lambda: size(pod)["memory_mib"] == 256)
    until("its group too", lambda: group_memory(pod) == before)
    assert in_force(main) == FIRST
    assert setting(main, "memory.max") == str(100 * MIB)
    update(main, memory_limit_in_bytes=600 * MIB)
    grown = size(pod)
    assert grown["memory_mib"] > 600
    # What is in force stays so, whichever daemon runs.
    node.kill()
    node.start()
    assert in_force(main).memory_limit_in_bytes == 600 * MIB
    assert size(pod) == grown
    update(main, memory_limit_in_bytes=100 * MIB)
    assert size(pod) == {"vcpus": 1, "memory_mib": 256}


def test_what_no_vm_here_becomes_is_refused_with_what_bounds_it(pod: Pod) -> None:
    main = pod.start(SHELL, SLEEP, linux=limited(FIRST))
    beyond: list[dict[str, Any]] = [
        {"memory_limit_in_bytes": 1 << 40},
        {"cpu_quota": 100 * 100_000, "cpu_period": 100_000},
    ]
    for wanted in beyond:
        with pytest.raises(errors.ResourceExhausted, match="can have") as caught:
            update(main, **wanted)
        assert "vm.max_memory_mib" in str(caught.value)
        with pytest.raises(errors.ResourceExhausted, match="can have"):
            update_pod(pod, resources=Resources(**wanted))
        with pytest.raises(errors.ResourceExhausted, match="can have"):
            pod.create(SHELL, SLEEP, name="large", linux=limited(Resources(**wanted)))
    assert in_force(main) == FIRST
    assert size(pod) == {"vcpus": 1, "memory_mib": 256}
