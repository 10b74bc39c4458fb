"""A synchronous client of thawd's socket: CRI v1, and Thaw's own service beside it.

Methods are called by name, so that one place holds deadlines and the translation of errors: a gRPC
status becomes the `ThawError` with the same code.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, Self, TypeVar, cast

import grpc
from google.protobuf.message import Message

from cli import loading
from cli.sources.content import Content
from cri.api import thaw_pb2, v1_pb2
from hostlib import errors

DEFAULT_ADDRESS: Final = "unix:///run/thaw/thawd.sock"
ENV_ADDRESS: Final = "THAW_ADDRESS"
MAX_MESSAGE: Final = 16 * 1024 * 1024
"""The kubelet's limit, both ways."""

_HINT: Final = re.compile(r"(.*) \(hint: (.*)\)\s*", re.DOTALL)

R = TypeVar("R", bound=Message)


def default_address() -> str:
    """The socket that the environment names, else the default."""
    return os.environ.get(ENV_ADDRESS) or DEFAULT_ADDRESS


def parse_hint(text: str) -> tuple[str, str | None]:
    """The message and the hint of an error that came as one text."""
    match = _HINT.fullmatch(text)
    return (match[1], match[2]) if match else (text, None)


def translate(error: grpc.RpcError, address: str) -> errors.ThawError:
    """The `ThawError` behind a failed call."""
    # Every RpcError of a call that was made is a Call too; the two have no common type.
    call = cast("grpc.Call", error)
    code = call.code().name
    details = call.details() or code
    if code == "UNAVAILABLE" and "failed to connect to all addresses" in details:
        return errors.Unavailable(
            f"thawd does not answer at {address}",
            hint="start thawd, or name its socket with --address or THAW_ADDRESS",
        )
    message, hint = parse_hint(details)
    return errors.from_dict({"code": code, "message": message, "hint": hint})


class Client:
    """One connection. Every method raises `ThawError`."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._channel = grpc.insecure_channel(
            address,
            options=[
                # Go's servers refuse the path-like authority that grpc makes of a unix socket.
                ("grpc.default_authority", "localhost"),
                ("grpc.max_receive_message_length", MAX_MESSAGE),
                ("grpc.max_send_message_length", MAX_MESSAGE),
                ("grpc.enable_retries", 0),
            ],
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Message, answer: type[R], timeout: float | None) -> R:
        """A unary call of ``package.Service/Method``; `timeout` in seconds."""
        stub = self._channel.unary_unary(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        try:
            result: R = stub(request, timeout=timeout)
        except grpc.RpcError as error:
            raise translate(error, self.address) from error
        return result

    def stream(self, method: str, request: Message, answer: type[R]) -> Iterator[R]:
        """A call that is answered by a stream."""
        stub = self._channel.unary_stream(
            f"/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        try:
            yield from stub(request)
        except grpc.RpcError as error:
            raise translate(error, self.address) from error

    def runtime(self, method: str, request: Message, answer: type[R], timeout: float = 120) -> R:
        """A call of CRI's RuntimeService."""
        return self.call(f"runtime.v1.RuntimeService/{method}", request, answer, timeout)

    def image(self, method: str, request: Message, answer: type[R], timeout: float = 120) -> R:
        """A call of CRI's ImageService."""
        return self.call(f"runtime.v1.ImageService/{method}", request, answer, timeout)

    # What the commands, the demo and the tests share.

    def version(self) -> v1_pb2.VersionResponse:
        return self.runtime("Version", v1_pb2.VersionRequest(), v1_pb2.VersionResponse, 10)

    def status(self, *, verbose: bool = False) -> v1_pb2.StatusResponse:
        return self.runtime(
            "Status", v1_pb2.StatusRequest(verbose=verbose), v1_pb2.StatusResponse, 10
        )

    def pods(self, selector: dict[str, str] | None = None) -> list[v1_pb2.PodSandbox]:
        request = v1_pb2.ListPodSandboxRequest(
            filter=v1_pb2.PodSandboxFilter(label_selector=selector or {})
        )
        answer = self.runtime("ListPodSandbox", request, v1_pb2.ListPodSandboxResponse)
        return sorted(answer.items, key=lambda pod: -pod.created_at)

    def containers(self, pod_id: str = "") -> list[v1_pb2.Container]:
        request = v1_pb2.ListContainersRequest(filter=v1_pb2.ContainerFilter(pod_sandbox_id=pod_id))
        answer = self.runtime("ListContainers", request, v1_pb2.ListContainersResponse)
        return sorted(answer.containers, key=lambda container: -container.created_at)

    def images(self) -> list[v1_pb2.Image]:
        answer = self.image("ListImages", v1_pb2.ListImagesRequest(), v1_pb2.ListImagesResponse)
        return list(answer.images)

    def pool(self) -> thaw_pb2.PoolResponse:
        return self.call("thaw.v1.Thaw/Pool", thaw_pb2.PoolRequest(), thaw_pb2.PoolResponse, 10)

    def traces(self, pod_id: str = "") -> list[thaw_pb2.Trace]:
        """The starts that the daemon remembers, of one pod or of all."""
        answer = self.call(
            "thaw.v1.Thaw/Trace",
            thaw_pb2.TraceRequest(pod_sandbox_id=pod_id),
            thaw_pb2.TraceResponse,
            10,
        )
        return list(answer.traces)

    def pull(
        self,
        image: str,
        *,
        refresh: bool = True,
        auth: Mapping[str, str] | None = None,
        pin: bool = False,
    ) -> Iterator[thaw_pb2.PullProgress]:
        """Pull, and tell how far it is; the last message names the image's id. `auth` has the
        fields of CRI's AuthConfig; without `refresh` a tag's digest may be some minutes old."""
        request = thaw_pb2.PullRequest(image=image, refresh=refresh, pin=pin, **(auth or {}))
        return self.stream("thaw.v1.Thaw/Pull", request, thaw_pb2.PullProgress)

    def load(self, content: Content, *, pin: bool = False) -> Iterator[thaw_pb2.PullProgress]:
        """Bring an image to the daemon, as `pull` does."""
        stub = self._channel.stream_stream(
            "/thaw.v1.Thaw/Load",
            request_serializer=thaw_pb2.LoadRequest.SerializeToString,
            response_deserializer=thaw_pb2.LoadResponse.FromString,
        )
        try:
            yield from loading.converse(stub, content, pin=pin)
        except grpc.RpcError as error:
            raise translate(error, self.address) from error

    def pulls(self) -> list[thaw_pb2.PullUnderWay]:
        """The pulls under way, oldest first."""
        answer = self.call(
            "thaw.v1.Thaw/Pulls", thaw_pb2.PullsRequest(), thaw_pb2.PullsResponse, 10
        )
        return list(answer.pulls)

    def unpin(self, image: str) -> bool:
        """Take the pin off; whether something else still pins the image."""
        answer = self.call(
            "thaw.v1.Thaw/Unpin", thaw_pb2.UnpinRequest(image=image), thaw_pb2.UnpinResponse, 10
        )
        return answer.pinned

    def bake(self, shape: str = "") -> Iterator[thaw_pb2.BakeProgress]:
        """Bake, and tell how far it is; the last message has the snapshot's key."""
        return self.stream(
            "thaw.v1.Thaw/Bake", thaw_pb2.BakeRequest(shape=shape), thaw_pb2.BakeProgress
        )

    def pull_image(self, image: str, timeout: float = 600) -> str:
        """Pull by CRI; the image's id."""
        request = v1_pb2.PullImageRequest(image=v1_pb2.ImageSpec(image=image))
        return self.image("PullImage", request, v1_pb2.PullImageResponse, timeout).image_ref

    def image_status(self, image: str) -> v1_pb2.Image | None:
        request = v1_pb2.ImageStatusRequest(image=v1_pb2.ImageSpec(image=image))
        answer = self.image("ImageStatus", request, v1_pb2.ImageStatusResponse)
        return answer.image if answer.HasField("image") else None

    def remove_image(self, image: str) -> None:
        request = v1_pb2.RemoveImageRequest(image=v1_pb2.ImageSpec(image=image))
        self.image("RemoveImage", request, v1_pb2.RemoveImageResponse)

    def run_pod(self, config: v1_pb2.PodSandboxConfig, handler: str = "") -> str:
        """Run a pod sandbox; its id."""
        request = v1_pb2.RunPodSandboxRequest(config=config, runtime_handler=handler)
        answer = self.runtime("RunPodSandbox", request, v1_pb2.RunPodSandboxResponse, 240)
        return answer.pod_sandbox_id

    def stop_pod(self, pod_id: str) -> None:
        request = v1_pb2.StopPodSandboxRequest(pod_sandbox_id=pod_id)
        self.runtime("StopPodSandbox", request, v1_pb2.StopPodSandboxResponse)

    def remove_pod(self, pod_id: str) -> None:
        request = v1_pb2.RemovePodSandboxRequest(pod_sandbox_id=pod_id)
        self.runtime("RemovePodSandbox", request, v1_pb2.RemovePodSandboxResponse)

    def pod_status(self, pod_id: str, *, verbose: bool = False) -> v1_pb2.PodSandboxStatusResponse:
        request = v1_pb2.PodSandboxStatusRequest(pod_sandbox_id=pod_id, verbose=verbose)
        return self.runtime("PodSandboxStatus", request, v1_pb2.PodSandboxStatusResponse)

    def create_container(
        self, pod_id: str, config: v1_pb2.ContainerConfig, sandbox: v1_pb2.PodSandboxConfig
    ) -> str:
        """Create a container; its id."""
        request = v1_pb2.CreateContainerRequest(
            pod_sandbox_id=pod_id, config=config, sandbox_config=sandbox
        )
        answer = self.runtime("CreateContainer", request, v1_pb2.CreateContainerResponse)
        return answer.container_id

    def start_container(self, container_id: str) -> None:
        request = v1_pb2.StartContainerRequest(container_id=container_id)
        self.runtime("StartContainer", request, v1_pb2.StartContainerResponse)

    def stop_container(self, container_id: str, grace: int = 0) -> None:
        request = v1_pb2.StopContainerRequest(container_id=container_id, timeout=grace)
        self.runtime("StopContainer", request, v1_pb2.StopContainerResponse, grace + 120)

    def remove_container(self, container_id: str) -> None:
        request = v1_pb2.RemoveContainerRequest(container_id=container_id)
        self.runtime("RemoveContainer", request, v1_pb2.RemoveContainerResponse)

    def container_status(self, container_id: str) -> v1_pb2.ContainerStatus:
        request = v1_pb2.ContainerStatusRequest(container_id=container_id)
        answer = self.runtime("ContainerStatus", request, v1_pb2.ContainerStatusResponse)
        return answer.status

    def container_config(self, container_id: str) -> dict[str, Any]:
        """What the container was made from, by the names of CRI's `ContainerConfig`."""
        request = v1_pb2.ContainerStatusRequest(container_id=container_id, verbose=True)
        answer = self.runtime("ContainerStatus", request, v1_pb2.ContainerStatusResponse)
        info = json.loads(answer.info.get("info", "{}"))
        return dict(info.get("config", {}))

    def exec(self, container_id: str, command: list[str], *, stdin: bool, terminal: bool) -> str:
        """The one-shot URL of a command's streams; with `terminal` it has no stderr."""
        request = v1_pb2.ExecRequest(
            container_id=container_id,
            cmd=command,
            stdin=stdin,
            stdout=True,
            stderr=not terminal,
            tty=terminal,
        )
        return self.runtime("Exec", request, v1_pb2.ExecResponse).url

    def attach(self, container_id: str, *, stdin: bool, terminal: bool) -> str:
        """The one-shot URL of a container's own streams."""
        request = v1_pb2.AttachRequest(
            container_id=container_id,
            stdin=stdin,
            stdout=True,
            stderr=not terminal,
            tty=terminal,
        )
        return self.runtime("Attach", request, v1_pb2.AttachResponse).url

    def port_forward(self, pod_id: str, ports: list[int]) -> str:
        """The one-shot URL of connections to ports of a pod."""
        request = v1_pb2.PortForwardRequest(pod_sandbox_id=pod_id, port=ports)
        return self.runtime("PortForward", request, v1_pb2.PortForwardResponse).url

    def exec_sync(
        self, container_id: str, command: list[str], timeout: int = 0
    ) -> v1_pb2.ExecSyncResponse:
        """Run a command in a container; `timeout` in seconds, 0 for none."""
        request = v1_pb2.ExecSyncRequest(container_id=container_id, cmd=command, timeout=timeout)
        return self.runtime(
            "ExecSync", request, v1_pb2.ExecSyncResponse, timeout + 30 if timeout else 3600
        )
