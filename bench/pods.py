"""The life of pods through thawd's CRI: out of the pool, and restored on the spot."""

from __future__ import annotations

import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from bench.memory import private_mib
from bench.samples import Figures
from demo import images
from e2e.harness.daemon import PROJECT, Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import Registry
from e2e.harness.waiting import until
from hostlib.errors import Internal
from shim.records import read_vm_folder

IDLE_PODS = 5
EXECS = 10
SETTLE_SECONDS = 2.0


def measure(figures: Figures, rounds: int) -> None:
    """Alternate a daemon with a pool and one without, on the same registry and images."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thaw-bench-")))
        registry = stack.enter_context(Registry(folder / "registry"))
        for repository, image in images.built(PROJECT / ".build").items():
            registry.push(image, repository)
        pooled = _daemon(stack, folder / "a", registry, "10.86.0.0/16", pool=2)
        bare = _daemon(stack, folder / "b", registry, "10.85.0.0/16", pool=0)
        for number in range(rounds):
            _wait_for_pool(pooled)
            _life(figures, pooled, "from the pool", f"a{number}")
            _life(figures, bare, "restored on the spot", f"b{number}")
        _idle(figures, pooled)


def _daemon(stack: ExitStack, folder: Path, registry: Registry, subnet: str, pool: int) -> Daemon:
    daemon = Daemon(folder, registry, subnet=subnet, settings={"pool": {"size": pool}})
    stack.callback(_end, daemon)
    daemon.start()
    daemon.client.pull_image(SHELL)
    until("the base snapshot is there", lambda: all(_conditions(daemon)), 300)
    return daemon


def _conditions(daemon: Daemon) -> list[bool]:
    return [condition.status for condition in daemon.client.status().status.conditions]


def _end(daemon: Daemon) -> None:
    if left := daemon.destroy():
        daemon.erase()
        raise Internal(f"the benchmark left something behind: {left}")


def _wait_for_pool(daemon: Daemon) -> None:
    def full() -> bool:
        return any(shape.ready >= shape.size for shape in daemon.client.pool().shapes)

    until("the pool is full", full, 120)
    time.sleep(0.3)


def _life(figures: Figures, daemon: Daemon, how: str, name: str) -> None:
    client = daemon.client
    with figures.timed(f"pod up, {how}"):
        with figures.timed(f"RunPodSandbox, {how}"):
            pod = Pod.run(daemon, name)
        with figures.timed(f"CreateContainer, {how}"):
            container = pod.create(SHELL, SLEEP)
        with figures.timed(f"StartContainer, {how}"):
            client.start_container(container.id)
    with figures.timed(f"first ExecSync true, {how}"):
        _true(container)
    for _ in range(EXECS):
        with figures.timed("ExecSync true"):
            _true(container)
    with figures.timed("StopContainer, grace 0"):
        client.stop_container(container.id, 0)
    with figures.timed("StopPodSandbox"):
        client.stop_pod(pod.id)
    with figures.timed("RemovePodSandbox"):
        client.remove_pod(pod.id)


def _true(container: Container) -> None:
    answer = container.pod.daemon.client.exec_sync(container.id, ["/bin/true"])
    if answer.exit_code != 0:
        raise Internal(f"true failed: {answer.stderr!r}")


def _idle(figures: Figures, daemon: Daemon) -> None:
    pods = []
    for number in range(IDLE_PODS):
        pod = Pod.run(daemon, f"idle{number}")
        pod.start(SHELL, SLEEP)
        pods.append(pod)
    time.sleep(SETTLE_SECONDS)
    for pod in pods:
        record = read_vm_folder(daemon.state / "vms" / pod.vm).vm
        if record is None:
            raise Internal(f"pod {pod.id} has no VM record")
        shim, _ = private_mib(record.shim_pid)
        qemu, code = private_mib(record.qemu_pid)
        figures.add("idle pod, private memory", shim + qemu, "MiB")
        figures.add("idle pod, without translated code", shim + qemu - code, "MiB")
        figures.add("idle pod, of it the shim", shim, "MiB")
    for pod in pods:
        pod.remove()
