"""thawd: the daemon that the kubelet and crictl talk to."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import resource
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, cast

from cri import locks, pins, recover
from cri.config import Config, image_limits, load
from cri.daemon import Daemon
from cri.network.api import NetworkConfig
from cri.network.create import create as create_network
from cri.pressure import PROC, Memory
from cri.server import Server
from cri.service.version import thaw_version
from cri.shims import Shims
from cri.snapshots import Snapshots
from cri.streaming.server import StreamingServer
from cri.streams import DaemonStreams, options
from cri.telemetry.server import MetricsServer
from cri.telemetry.telemetry import Telemetry
from cri.vms import Vm
from hostlib import failpoint
from hostlib import log as logs
from hostlib.errors import NotFound, ThawError
from hostlib.tasks import in_thread
from images.service import Images
from shim.client import ZygoteClient

log = logging.getLogger("thawd")

PROC_ENV: Final = "THAW_PROC"
"""Names a folder in the place of /proc for readings of the host's memory, so that a test can make
it short."""

MAX_DESCRIPTORS: Final = 1024 * 1024

_THREADS: Final = 32
"""What blocks mostly waits for the kernel: groups that empty, processes that are moved. With as
many threads as asyncio has for two processors, six, slow removals would delay pods that start."""

STOP_GRACE: Final = 10.0
"""Seconds for calls under way when the daemon is told to end."""


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="thawd",
        description="Kubernetes container runtime (CRI v1) whose pods are microVMs.",
        epilog="`thaw config default` prints a configuration file with every setting explained.",
    )
    parser.add_argument("--config", type=Path, help="the configuration file (TOML)")
    parser.add_argument("--root", help="the folder of what is kept")
    parser.add_argument("--state", help="the folder of what a reboot may take")
    parser.add_argument("--listen", help="the socket, unix:///PATH")
    parser.add_argument("--log-level", help="debug, info, warning, error")
    parser.add_argument("--version", action="version", version=f"thawd {thaw_version()}")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """The entry point; exit code 1 when the daemon cannot start, with the reason."""
    given = arguments(argv)
    failpoint.load_environment()
    flags: dict[str, Any] = {
        "root": _absolute(given.root),
        "state": _absolute(given.state),
        "listen": given.listen,
        "log_level": given.log_level,
    }
    try:
        config = load(given.config, flags)
        logs.setup(config.log_level, process="thawd")
        raise_open_files()
        # What is imported stays. A collection that walked it, too, would take 40 ms of the loop.
        gc.freeze()
        asyncio.run(serve(config))
    except ThawError as error:
        print(f"thawd: {error.message}", file=sys.stderr)  # noqa: T201 (a person reads it)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)  # noqa: T201
        sys.exit(1)


def raise_open_files() -> None:
    """Raise the soft limit of open files to the hard one, or `MAX_DESCRIPTORS` where that is less:
    each VM and each forwarded connection costs this process one, and outside of a systemd unit the
    soft limit is mostly 1024. All that is started inherits it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        log.info("the limit of open files was raised from %d to %d", soft, wanted)


def _absolute(path: str | None) -> str | None:
    return os.path.abspath(path) if path else None


async def serve(config: Config) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    async with contextlib.AsyncExitStack() as stack:
        for folder, noun in ((config.root, "root"), (config.state, "state")):
            stack.callback(os.close, locks.lock(folder, noun))
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, "thawd"))
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        daemon = await _build(config, stack)
        found = await recover.recover(daemon)
        stack.push_async_callback(recover.end_spare, daemon, found.spare)
        await _hold_images(daemon)
        streaming = StreamingServer(options(config.streaming), DaemonStreams(daemon))
        await streaming.start()
        stack.push_async_callback(streaming.stop)
        daemon.streaming = streaming
        if config.metrics.listen:
            metrics = MetricsServer(config.metrics.listen, daemon.telemetry.text)
            await metrics.start()
            stack.push_async_callback(metrics.stop)
        server = Server(daemon, config.socket_path)
        await server.start()
        stack.push_async_callback(server.stop, STOP_GRACE)
        daemon.tasks.start(_get_ready(daemon, found.spare), "base snapshot and pool")
        daemon.images.merge_rest()
        notify("READY=1")
        log.info("thawd %s serves %s", thaw_version(), config.listen)
        await stop.wait()
        notify("STOPPING=1")
        log.info("told to end; pods run on")


async def _build(config: Config, stack: contextlib.AsyncExitStack) -> Daemon:
    """The daemon's parts, each closed when the stack unwinds."""
    for folder in ("snapshots", "scratch", "images"):
        (config.root / folder).mkdir(mode=0o700, exist_ok=True)
    for folder in ("vms", "netns"):
        (config.state / folder).mkdir(mode=0o700, exist_ok=True)
    await in_thread(pins.open_folder, config.state / "netns")
    stack.push_async_callback(in_thread, pins.close_folder, config.state / "netns")
    images = Images(
        config.root / "images",
        registry_config=Path(config.registry.config_path) if config.registry.config_path else None,
        limits=image_limits(config.images),
        merge=cast("Any", config.images.merge),
        slots=config.vm.slots,
        tag_life=config.images.tag_ttl_seconds,
        pinned=config.images.pinned,
    )
    await images.open()
    stack.push_async_callback(images.close)
    settings = config.network
    network = create_network(
        NetworkConfig(
            mode=cast("Any", settings.mode if settings.cni_conf_dir else "builtin"),
            subnet=settings.subnet,
            subnet6=settings.subnet6,
            mtu=settings.mtu,
            # A folder that is never made: mode "builtin" reads no configuration.
            cni_conf_dir=Path(settings.cni_conf_dir or config.state / "no-cni"),
            cni_bin_dirs=settings.cni_bin_dirs,
            cni_timeout=settings.cni_timeout_seconds,
        ),
        config.instance,
        config.state,
        config.root,
    )
    zygote = ZygoteClient(log_level=config.log_level)
    await zygote.start()
    stack.push_async_callback(zygote.stop)
    await network.start()
    stack.push_async_callback(network.close)
    shims = Shims(config, zygote)
    daemon = Daemon(
        config,
        images,
        network,
        shims,
        Snapshots(config.state, shims),
        Memory(Path(os.environ.get(PROC_ENV, str(PROC)))),
        telemetry=Telemetry(thaw_version()),
    )
    shims.on_event = daemon.handle_event
    await in_thread(daemon.cgroups.open)
    stack.push_async_callback(in_thread, daemon.cgroups.close)
    stack.push_async_callback(daemon.close)
    return daemon


async def _hold_images(daemon: Daemon) -> None:
    """Images of containers that were recovered stay; layers that nobody uses go."""
    for each in daemon.index.containers:
        try:
            daemon.hold_images(each.record)
        except NotFound as error:
            log.warning("container %s: %s", each.id, error)
    await daemon.images.collect()


async def _get_ready(daemon: Daemon, spare: list[Vm]) -> None:
    if not daemon.config.snapshot.on_demand or spare:
        await daemon.keep_base_ready()
        await recover.return_to_pool(daemon, spare)
    daemon.pool.start(refill=not daemon.config.snapshot.on_demand)


def notify(text: str) -> None:
    """Tell systemd (sd_notify(3)); nothing where it does not listen."""
    path = os.environ.get("NOTIFY_SOCKET", "")
    if not path:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sink, contextlib.suppress(OSError):
        sink.connect("\0" + path[1:] if path.startswith("@") else path)
        sink.send(text.encode())


if __name__ == "__main__":
    main()
