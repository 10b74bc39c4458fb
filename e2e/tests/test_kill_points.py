"""kill -9 of the daemon, a shim, QEMU and the zygote at each step of a pod's, a pull's and a bake's
life: the next daemon is right, and nothing is left."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from cri.api import v1_pb2
from e2e.harness import leaks
from e2e.harness.daemon import Daemon
from e2e.harness.life import live
from e2e.harness.pods import Pod
from e2e.harness.refs import NGINX, SHELL
from e2e.harness.volumes import Supplies, supplies
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
    "sandbox.update",
    "container.update",
    "container.stop",
    "container.remove",
    "sandbox.stop",
    "sandbox.detach",
    "network.detach.link",
    "network.detach.address",
    "sandbox.remove",
    "pool.spawn",
]
IN_THE_SHIM = [
    "birth.namespaces",
    "birth.tap",
    "birth.scratch",
    "birth.restore",
    "vm.start",
    "vm.incoming",
    "vm.connect",
    "vm.rehearse",
    "pod.bind",
    "vm.resume",
    "restore.verify",
    "restore.vmgenid",
    "restore.reseed",
    "restore.clock",
    "restore.network",
    "restore.identity",
    "restore.generation",
    "restore.ready",
    "vm.attach",
    "layer.attach",
    "layer.mount",
    "volume.copy",
    "volume.make",
    "disk.attach",
    "pod.stop",
]
AT_THE_START = [
    "network.start",
    "recover.shim",
    "recover.sweep",
    "network.reconcile.links",
    "network.reconcile.addresses",
    "snapshot.bake",
    "ram.load",
]
"""Of the daemon, or of its zygote, which then the daemon's start outlives."""
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

NOT_RESTORED = "the pool could not restore a VM"
GENEROUS = 120.0
"""Seconds within which a daemon must be right on the slowest machine; 2 is what it shall take, and
the summary of the run says what it took."""


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Supplies]:
    with supplies(tmp_path_factory.mktemp("stock")) as made:
        yield made


def restart(daemon: Daemon, record_property: Callable[[str, object], None]) -> None:
    """A new daemon, timed until it has told which pods there are."""
    begun = time.monotonic()
    daemon.start(GENEROUS)
    daemon.client.pods()
    record_property("seconds until the next daemon is right", time.monotonic() - begun)


def is_true(daemon: Daemon) -> bool:
    """Whether all pods that are said to be ready have their processes."""
    records = daemon.records()
    ready = [pod.id for pod in daemon.client.pods() if pod.state == v1_pb2.SANDBOX_READY]
    return all(
        linux.start_time(record[f"{process}_pid"]) == record[f"{process}_start_time"]
        for record in (records[daemon.vm_of(pod)] for pod in ready)
        for process in ("shim", "qemu")
    )


def is_right(daemon: Daemon) -> None:
    """What the node says is true, and can be worked with; afterwards nothing is there."""
    # What was killed a moment ago may not be known yet.
    until("what it says of pods is true", partial(is_true, daemon))
    for container in daemon.client.containers():
        assert daemon.client.container_status(container.id).id == container.id
    daemon.remove_pods()
    assert not daemon.client.containers()
    assert not daemon.bound_vms()
    Pod.run(daemon).remove()


def waiting(daemon: Daemon) -> int:
    """How many VMs wait in the pool."""
    return sum(each.ready for each in daemon.client.pool().shapes)


def prepare(daemon: Daemon, point: str, stock: Supplies) -> int:
    """What some points need; the size of the daemon's log."""
    if point == "disk.attach" and not stock.devices:
        pytest.skip("this machine makes no loop devices")
    if point == "vm.rehearse":
        # Of VMs that wait alone: one must be there for the pod, so that another is made. A pool in
        # which some have died takes its time.
        daemon.kill()
        daemon.start()
        until("a VM waits", partial(waiting, daemon), GENEROUS)
    return daemon.log.stat().st_size


@pytest.mark.parametrize("point", [*IN_THE_DAEMON, *IN_THE_SHIM])
def test_whoever_dies_at_a_step_leaves_a_node_that_works(
    durable: Daemon, stock: Supplies, point: str, record_property: Callable[[str, object], None]
) -> None:
    fired = prepare(durable, point, stock)
    durable.arm(f"{point}=kill")
    failed = True
    with contextlib.suppress(errors.ThawError, AssertionError):
        live(durable, stock)
        failed = False
    if point in IN_THE_SHIM and point != "pod.stop":
        # Either the pod's own, or one that was born for the next pod.
        until("a shim died", lambda: failed or NOT_RESTORED in durable.log_text(fired), GENEROUS)
    if point in IN_THE_SHIM:
        assert durable.alive()
    else:
        durable.await_end()
        assert f"failpoint {point}: kill" in durable.log_text(fired)
    durable.arm("")
    if not durable.alive():
        restart(durable, record_property)
    is_right(durable)


def survivor(daemon: Daemon, point: str) -> Pod | None:
    """A pod whose daemon has died. RAM is loaded where no VM has it: there the daemon has ended,
    without pods."""
    if point == "ram.load":
        daemon.terminate()
        return None
    pod = Pod.run(daemon, "survivor")
    daemon.kill()
    return pod


@pytest.mark.parametrize("point", AT_THE_START)
def test_whoever_dies_at_a_start_leaves_pods_as_they_are(
    durable: Daemon, point: str, record_property: Callable[[str, object], None]
) -> None:
    """The next start but one is right."""
    pod = survivor(durable, point)
    fired = durable.log.stat().st_size
    durable.arm(f"{point}=kill")
    durable.spawn()
    until("it fires", lambda: f"failpoint {point}: kill" in durable.log_text(fired), GENEROUS)
    durable.arm("")
    if point != "ram.load":
        durable.await_end(GENEROUS)
        restart(durable, record_property)
    else:
        until("the daemon answers", durable.answers, GENEROUS)
    assert pod is None or pod.state == v1_pb2.SANDBOX_READY
    is_right(durable)


@pytest.mark.parametrize("point", [*IN_THE_DAEMON, *IN_THE_SHIM, "container.updated"])
def test_a_step_that_fails_leaves_nothing_in_the_way_of_the_next_try(
    durable: Daemon, stock: Supplies, point: str
) -> None:
    fired, told = prepare(durable, point, stock), [""]
    durable.arm(f"{point}=1*error(injected by the test)")

    def retried(verb: Callable[[], object]) -> object:
        # Each process fails once: the daemon, and each shim that is new.
        for attempt in range(4):
            if attempt == 2:
                durable.arm("")
            # A shim's own log goes with its pod.
            told.extend(path.read_text() for path in durable.state.glob("vms/*/shim.log"))
            try:
                return verb()
            except errors.ThawError as error:
                assert "injected by the test" in str(error)
                told.append(str(error))
        raise AssertionError(told[-1])

    live(durable, stock, retried)
    # What a VM is born by fails the next one, which is to wait for a pod.
    until("it fired", lambda: "injected by the test" in "\n".join([*told, durable.log_text(fired)]))
    durable.arm("")
    # The retries have shown that the node works.
    assert not durable.client.pods()
    assert not durable.client.containers()


@pytest.mark.parametrize("point", AT_THE_START)
def test_a_start_that_fails_leaves_pods_as_they_are(durable: Daemon, point: str) -> None:
    """A daemon that ends says why; one that goes on is right in the end."""
    pod = survivor(durable, point)
    fired = durable.log.stat().st_size
    durable.arm(f"{point}=1*error(injected by the test)")
    durable.spawn()
    until("it fires", lambda: f"failpoint {point}: error" in durable.log_text(fired), GENEROUS)
    durable.arm("")
    until("it ends, or answers", lambda: not durable.alive() or durable.answers(), GENEROUS)
    if not durable.alive():
        assert "injected by the test" in durable.log_text(fired)
        durable.close_client()
        durable.start()
    assert pod is None or pod.state == v1_pb2.SANDBOX_READY
    is_right(durable)


def pids(daemon: Daemon, part: str) -> list[int]:
    """The process of `part` that a pod depends on, or the next one would."""
    if part == "zygote":
        return until("there is a zygote", daemon.zygotes)
    records = daemon.records()
    bound = [name for name in records if (daemon.state / "vms" / name / "pod.json").exists()]
    # One that is being born has none yet: 0, which to kill(2) is the caller's own group.
    return [pid for name in bound or records if (pid := int(records[name][f"{part}_pid"])) > 0]


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
def test_a_part_that_dies_during_a_step(
    durable: Daemon, stock: Supplies, part: str, step: str
) -> None:
    durable.arm(f"{step}=hold")
    fired = durable.log.stat().st_size
    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(live, durable, stock)
        try:
            until(
                "the step begins",
                lambda: f"failpoint {step}: hold" in durable.log_text(fired) or done.done(),
                GENEROUS,
            )
            for pid in pids(durable, part):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        finally:
            durable.arm("")
        error = done.exception()
    assert durable.alive()
    assert f"failpoint {step}: hold" in durable.log_text(fired)
    if part == "zygote" or step in ("sandbox.stop", "sandbox.remove"):
        # Nothing that was asked for depends on what died, or it only had to end.
        assert error is None
    elif step == "sandbox.bind":
        # The pod gets another VM, unless that one's death was not noticed yet: all were killed.
        assert error is None or isinstance(error, errors.ThawError)
    elif step in ("container.create", "container.start", "exec_sync"):
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
        find = daemon.zygotes if part == "zygote" else daemon.bakes
        (victim,) = until(f"there is a {part}", find)
        os.kill(victim, signal.SIGKILL)
        if part == "bake":
            assert until("Status says why", daemon.runtime_problem, 60).message
        # The zygote only forked it: the bake goes on.
        assert bool(daemon.bakes()) == (part == "zygote")
        daemon.terminate()
    # QEMU dies with the bake, and the bake with its daemon.
    until("no process is left", lambda: not leaks.processes(str(daemon.root)))
    daemon.share_snapshots = True
    restart(daemon, record_property)
    until("the snapshot is found", lambda: daemon.runtime().status, GENEROUS)
    assert not list((daemon.root / "snapshots").glob(".*"))
    assert Pod.run(daemon).state == v1_pb2.SANDBOX_READY
