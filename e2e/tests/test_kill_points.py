"""kill -9 of the daemon, a shim, QEMU and the zygote at each step of a pod's, a pull's and a bake's
life: the next daemon is right, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from cri.api import v1_pb2
from e2e.harness import leaks
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP
from e2e.harness.waiting import until
from hostlib import errors, linux

IN_THE_DAEMON = [
    "sandbox.vm",
    "sandbox.network",
    "network.attach.address",
    "network.attach.ports",
    "network.attach.done",
    "sandbox.bind",
    "sandbox.bound",
    "container.create",
    "container.created",
    "container.start",
    "exec_sync",
    "container.stop",
    "container.remove",
    "sandbox.stop",
    "sandbox.detach",
    "network.detach.link",
    "network.detach.address",
    "sandbox.remove",
    "recover.shim",
    "recover.sweep",
]
IN_THE_SHIM = [
    "birth.tap",
    "birth.restore",
    "vm.connect",
    "pod.bind",
    "restore.verify",
    "restore.reseed",
    "restore.network",
    "restore.ready",
    "layer.attach",
    "layer.mount",
    "pod.stop",
]
IN_A_PULL = ["pull.resolve", "pull.chunk", "layer.rename", "layer.renamed", "store.record"]
STEPS = [
    "sandbox.bind",
    "container.create",
    "container.start",
    "exec_sync",
    "container.stop",
    "container.remove",
    "sandbox.stop",
    "sandbox.remove",
]
"""Where a part other than the one that waits there dies."""

GENEROUS = 30.0
"""Seconds within which a daemon must be right on the slowest machine; 2 is what it shall take, and
the summary of the run says what it took."""


def life(daemon: Daemon) -> None:
    """All that happens to a pod."""
    pod = Pod.run(daemon, "victim", port_mappings=[{"container_port": 80, "host_port": 18231}])
    container = pod.start(SHELL, SLEEP)
    container.sh("true")
    daemon.client.stop_container(container.id)
    daemon.client.remove_container(container.id)
    pod.remove()


def end(daemon: Daemon) -> None:
    """A daemon that was killed may still be a moment from its end; a shim that was leaves it be."""
    with contextlib.suppress(AssertionError):
        until("the daemon ends", lambda: not daemon.alive(), 1)
    daemon.close_client()


def restart(daemon: Daemon, record_property: Callable[[str, object], None]) -> None:
    """A new daemon, timed until it has told which pods there are."""
    begun = time.monotonic()
    daemon.start(GENEROUS)
    daemon.client.pods()
    record_property("seconds until the next daemon is right", time.monotonic() - begun)


def is_right(daemon: Daemon) -> None:
    """What the node says is true, and can be worked with; afterwards nothing is there."""
    records = daemon.records()
    for found in daemon.client.pods():
        if found.state == v1_pb2.SANDBOX_READY:
            record = records[daemon.vm_of(found.id)]
            for process in ("shim", "qemu"):
                started = linux.start_time(record[f"{process}_pid"])
                assert started == record[f"{process}_start_time"], process
    for container in daemon.client.containers():
        assert daemon.client.container_status(container.id).id == container.id
    daemon.remove_pods()
    assert not daemon.client.containers()
    assert not daemon.bound_vms()
    Pod.run(daemon).remove()


@pytest.mark.parametrize("point", [*IN_THE_DAEMON, *IN_THE_SHIM])
def test_whoever_dies_at_a_step_leaves_a_node_that_works(
    durable: Daemon, point: str, record_property: Callable[[str, object], None]
) -> None:
    # In the daemon each start passes the points of recovery: there the next but one is right.
    if point.startswith("recover."):
        pod = Pod.run(durable, "survivor")
        durable.kill()
        durable.arm(f"{point}=kill")
        durable.spawn()
        durable.await_end(GENEROUS)
        durable.arm("")
        restart(durable, record_property)
        assert pod.state == v1_pb2.SANDBOX_READY
    else:
        durable.arm(f"{point}=kill")
        with contextlib.suppress(errors.ThawError, AssertionError):
            life(durable)
        durable.arm("")
        end(durable)
        assert durable.alive() == (point in IN_THE_SHIM)
        if not durable.alive():
            restart(durable, record_property)
    is_right(durable)


def pids(daemon: Daemon, part: str) -> list[int]:
    """The process of `part` that a pod depends on, or the next one would."""
    if part == "zygote":
        return daemon.zygotes()
    records = daemon.records()
    bound = [name for name in records if (daemon.state / "vms" / name / "pod.json").exists()]
    return [int(records[name][f"{part}_pid"]) for name in bound or records]


@pytest.mark.parametrize(
    ("part", "step"),
    [
        *(("shim", step) for step in STEPS),
        # By the removal the VM has ended.
        *(("qemu", step) for step in STEPS[:-1]),
        # A pod that has its VM needs no zygote; the pool does, all the time.
        *(("zygote", step) for step in ("sandbox.bind", "container.start", "sandbox.remove")),
    ],
)
def test_a_part_that_dies_during_a_step(durable: Daemon, part: str, step: str) -> None:
    durable.arm(f"{step}=1*delay(0.5)")
    fired = durable.log.stat().st_size
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(life, durable)
        until(
            "the step begins",
            lambda: f"failpoint {step}: delay" in durable.log_text(fired) or done.done(),
        )
        for pid in pids(durable, part):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        error = done.exception()
    durable.arm("")
    assert durable.alive()
    assert f"failpoint {step}: delay" in durable.log_text(fired)
    if part == "zygote" or step in ("sandbox.stop", "sandbox.remove"):
        # Nothing that was asked for depends on what died, or it only had to end.
        assert error is None
    elif step in ("sandbox.bind", "container.create", "container.start", "exec_sync"):
        assert isinstance(error, errors.ThawError)
    is_right(durable)


def layers(daemon: Daemon) -> list[str]:
    return sorted(path.name for path in daemon.root.glob("images/**/*.squashfs"))


@pytest.mark.parametrize("point", IN_A_PULL)
def test_the_daemon_dies_during_a_pull(
    durable: Daemon, point: str, record_property: Callable[[str, object], None]
) -> None:
    durable.arm(f"{point}=kill")
    with pytest.raises(errors.ThawError):
        durable.client.pull_image(NGINX)
    durable.await_end()
    durable.arm("")
    restart(durable, record_property)
    # Whole or not there; a second pull makes it whole, and its removal takes everything away.
    assert SHELL in [tag for image in durable.client.images() for tag in image.repo_tags]
    before = layers(durable)
    assert len(before) == 1
    durable.client.pull_image(NGINX)
    Pod.run(durable).start(NGINX, ["/bin/sh", "-c", "exit 0"])
    durable.remove_pods()
    durable.client.remove_image(NGINX)
    assert layers(durable) == before


@pytest.mark.parametrize("part", ["daemon", "zygote", "bake"])
def test_who_dies_during_a_bake(
    make_daemon: Callable[..., Daemon], part: str, record_property: Callable[[str, object], None]
) -> None:
    daemon = make_daemon()
    daemon.share_snapshots = False
    daemon.start()
    until("QEMU boots a guest", daemon.qemus, 60)
    if part == "daemon":
        daemon.kill()
    else:
        (victim,) = daemon.zygotes() if part == "zygote" else daemon.bakes()
        os.kill(victim, signal.SIGKILL)
        if part == "bake":
            assert until("Status says why", daemon.runtime_problem, 30).message
        # The zygote only forked it: the bake goes on.
        assert bool(daemon.bakes()) == (part == "zygote")
        daemon.terminate()
    # QEMU dies with the bake, and the bake with its daemon.
    until("no process is left", lambda: not leaks.processes(str(daemon.root)), 10)
    daemon.share_snapshots = True
    restart(daemon, record_property)
    until("the snapshot is found", lambda: daemon.runtime().status, 60)
    assert not list((daemon.root / "snapshots").glob(".*"))
    assert Pod.run(daemon).state == v1_pb2.SANDBOX_READY
