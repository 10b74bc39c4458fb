"""The gRPC server: every RPC of CRI v1, and Thaw's own, on one unix socket."""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import grpc
import grpc.aio

from cri.api import thaw_pb2, thaw_pb2_grpc, v1_pb2_grpc
from cri.daemon import Daemon
from cri.interceptors import Boundary
from cri.service import (
    attach,
    container_create,
    container_events,
    container_list,
    container_remove,
    container_reopen_log,
    container_start,
    container_stats,
    container_status,
    container_stop,
    container_update,
    exec_sync,
    image_fs_info,
    image_list,
    image_pull,
    image_remove,
    image_status,
    port_forward,
    runtime_config,
    sandbox_list,
    sandbox_metrics,
    sandbox_remove,
    sandbox_run,
    sandbox_stats,
    sandbox_status,
    sandbox_stop,
    sandbox_update,
    status,
    streams,
    thaw,
    thaw_images,
    update_runtime_config,
    version,
)
from cri.service import exec as exec_
from hostlib.errors import FailedPrecondition, Unimplemented

log = logging.getLogger(__name__)

MAX_REQUEST: Final = 16 * 1024 * 1024
# Two streams of ExecSync, 16 MiB each, and the response around them.
MAX_RESPONSE: Final = 33 * 1024 * 1024
MAX_CONCURRENT: Final = 1024

Verb = Callable[[Daemon, Any], Awaitable[Any]]
Stream = Callable[[Daemon, Any], AsyncIterator[Any]]

RUNTIME: Final[dict[str, Verb]] = {
    "Version": version.run,
    "Status": status.run,
    "RuntimeConfig": runtime_config.run,
    "UpdateRuntimeConfig": update_runtime_config.run,
    "RunPodSandbox": sandbox_run.run,
    "StopPodSandbox": sandbox_stop.run,
    "RemovePodSandbox": sandbox_remove.run,
    "PodSandboxStatus": sandbox_status.run,
    "ListPodSandbox": sandbox_list.run,
    "CreateContainer": container_create.run,
    "StartContainer": container_start.run,
    "StopContainer": container_stop.run,
    "RemoveContainer": container_remove.run,
    "ContainerStatus": container_status.run,
    "ListContainers": container_list.run,
    "UpdateContainerResources": container_update.run,
    "UpdatePodSandboxResources": sandbox_update.run,
    "ReopenContainerLog": container_reopen_log.run,
    "ExecSync": exec_sync.run,
    "Exec": exec_.run,
    "Attach": attach.run,
    "PortForward": port_forward.run,
    "ContainerStats": container_stats.run,
    "ListContainerStats": container_stats.list_,
    "PodSandboxStats": sandbox_stats.run,
    "ListPodSandboxStats": sandbox_stats.list_,
    "ListMetricDescriptors": sandbox_metrics.descriptors,
    "ListPodSandboxMetrics": sandbox_metrics.list_,
}

IMAGE: Final[dict[str, Verb]] = {
    "PullImage": image_pull.run,
    "ImageStatus": image_status.run,
    "ListImages": image_list.run,
    "RemoveImage": image_remove.run,
    "ImageFsInfo": image_fs_info.run,
}

STREAMS: Final[dict[str, Stream]] = {
    "StreamPodSandboxes": streams.pods,
    "StreamContainers": streams.containers,
    "StreamImages": streams.images,
    "StreamContainerStats": container_stats.stream,
    "StreamPodSandboxStats": sandbox_stats.stream,
    "StreamPodSandboxMetrics": sandbox_metrics.stream,
}


def _servicer(service: str, verbs: dict[str, Verb], daemon: Daemon, boundary: Boundary) -> Any:
    """An object with a method for each RPC of the service; those without a verb say so by name."""
    base = getattr(v1_pb2_grpc, f"{service}Servicer")
    servicer = base()
    for name in dir(base):
        if name == "GetContainerEvents":
            method: Any = boundary.pushed(name, partial(container_events.run, daemon))
        elif name in STREAMS:
            method = _streaming(name, STREAMS[name], daemon, boundary)
        elif not name.startswith("_"):
            verb = verbs.get(name) or partial(_unimplemented, name)
            method = boundary.unary(name, partial(verb, daemon))
        else:
            continue
        setattr(servicer, name, method)
    return servicer


def _streaming(name: str, verb: Stream, daemon: Daemon, boundary: Boundary) -> Any:
    async def call(request: Any, context: Any) -> AsyncIterator[Any]:
        async for each in boundary.stream(name, partial(verb, daemon), request, context):
            yield each

    return call


async def _unimplemented(name: str, daemon: Daemon, request: Any) -> Any:
    del daemon, request
    raise Unimplemented(f"{name} is not implemented by this version of thaw")


class _Thaw(thaw_pb2_grpc.ThawServicer):
    """Thaw's own service; its streams end with their readers."""

    def __init__(self, daemon: Daemon, boundary: Boundary) -> None:
        self._daemon, self._boundary = daemon, boundary
        for name, verb in (
            ("Pool", thaw.pool),
            ("Trace", thaw.trace),
            ("Pulls", thaw_images.pulls),
            ("Unpin", thaw_images.unpin),
        ):
            setattr(self, name, boundary.unary(name, partial(verb, daemon)))

    async def Pull(  # noqa: N802 (the protocol's name)
        self, request: thaw_pb2.PullRequest, context: Any
    ) -> AsyncIterator[thaw_pb2.PullProgress]:
        async for each in self._boundary.stream(
            "Pull", partial(thaw_images.pull, self._daemon), request, context
        ):
            yield each

    async def Load(  # noqa: N802 (the protocol's name)
        self, requests: AsyncIterator[thaw_pb2.LoadRequest], context: Any
    ) -> AsyncIterator[thaw_pb2.LoadResponse]:
        async for each in self._boundary.stream(
            "Load", partial(thaw_images.load, self._daemon), aiter(requests), context
        ):
            yield each

    async def Bake(  # noqa: N802 (the protocol's name)
        self, request: thaw_pb2.BakeRequest, context: Any
    ) -> AsyncIterator[thaw_pb2.BakeProgress]:
        async for each in self._boundary.stream(
            "Bake", partial(thaw.bake, self._daemon), request, context
        ):
            yield each


class Server:
    """Serves a daemon on a unix socket."""

    def __init__(self, daemon: Daemon, path: Path) -> None:
        self._path = path
        self._boundary = calls = Boundary(daemon.telemetry.call)
        container_events.connect(daemon)
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MAX_REQUEST),
                ("grpc.max_send_message_length", MAX_RESPONSE),
                ("grpc.so_reuseport", 0),
            ],
            maximum_concurrent_rpcs=MAX_CONCURRENT,
        )
        for module, service, servicer in (
            (v1_pb2_grpc, "RuntimeService", _servicer("RuntimeService", RUNTIME, daemon, calls)),
            (v1_pb2_grpc, "ImageService", _servicer("ImageService", IMAGE, daemon, calls)),
            (thaw_pb2_grpc, "Thaw", _Thaw(daemon, calls)),
        ):
            getattr(module, f"add_{service}Servicer_to_server")(servicer, self._server)

    async def start(self) -> None:
        """Bind the socket and answer. A stale socket is replaced; one that is served is refused
        (`FailedPrecondition`)."""
        claim(self._path)
        # Nobody but root may run pods: the socket is born so.
        mask = os.umask(0o177)
        try:
            self._server.add_insecure_port(f"unix:{self._path}")
            await self._server.start()
        except RuntimeError as error:
            raise FailedPrecondition(
                f"cannot listen on {self._path}: {error}", hint="choose another --listen"
            ) from error
        finally:
            os.umask(mask)

    async def stop(self, grace: float) -> None:
        """Take no more calls, let those under way end within `grace` seconds, remove the socket."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        await self._server.stop(grace)
        await self._boundary.drain(grace)


def claim(path: Path) -> None:
    """Make way for a socket at `path`. Raises `FailedPrecondition` where that cannot be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        found = path.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FailedPrecondition(
            f"cannot listen on {path}: {error.strerror}", hint="choose another --listen"
        ) from error
    if not stat.S_ISSOCK(found.st_mode):
        raise FailedPrecondition(f"{path} exists and is no socket", hint="move it away")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
        except OSError:
            path.unlink(missing_ok=True)
            return
    raise FailedPrecondition(
        f"another process serves {path}", hint="end it, or choose another --listen"
    )
