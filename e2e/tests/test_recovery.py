"""Daemons, shims, VMs and the zygote die at bad moments; nothing is lost, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.waiting import until
from hostlib import errors, linux

COUNTER = ("/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done")


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_pods_live_on_without_the_daemon_and_are_adopted(own: Daemon, end: str) -> None:
    pod = Pod.run(own)
    counter = pod.start(SHELL, COUNTER)
    ip, vm, started = pod.ip, pod.vm, counter.status().started_at
    getattr(own, end)()
    written = counter.output().count("\n")
    until("the log goes on", lambda: counter.output().count("\n") > written + 5)
    own.start()
    assert [found.id for found in own.client.pods()] == [pod.id]
    assert (pod.ip, pod.vm, pod.state) == (ip, vm, v1_pb2.SANDBOX_READY)
    assert counter.status().started_at == started
    assert counter.sh("echo alive") == "alive"
    numbers = [int(n) for n in counter.output().split()]
    assert numbers == list(range(1, len(numbers) + 1))
    pod.remove()


def test_a_container_that_ended_meanwhile_is_known_with_its_exit_code(own: Daemon) -> None:
    pod = Pod.run(own)
    done = pod.start(SHELL, ["/bin/sh", "-c", "sleep 1; exit 5"])
    own.kill()
    time.sleep(2)
    own.start()
    assert done.wait().exit_code == 5


def test_qemu_dies_and_the_pod_is_not_ready_with_a_reason(own: Daemon) -> None:
    pod = Pod.run(own)
    container = pod.start(SHELL, SLEEP)
    os.kill(own.records()[pod.vm]["qemu_pid"], signal.SIGKILL)
    status = container.wait()
    assert status.exit_code != 0
    assert status.reason == "Error"
    assert status.message
    until("the pod is not ready", lambda: pod.state == v1_pb2.SANDBOX_NOTREADY)
    pod.remove()


def test_a_shim_dies_with_its_vm_and_containers_are_reported_exited(own: Daemon) -> None:
    pod = Pod.run(own)
    container = pod.start(SHELL, SLEEP)
    record = own.records()[pod.vm]
    os.kill(record["shim_pid"], signal.SIGKILL)
    until("QEMU is gone too", lambda: linux.start_time(record["qemu_pid"]) is None)
    status = container.wait()
    assert status.exit_code == 255
    assert status.reason == "Error"
    until("the pod is not ready", lambda: pod.state == v1_pb2.SANDBOX_NOTREADY)
    pod.remove()


def test_a_shim_that_died_while_no_daemon_ran_is_reported_by_the_next(own: Daemon) -> None:
    pod = Pod.run(own)
    container = pod.start(SHELL, SLEEP)
    record = own.records()[pod.vm]
    own.kill()
    os.kill(record["shim_pid"], signal.SIGKILL)
    own.start()
    assert container.wait().exit_code == 255
    assert pod.state == v1_pb2.SANDBOX_NOTREADY
    pod.remove()


def test_the_zygote_dies_and_pods_can_still_be_made(own: Daemon) -> None:
    pod = Pod.run(own)
    container = pod.start(SHELL, SLEEP)
    for zygote in _zygotes(own):
        os.kill(zygote, signal.SIGKILL)
    second = Pod.run(own)
    assert second.start(SHELL, SLEEP).sh("echo up") == "up"
    assert container.sh("echo up") == "up"


def _zygotes(daemon: Daemon) -> list[int]:
    """The daemon's children that run the zygote."""
    assert daemon.process is not None
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat") as source:
                    parent = int(source.read().rpartition(")")[2].split()[1])
                with open(f"/proc/{name}/cmdline") as source:
                    command = source.read()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if parent == daemon.process.pid and "zygote" in command:
                found.append(int(name))
    assert found
    return found


@pytest.mark.parametrize(
    "step",
    [
        "restore.reseed",
        "restore.clock",
        "restore.network",
        "restore.identity",
    ],
)
def test_a_restore_step_that_fails_fails_the_pod_and_leaves_nothing(own: Daemon, step: str) -> None:
    own.arm(f"{step}=error(injected by the test)")
    with pytest.raises(errors.ThawError) as caught:
        Pod.run(own)
    assert "injected by the test" in caught.value.message
    own.arm("")
    assert not own.client.pods()
    assert not own.bound_vms()
    assert Pod.run(own, "after").start(SHELL, SLEEP).sh("echo up") == "up"


def test_a_name_is_free_again_after_a_failed_start(own: Daemon) -> None:
    own.arm("restore.reseed=error(once)")
    with pytest.raises(errors.ThawError):
        Pod.run(own, "again")
    own.arm("")
    assert Pod.run(own, "again").state == v1_pb2.SANDBOX_READY


def test_a_second_daemon_on_the_same_root_is_refused(
    own: Daemon, make_daemon: Callable[..., Daemon]
) -> None:
    rival = make_daemon(root=own.root)
    rival.spawn()
    assert rival.process is not None
    assert rival.process.wait(30) != 0
    assert "hint:" in rival.log.read_text()
    rival.process = None
    assert own.client.version().runtime_name == "thaw"


def test_a_stale_socket_is_taken_over(own: Daemon) -> None:
    own.kill()
    assert own.socket.exists()
    own.start()
    assert own.client.version().runtime_name == "thaw"


def test_daemons_run_side_by_side(make_daemon: Callable[..., Daemon]) -> None:
    daemons = [make_daemon(), make_daemon()]
    for daemon in daemons:
        daemon.start().client.pull_image(SHELL)
    pods = [Pod.run(daemon, "same-name") for daemon in daemons]
    assert [pod.start(SHELL, SLEEP).sh("hostname") for pod in pods] == ["same-name"] * 2
    assert pods[0].ip != pods[1].ip
    pods[0].remove()
    assert pods[1].state == v1_pb2.SANDBOX_READY


def test_a_damaged_snapshot_is_baked_again(own: Daemon) -> None:
    own.terminate()
    for snapshot in (own.root / "snapshots").iterdir():
        for file in snapshot.iterdir():
            if file.is_file():
                size = file.stat().st_size
                # A new file: the old one's bytes are shared with other tests.
                with file.open("rb") as source:
                    damaged = source.read(min(size // 2, 1 << 20))
                file.unlink()
                file.write_bytes(damaged)
                os.truncate(file, size // 2)
    own.start()
    assert Pod.run(own).start(SHELL, SLEEP).sh("echo up") == "up"
