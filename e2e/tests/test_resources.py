"""Resources: limits in the guest, their changes while it runs, and the VM that is sized by them."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from e2e.harness.resources import group_memory, in_force, limited, setting, update, update_pod
from e2e.harness.waiting import until
from hostlib import errors

MIB = 2**20
Resources = v1_pb2.LinuxContainerResources


@pytest.fixture(scope="module")
def node(_sized: Daemon) -> Daemon:
    return _sized


@pytest.fixture(scope="module")
def _pod(node: Daemon) -> Iterator[Pod]:
    """A pod that asks for 2 CPUs and 256 MiB, in a VM of the larger shape."""
    asked = Resources(cpu_quota=200_000, cpu_period=100_000, memory_limit_in_bytes=256 * MIB)
    made = Pod.run(node, "sized", linux=v1_pb2.LinuxPodSandboxConfig(resources=asked))
    yield made
    made.remove()


@pytest.fixture
def pod(_pod: Pod) -> Iterator[Pod]:
    """The same, without containers."""
    yield _pod
    for each in _pod.daemon.client.containers(_pod.id):
        _pod.daemon.client.remove_container(each.id)


def affinity(pod: Pod) -> set[int]:
    """The node's processors that the threads of the pod's VM may run on."""
    qemu = pod.daemon.records()[pod.vm]["qemu_pid"]
    found: set[int] = set()
    for thread in os.listdir(f"/proc/{qemu}/task"):
        # QEMU's threads come and go.
        with contextlib.suppress(ProcessLookupError):
            found |= os.sched_getaffinity(int(thread))
    return found


def test_every_limit_is_in_force_and_reported(pod: Pod) -> None:
    asked = Resources(
        cpu_period=50_000,
        cpu_quota=25_000,
        cpu_shares=512,
        memory_limit_in_bytes=64 * MIB,
        memory_swap_limit_in_bytes=80 * MIB,
        oom_score_adj=500,
        cpuset_cpus="1",
        cpuset_mems="0",
        hugepage_limits=[
            v1_pb2.HugepageLimit(page_size="2MB", limit=4 * MIB),
            v1_pb2.HugepageLimit(page_size="1GB"),
        ],
        unified={"pids.max": "24", "memory.high": str(60 * MIB), "memory.oom.group": "1"},
    )
    container = pod.start(SHELL, SLEEP, name="all", linux=limited(asked))
    expected = {
        "cpu.max": "25000 50000",
        "cpu.weight": "20",
        "memory.max": str(64 * MIB),
        "memory.swap.max": str(16 * MIB),
        "memory.high": str(60 * MIB),
        "memory.oom.group": "1",
        "pids.max": "24",
        "hugetlb.2MB.max": str(4 * MIB),
    }
    assert {name: setting(container, name) for name in expected} == expected
    assert container.sh("cat /proc/1/oom_score_adj") == "500"
    assert container.sh("nproc") == "1"
    assert in_force(container) == asked
    # More processes than it may have.
    forks = "i=0; while [ $i -lt 40 ]; do sleep 60 & i=$((i+1)); done"
    answer = pod.daemon.client.exec_sync(container.id, ["/bin/sh", "-c", forks], 60)
    assert b"ork" in answer.stderr
    pod.daemon.client.remove_container(container.id)


def test_an_update_changes_what_it_names_and_outlives_the_daemon(pod: Pod, node: Daemon) -> None:
    asked = Resources(cpu_shares=1024, memory_limit_in_bytes=64 * MIB, oom_score_adj=300)
    container = pod.start(SHELL, SLEEP, name="changing", linux=limited(asked))
    update(container, memory_limit_in_bytes=96 * MIB, cpu_quota=50_000, cpu_period=100_000)
    update(container, oom_score_adj=400, unified={"pids.max": "50"}, cpuset_cpus="0")
    asked.memory_limit_in_bytes = 96 * MIB
    asked.cpu_quota, asked.cpu_period = 50_000, 100_000
    asked.oom_score_adj, asked.cpuset_cpus = 400, "0"
    asked.unified["pids.max"] = "50"

    def check() -> None:
        assert in_force(container) == asked
        assert setting(container, "memory.max") == str(96 * MIB)
        assert setting(container, "cpu.max") == "50000 100000"
        assert setting(container, "cpu.weight") == "39"
        assert setting(container, "pids.max") == "50"
        assert container.sh("cat /proc/1/oom_score_adj /proc/self/oom_score_adj") == "400\n400"
        assert container.sh("nproc") == "1"

    check()
    # What the guest refuses changes nothing, neither there nor in what is reported.
    with pytest.raises(errors.InvalidArgument, match=r"pids\.max"):
        update(container, memory_limit_in_bytes=80 * MIB, unified={"pids.max": "many"})
    check()
    node.kill()
    node.start()
    check()
    # Nor is it lost when the daemon dies between the guest and its own answer.
    node.arm("container.updated=kill")
    with pytest.raises(errors.ThawError):
        update(container, cpu_quota=60_000)
    node.await_end()
    node.arm("")
    node.start()
    asked.cpu_quota = 60_000
    assert in_force(container) == asked
    assert setting(container, "cpu.max") == "60000 100000"
    node.client.remove_container(container.id)
    with pytest.raises(errors.NotFound):
        update(container, cpu_quota=70_000)


def test_an_ended_container_keeps_its_limits(pod: Pod) -> None:
    ended = pod.start(SHELL, ["/bin/true"], name="ended", linux=limited(Resources(cpu_shares=100)))
    ended.wait()
    with pytest.raises(errors.FailedPrecondition, match="has ended"):
        update(ended, cpu_shares=200)
    assert in_force(ended).cpu_shares == 100


def test_processors_are_the_nodes_and_the_guests(pod: Pod) -> None:
    online = set(range(os.cpu_count() or 1))
    one = pod.start(SHELL, SLEEP, name="one", linux=limited(Resources(cpuset_cpus="0")))
    assert affinity(pod) == {0}
    two = pod.start(SHELL, SLEEP, name="two", linux=limited(Resources(cpuset_cpus="0")))
    own = {setting(each, "cpuset.cpus") for each in (one, two)}
    assert own == {"0", "1"}, "two of a VM's processors for two containers"
    free = pod.start(SHELL, SLEEP, name="free")
    assert free.sh("nproc") == "2"
    assert affinity(pod) == online, "one container may run anywhere"
    pod.daemon.client.remove_container(free.id)
    until("the VM is kept to one processor again", lambda: affinity(pod) == {0})
    if 1 in online:
        update(one, cpuset_cpus="0-1")
        assert affinity(pod) == {0, 1}
        assert one.sh("nproc") == "2"
    for each in (one, two):
        pod.daemon.client.remove_container(each.id)
    until("the VM may run anywhere", lambda: affinity(pod) == online)


def test_huge_pages_are_made_when_they_are_asked_for(pod: Pod) -> None:
    take = (
        "import mmap, sys\n"
        "pages = [mmap.mmap(-1, 2 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | 0x40000)"
        " for _ in range(int(sys.argv[1]))]\n"
        "[page.write(b'x') for page in pages]\n"
        "print('taken')"
    )
    two = Resources(hugepage_limits=[v1_pb2.HugepageLimit(page_size="2MB", limit=4 * MIB)])
    holder = pod.start(WEBAPP, SLEEP, name="huge", linux=limited(two))
    none = pod.start(WEBAPP, SLEEP, name="no-huge")
    client = pod.daemon.client

    def ask(container: Container, pages: int) -> bool:
        argv = ["python3", "-c", take, str(pages)]
        return client.exec_sync(container.id, argv, 60).stdout == b"taken\n"

    assert ask(holder, 2)
    assert not ask(holder, 3)
    assert not ask(none, 1)
    update(holder, hugepage_limits=[v1_pb2.HugepageLimit(page_size="2MB", limit=8 * MIB)])
    assert ask(holder, 3)
    for each in (holder, none):
        client.remove_container(each.id)


REFUSED = {
    "period": (Resources(cpu_period=10), errors.InvalidArgument),
    "quota": (Resources(cpu_quota=-2), errors.InvalidArgument),
    "shares": (Resources(cpu_shares=-1), errors.InvalidArgument),
    "score": (Resources(oom_score_adj=1001), errors.InvalidArgument),
    "swap alone": (Resources(memory_swap_limit_in_bytes=MIB), errors.InvalidArgument),
    "less swap": (
        Resources(memory_limit_in_bytes=20 * MIB, memory_swap_limit_in_bytes=10 * MIB),
        errors.InvalidArgument,
    ),
    "no processor": (Resources(cpuset_cpus="4096"), errors.InvalidArgument),
    "no set": (Resources(cpuset_cpus="0-"), errors.InvalidArgument),
    "no node": (Resources(cpuset_mems="77"), errors.InvalidArgument),
    "large pages": (
        Resources(hugepage_limits=[v1_pb2.HugepageLimit(page_size="1GB", limit=1 << 30)]),
        errors.Unimplemented,
    ),
    "path": (Resources(unified={"../memory.max": "1"}), errors.InvalidArgument),
    "no controller": (Resources(unified={"rdma.max": "x"}), errors.FailedPrecondition),
    "typed": (Resources(unified={"cpuset.cpus": "0"}), errors.InvalidArgument),
    "word": (Resources(unified={"memory.high": "lots"}), errors.InvalidArgument),
    "beyond the node": (Resources(memory_limit_in_bytes=1 << 40), errors.ResourceExhausted),
    "beyond its CPUs": (
        Resources(cpu_quota=100 * 100_000, cpu_period=100_000),
        errors.ResourceExhausted,
    ),
}


def test_what_cannot_be_is_refused_before_and_while_it_runs(pod: Pod) -> None:
    running = pod.start(SHELL, SLEEP, name="steady")
    for name, (wanted, error) in REFUSED.items():
        with pytest.raises(error):
            pod.create(SHELL, SLEEP, name="refused", linux=limited(wanted))
            pytest.fail(f"created with {name}")
        with pytest.raises(error):
            update(running, **{field.name: value for field, value in wanted.ListFields()})
            pytest.fail(f"updated with {name}")
    assert in_force(running) == Resources()
    assert running.sh("echo up") == "up"
    pod.daemon.client.remove_container(running.id)


def test_a_limit_below_what_is_in_use_is_refused(pod: Pod) -> None:
    hold = "import time; kept = bytearray(48 << 20); print('held', flush=True); time.sleep(1e6)"
    limit = Resources(memory_limit_in_bytes=96 * MIB)
    holder = pod.start(WEBAPP, ["python3", "-c", hold], name="holder", linux=limited(limit))
    until("it holds its memory", lambda: "held" in holder.output(), 120)
    with pytest.raises(errors.FailedPrecondition, match="more than"):
        update(holder, memory_limit_in_bytes=32 * MIB)
    with pytest.raises(errors.FailedPrecondition, match="more than"):
        update(holder, unified={"memory.max": str(32 * MIB)})
    assert in_force(holder) == limit
    update(holder, memory_limit_in_bytes=80 * MIB)
    assert setting(holder, "memory.max") == str(80 * MIB)
    assert holder.status().state == v1_pb2.CONTAINER_RUNNING
    pod.daemon.client.remove_container(holder.id)


def test_the_pods_sum_sizes_its_vm_and_can_change(pod: Pod, node: Daemon) -> None:
    assert node.records()[pod.vm]["shape"] == {"vcpus": 2, "memory_mib": 512}
    small = Pod.run(node)
    assert node.records()[small.vm]["shape"] == {"vcpus": 1, "memory_mib": 256}
    small.remove()
    huge = v1_pb2.LinuxPodSandboxConfig(resources=Resources(memory_limit_in_bytes=1 << 40))
    with pytest.raises(errors.ResourceExhausted, match=r"guest\.shapes"):
        Pod.run(node, linux=huge)
    # A request without a limit is a claim on processors too.
    shares = v1_pb2.LinuxPodSandboxConfig(resources=Resources(cpu_shares=1536))
    claims = Pod.run(node, linux=shares)
    assert node.records()[claims.vm]["shape"]["vcpus"] == 2
    claims.remove()
    # What the VM itself takes is room beside the containers' sum.
    most = Resources(memory_limit_in_bytes=120 * MIB)
    beside = Pod.run(node, linux=v1_pb2.LinuxPodSandboxConfig(resources=most, overhead=most))
    assert node.records()[beside.vm]["shape"]["memory_mib"] == 512
    beside.remove()
    before = group_memory(pod)
    update_pod(
        pod,
        resources=Resources(memory_limit_in_bytes=320 * MIB, cpu_quota=200_000, cpu_period=100_000),
        overhead=Resources(memory_limit_in_bytes=16 * MIB),
    )
    until("its group grows", lambda: group_memory(pod) == before + 80 * MIB)
    record = json.loads((node.state / "vms" / pod.vm / "pod.json").read_text())
    assert record["linux"]["resources"]["memory_limit_in_bytes"] == str(320 * MIB)
    with pytest.raises(errors.ResourceExhausted, match="start the pod anew"):
        update_pod(pod, resources=Resources(memory_limit_in_bytes=1 << 40))
    with pytest.raises(errors.InvalidArgument):
        update_pod(pod, resources=Resources(cpu_period=1))
    node.kill()
    node.start()
    until("its group is as it was", lambda: group_memory(pod) == before + 80 * MIB)


def test_the_groups_margin_covers_the_buffer_of_translated_code(pod: Pod, node: Daemon) -> None:
    qemu = node.records()[pod.vm]["qemu_pid"]
    line = Path(f"/proc/{qemu}/cmdline").read_text()
    if "tb-size=" not in line:
        pytest.skip("the VM is not emulated")
    buffer = int(line.split("tb-size=")[1].split("\0")[0])
    sandbox = json.loads((node.state / "vms" / pod.vm / "pod.json").read_text())["linux"]
    asked = sum(int(sandbox[part]["memory_limit_in_bytes"]) for part in ("resources", "overhead"))
    assert group_memory(pod) >= asked + (buffer + 200) * MIB
