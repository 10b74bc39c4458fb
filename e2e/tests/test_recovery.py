"""Daemons, shims, VMs and the zygote die at bad moments; nothing is lost, nothing is left."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP, SMALL
from e2e.harness.registry import free_port
from e2e.harness.waiting import until
from hostlib import errors, linux

COUNTER = ("/bin/sh", "-c", "n=0; while :; do n=$((n+1)); echo $n; sleep 0.1; done")


@pytest.mark.parametrize("end", ["terminate", "kill"])
def test_pods_live_on_without_the_daemon_and_are_adopted(durable: Daemon, end: str) -> None:
    pod = Pod.run(durable)
    counter = pod.start(SHELL, COUNTER)
    ip, vm, started = pod.ip, pod.vm, counter.status().started_at
    getattr(durable, end)()
    written = counter.output().count("\n")
    until("the log goes on", lambda: counter.output().count("\n") > written + 5)
    durable.start()
    assert [found.id for found in durable.client.pods()] == [pod.id]
    assert (pod.ip, pod.vm, pod.state) == (ip, vm, v1_pb2.SANDBOX_READY)
    assert counter.status().started_at == started
    assert counter.sh("echo alive") == "alive"
    numbers = [int(n) for n in counter.output().split()]
    assert numbers == list(range(1, len(numbers) + 1))
    pod.remove()


def test_what_ended_without_the_daemon_is_told_as_it_was(durable: Daemon, tmp_path: Path) -> None:
    """Code, reason, times and output, by each daemon that comes after."""
    gate = v1_pb2.Mount(container_path="/gate", host_path=str(tmp_path))
    scripts = {
        "bad": "echo last words; exit 5",
        "good": "exit 0",
        # As when it is told to, by whoever else may: the code of a process that a signal ends.
        "killed": "sh -c 'kill -9 $$'; exit $?",
    }
    pod = Pod.run(durable)
    wait = "while [ ! -e /gate/open ]; do sleep 0.1; done;"
    made = {
        name: pod.start(SHELL, ["/bin/sh", "-c", f"{wait} {script}"], name=name, mounts=[gate])
        for name, script in scripts.items()
    }
    started = {name: each.status().started_at for name, each in made.items()}
    records = [durable.state / f"vms/{pod.vm}/containers/{each.id}.json" for each in made.values()]
    durable.kill()
    before = time.time_ns()
    (tmp_path / "open").touch()
    until("the shim has recorded it", lambda: all("exited" in each.read_text() for each in records))
    after = time.time_ns()
    durable.start()
    told = {name: each.status() for name, each in made.items()}
    codes = {name: (each.exit_code, each.reason) for name, each in told.items()}
    assert codes == {"bad": (5, "Error"), "good": (0, "Completed"), "killed": (137, "Error")}
    for name, each in told.items():
        assert each.state == v1_pb2.CONTAINER_EXITED
        assert each.started_at == started[name]
        assert before < each.finished_at < after
    assert made["bad"].output() == "last words\n"
    answer = durable.client.pod_status(pod.id)
    assert {each.id: each for each in answer.containers_statuses} == {
        each.id: each for each in told.values()
    }
    assert answer.timestamp > after
    durable.kill()
    durable.start()
    assert {name: each.status() for name, each in made.items()} == told
    assert pod.state == v1_pb2.SANDBOX_READY


def test_qemu_dies_and_the_pod_is_not_ready_with_a_reason(durable: Daemon) -> None:
    pod = Pod.run(durable)
    container = pod.start(SHELL, SLEEP)
    os.kill(durable.records()[pod.vm]["qemu_pid"], signal.SIGKILL)
    status = container.wait()
    assert status.exit_code != 0
    assert status.reason == "Error"
    assert status.message
    until("the pod is not ready", lambda: pod.state == v1_pb2.SANDBOX_NOTREADY)
    pod.remove()


def test_a_vm_that_hangs_while_it_waits_costs_a_pod_time_and_no_more(own: Daemon) -> None:
    until("a VM waits", lambda: own.client.pool().shapes[0].ready == 1)
    (qemu,) = [vm["qemu_pid"] for vm in own.records().values() if vm["state"] == "pooled"]
    begun = linux.start_time(qemu)
    os.kill(qemu, signal.SIGSTOP)
    pod = Pod.run(own)
    assert pod.start(SHELL, SLEEP).sh("echo up") == "up"
    assert f"pod {pod.id[:12]} gets another VM" in own.log_text()
    until("the first one is gone", lambda: linux.start_time(qemu) != begun)
    pod.remove()


def test_a_shim_dies_with_its_vm_and_containers_are_reported_exited(durable: Daemon) -> None:
    pod = Pod.run(durable)
    container = pod.start(SHELL, SLEEP)
    record = durable.records()[pod.vm]
    os.kill(record["shim_pid"], signal.SIGKILL)
    until("QEMU is gone too", lambda: linux.start_time(record["qemu_pid"]) is None)
    status = container.wait()
    assert status.exit_code == 255
    assert status.reason == "Error"
    until("the pod is not ready", lambda: pod.state == v1_pb2.SANDBOX_NOTREADY)
    pod.remove()


def test_a_shim_that_died_while_no_daemon_ran_is_reported_by_the_next(durable: Daemon) -> None:
    pod = Pod.run(durable)
    container = pod.start(SHELL, SLEEP)
    record = durable.records()[pod.vm]
    durable.kill()
    os.kill(record["shim_pid"], signal.SIGKILL)
    durable.start()
    assert container.wait().exit_code == 255
    assert pod.state == v1_pb2.SANDBOX_NOTREADY
    pod.remove()


def test_the_zygote_dies_and_pods_can_still_be_made(durable: Daemon) -> None:
    pod = Pod.run(durable)
    container = pod.start(SHELL, SLEEP)
    (zygote,) = until("there is a zygote", durable.zygotes)
    os.kill(zygote, signal.SIGKILL)
    second = Pod.run(durable)
    assert second.start(SHELL, SLEEP).sh("echo up") == "up"
    assert container.sh("echo up") == "up"


@pytest.mark.parametrize(
    "step",
    ["verify", "vmgenid", "reseed", "clock", "network", "identity", "generation", "ready"],
)
def test_a_restore_step_that_fails_fails_the_pod_and_leaves_nothing(
    durable: Daemon, step: str
) -> None:
    port = free_port()
    mapping = v1_pb2.PortMapping(container_port=80, host_port=port)
    durable.arm(f"restore.{step}=error(injected by the test)")
    with pytest.raises(errors.ThawError, match=f"restore step {step}: injected by the test"):
        Pod.run(durable, "failing", port_mappings=[mapping])
    durable.arm("")
    assert not durable.client.pods()
    assert not durable.bound_vms()
    until("nothing of it is left", lambda: not durable.unclaimed())
    # Its name and its port are free again.
    again = Pod.run(durable, "failing", port_mappings=[mapping])
    assert again.start(SHELL, SLEEP).sh("echo up") == "up"


def test_a_second_daemon_on_the_same_root_is_refused(
    own: Daemon, make_daemon: Callable[..., Daemon]
) -> None:
    rival = make_daemon(root=own.root)
    rival.spawn()
    assert rival.process is not None
    assert rival.process.wait(60) != 0
    assert "hint:" in rival.log.read_text()
    rival.process = None
    assert own.client.version().runtime_name == "thaw"


def test_a_stale_socket_is_taken_over(durable: Daemon) -> None:
    durable.kill()
    assert durable.socket.exists()
    durable.start()
    assert durable.client.version().runtime_name == "thaw"


def test_daemons_run_side_by_side(make_daemon: Callable[..., Daemon]) -> None:
    daemons = [make_daemon(), make_daemon()]
    for daemon in daemons:
        daemon.start().client.pull_image(SHELL)
    pods = [Pod.run(daemon, "same-name") for daemon in daemons]
    assert [pod.start(SHELL, SLEEP).sh("hostname") for pod in pods] == ["same-name"] * 2
    assert pods[0].ip != pods[1].ip
    pods[0].remove()
    assert pods[1].state == v1_pb2.SANDBOX_READY


def test_a_damaged_snapshot_is_baked_again(make_daemon: Callable[..., Daemon]) -> None:
    own = make_daemon(settings={"guest": SMALL}).start()
    own.client.pull_image(SHELL)
    until("the snapshot is there", lambda: own.runtime().status, 240)
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
