"""The demo, ``make demo``: from an image in a registry to a page served from a microVM.

Everything is real: Debian's registry, images built from Debian packages, thawd, QEMU, the guest's
kernel, nginx. What is kept lies in .build/demo (the snapshot and the images, so that the next run
is fast); a scan at the end fails the demo if anything else is left.
"""

from __future__ import annotations

import shutil
import signal
import sys
import tempfile
import types
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import httpx

from cli import show
from cri.api import v1_pb2
from demo import images
from demo.timeline import Timeline
from e2e.harness import leaks
from e2e.harness.daemon import PROJECT, Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import NGINX, SHELL, WEBAPP
from e2e.harness.registry import HOST, Registry
from e2e.harness.waiting import until
from hostlib.errors import Internal, ThawError

KEPT: Final = PROJECT / ".build" / "demo"


def main() -> None:
    """Run the demo; exit code 1 when a step fails or something is left behind."""
    signal.signal(signal.SIGTERM, _interrupt)
    line = Timeline()
    code = 1
    try:
        code = _demo(line)
    except ThawError as error:
        show.error(error)
    except AssertionError as error:
        show.error(Internal(str(error), hint=f"logs are kept in {KEPT / 'logs'}"))
    except KeyboardInterrupt:
        code = 130
    sys.exit(code)


def _interrupt(_number: int, _frame: types.FrameType | None) -> None:
    raise KeyboardInterrupt


def _demo(line: Timeline) -> int:
    line.heading("Images, and a registry that has them")
    with line.step("build images from Debian packages"):
        built = images.built(PROJECT / ".build")
    for repository, image in built.items():
        total = show.size(sum(len(layer.data) for layer in image.layers))
        line.note(f"{repository}: {len(image.layers)} layers, {total}")
    with ExitStack() as stack:
        # A short path, since socket paths hold 107 bytes; what is worth keeping lies in KEPT.
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="thaw-demo-")))
        with line.step("start docker-registry on loopback"):
            registry = stack.enter_context(Registry(folder / "registry"))
        with line.step("push the images"):
            for repository, image in built.items():
                registry.push(image, repository)
        daemon = Daemon(
            folder / "node",
            registry,
            root=KEPT / "root",
            subnet="10.87.0.0/16",
            settings={"pool": {"size": 1}},
            share_snapshots=False,
        )
        left: list[str] = []
        try:
            _show(line, daemon)
        except BaseException:
            _keep_logs(daemon)
            raise
        finally:
            line.heading("The end")
            with line.step("stop thawd and its pool"):
                left = daemon.destroy()
    left += leaks.processes(str(folder))
    for found in left:
        line.note(f"left behind: {found}")
    if left:
        daemon.erase()
        raise Internal("the demo left something behind", hint="the lines above say what")
    line.note("left behind: nothing (processes, taps, bridges, netns, mounts, nft tables, cgroups)")
    line.note(f"kept for the next run: {KEPT}")
    line.heading(f"Done in {line.total():.1f} s")
    return 0


def _keep_logs(daemon: Daemon) -> None:
    target = KEPT / "logs"
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for log in (daemon.log, *daemon.state.glob("vms/*/*.log")):
        if log.is_file():
            shutil.copyfile(log, target / f"{log.parent.name}-{log.name}")


def _show(line: Timeline, daemon: Daemon) -> None:
    line.heading("The daemon, and a base snapshot")
    with line.step("start thawd"):
        daemon.start()
    client = daemon.client
    with line.step("bake the base snapshot (kept between runs)"):
        for message in client.bake():
            line.progress(message.phase, message.fraction)
    line.note(f"accelerator: {message.accelerator} - {message.accelerator_reason}")
    for warning in message.warnings:
        line.note(f"warning: {warning}")
    line.note(f"snapshot {message.key}")

    line.heading("A pod with nginx")
    _pull(line, daemon, NGINX)
    with line.step("wait until the pool has a thawed VM"):
        _wait_for_pool(daemon)
    with line.step("RunPodSandbox (out of the pool)"):
        pod = Pod.run(daemon, "web")
    with line.step("CreateContainer"):
        web = pod.create(NGINX)
    with line.step("StartContainer"):
        client.start_container(web.id)
    with line.step(f"GET http://{pod.ip}/"):
        page = pod.get()
    if page.text != images.PAGE:
        raise Internal(f"nginx answered {page.status_code} {page.text[:200]!r}")
    line.note(page.text.strip())
    with line.step("the container's log"):
        until("nginx logs the request", lambda: '"GET / ' in web.output())
    line.note(web.output().strip().splitlines()[-1])
    with line.step("ExecSync: a deleted file, a replaced folder"):
        listing = web.sh(f"ls {images.REPLACED}; test ! -e {images.DELETED} && echo deleted")
    line.note(" / ".join(listing.split()))
    with line.step("ExecSync true"):
        client.exec_sync(web.id, ["/bin/true"])
    with line.step("PodSandboxStatus, ContainerStatus"):
        status, state = client.pod_status(pod.id).status, web.status()
    line.note(
        f"pod {show.short(status.id)} {v1_pb2.PodSandboxState.Name(status.state)}"
        f" at {status.network.ip}, container {v1_pb2.ContainerState.Name(state.state)}"
    )

    line.heading("A second pod out of the pool, with a Python web application")
    _pull(line, daemon, WEBAPP)
    _pull(line, daemon, SHELL)
    with line.step("wait until the pool has a thawed VM"):
        _wait_for_pool(daemon)
    with line.step("RunPodSandbox (out of the pool)"):
        other = Pod.run(daemon, "app")
    with line.step("CreateContainer and StartContainer"):
        application = other.start(WEBAPP, env={"GREETING": "from a thawed VM"})
        other.start(SHELL, ["/bin/sleep", "3600"], name="shell")
    with line.step(f"GET http://{other.ip}:8080/"):
        answer: httpx.Response = other.get(8080)
    line.note(answer.text)
    _compare(line, web, application)

    line.heading("Stop and remove")
    with line.step("StopContainer nginx (SIGQUIT)"):
        client.stop_container(web.id, 10)
    line.note(f"exit code {web.status().exit_code}, reason {web.status().reason}")
    for name, each in (("web", pod), ("app", other)):
        with line.step(f"StopPodSandbox {name}"):
            client.stop_pod(each.id)
        with line.step(f"RemovePodSandbox {name}"):
            client.remove_pod(each.id)


def _pull(line: Timeline, daemon: Daemon, image: str) -> None:
    layers: dict[str, Any] = {}
    with line.step(f"pull {image.removeprefix(HOST + '/')}"):
        for message in daemon.client.pull(image):
            if message.layer:
                layers[message.layer] = message
            arrived = sum(item.current for item in layers.values())
            total = sum(item.total for item in layers.values())
            line.progress(message.phase, arrived / total if total else 0.0)
    line.note(f"{len(layers)} layers, each one squashfs")


def _wait_for_pool(daemon: Daemon) -> None:
    def ready() -> bool:
        shapes = daemon.client.pool().shapes
        for shape in shapes:
            if shape.error:
                raise Internal(f"the pool cannot restore {shape.shape}: {shape.error}")
        return any(shape.ready for shape in shapes)

    until("the pool has a VM", ready, 120)


def _compare(line: Timeline, first: Container, second: Container) -> None:
    script = "cat /proc/sys/kernel/random/boot_id; head -c 8 /dev/urandom | od -An -tx1"
    with line.step("both VMs come from one snapshot, and differ"):
        told = [container.sh(script).split("\n") for container in (first, second)]
    for name, answer in zip(("web", "app"), told, strict=True):
        line.note(f"{name}: boot_id {answer[0]}, random {answer[1].strip()}")
    if set(told[0]) & set(told[1]):
        raise Internal("two pods from one snapshot share an identity or random numbers")


if __name__ == "__main__":
    main()
