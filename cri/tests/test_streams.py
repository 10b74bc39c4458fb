"""Exec, Attach and PortForward from request to stream, with a daemon whose shims are fakes."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cri.api import v1_pb2 as v1
from cri.config import Config
from cri.service import (
    attach,
    container_create,
    container_start,
    port_forward,
    sandbox_run,
    sandbox_stop,
    status,
)
from cri.service import exec as exec_
from cri.streaming.remote_command import Outcome, decode_outcome
from cri.streaming.server import StreamingServer
from cri.streaming.tests.guests import descriptors, until
from cri.streaming.tests.spdy_client import spdy
from cri.streaming_config import Streaming
from cri.streams import DaemonStreams, options
from cri.tests.fakes import FakeShim, World, make_world
from hostlib import failpoint
from hostlib.errors import (
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ThawError,
    Unavailable,
)


@dataclass
class Node:
    world: World
    pod: str
    container: str

    @property
    def daemon(self) -> Any:
        return self.world.daemon

    @property
    def shim(self) -> FakeShim:
        return self.world.zygote.shims[self.daemon.index.pods.find(self.pod).vm.id]


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    world = make_world(tmp_path)
    daemon = world.daemon
    config = v1.PodSandboxConfig(
        metadata=v1.PodSandboxMetadata(name="web", uid="u", namespace="default"),
        log_directory=str(tmp_path / "logs"),
    )
    pod = (await sandbox_run.run(daemon, v1.RunPodSandboxRequest(config=config))).pod_sandbox_id
    created = await container_create.run(
        daemon,
        v1.CreateContainerRequest(
            pod_sandbox_id=pod,
            config=v1.ContainerConfig(
                metadata=v1.ContainerMetadata(name="c"),
                image=v1.ImageSpec(image="docker.io/library/shell:1"),
                log_path="c.log",
                envs=[v1.KeyValue(key="TERM", value=b"dumb")],
            ),
            sandbox_config=config,
        ),
    )
    await container_start.run(daemon, v1.StartContainerRequest(container_id=created.container_id))
    server = StreamingServer(options(daemon.config.streaming), DaemonStreams(daemon))
    await server.start()
    daemon.streaming = server
    yield Node(world, pod, created.container_id)
    await server.stop()
    await daemon.close()


async def test_exec(node: Node) -> None:
    request = v1.ExecRequest(
        container_id=node.container[:13], cmd=["cat"], stdin=True, stdout=True, tty=True
    )
    url = (await exec_.run(node.daemon, request)).url
    assert url.startswith("http://127.0.0.1:")
    async with spdy(url) as client:
        ids = await client.command("stdin", "stdout", "resize")
        await client.send(ids["resize"], b'{"Width":80,"Height":24}')
        await client.send(ids["stdin"], b"hello", fin=True)
        assert await client.finished(ids["stdout"]) == b"hello"
        assert decode_outcome(await client.finished(ids["error"]), json_status=True) == Outcome(3)
    (call,) = [call for call in node.shim.calls if call[0] == "exec_open"]
    assert call[1] == node.container
    assert (call[2]["args"], call[2]["terminal"], call[3]) == (["cat"], True, True)
    assert [each for each in call[2]["env"] if each.startswith("TERM=")] == ["TERM=xterm"]
    assert ("exec_resize", "exec-0", 80, 24) in node.shim.calls


async def test_attach(node: Node) -> None:
    request = v1.AttachRequest(container_id=node.container, stdin=True, stdout=True)
    async with spdy((await attach.run(node.daemon, request)).url) as client:
        ids = await client.command("stdin", "stdout")
        await client.send(ids["stdin"], b"hello", fin=True)
        assert await client.finished(ids["stdout"]) == b"hello"
        assert decode_outcome(await client.finished(ids["error"]), json_status=True) == Outcome()


async def test_an_attachment_without_output_ends_with_the_container(node: Node) -> None:
    request = v1.AttachRequest(container_id=node.container, stdin=True)
    async with spdy((await attach.run(node.daemon, request)).url) as client:
        ids = await client.command("stdin")
        await client.until(lambda: "attach" in node.shim.execs)
        node.shim.execs["attach"].cancel()
        status = await client.finished(ids["error"])
        assert decode_outcome(status, json_status=True) == Outcome()


async def test_port_forward(node: Node) -> None:
    request = v1.PortForwardRequest(pod_sandbox_id=node.pod[:13])
    url = (await port_forward.run(node.daemon, request)).url
    async with spdy(url, "portforward.k8s.io") as client:
        errors = await client.open(streamtype="error", port="8080", requestid="0")
        data = await client.open(streamtype="data", port="8080", requestid="0")
        await client.send(data, b"hello", fin=True)
        assert await client.finished(data) == b"hello"
        assert await client.finished(errors) == b""
        node.shim.fail["forward_open"] = Unavailable("connection refused")
        errors = await client.open(streamtype="error", port="81", requestid="1")
        await client.open(streamtype="data", port="81", requestid="1")
        assert await client.finished(errors) == (
            f"error forwarding port 81 to pod {node.pod}, uid : connection refused".encode()
        )


async def test_a_call_to_the_shim_that_fails_is_told_and_leaves_no_descriptor(node: Node) -> None:
    before = descriptors()
    failpoint.arm("stream.exec=error;stream.attach=error;stream.forward=error")
    try:
        for name, verb, request in (
            ("exec", exec_, v1.ExecRequest(container_id=node.container, cmd=["x"], stdout=True)),
            ("attach", attach, v1.AttachRequest(container_id=node.container, stdout=True)),
        ):
            async with spdy((await verb.run(node.daemon, request)).url) as client:
                ids = await client.command("stdout")
                said = await client.finished(ids["error"])
                assert f"failpoint stream.{name} fired".encode() in said
        forward = v1.PortForwardRequest(pod_sandbox_id=node.pod)
        url = (await port_forward.run(node.daemon, forward)).url
        async with spdy(url, "portforward.k8s.io") as client:
            errors = await client.open(streamtype="error", port="80", requestid="0")
            await client.open(streamtype="data", port="80", requestid="0")
            assert b"failpoint stream.forward fired" in await client.finished(errors)
    finally:
        failpoint.disarm()
    assert node.shim.execs == {}
    await until(lambda: descriptors() <= before)


async def test_a_client_that_leaves_cuts_no_call_to_the_shim(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, go_on = asyncio.Event(), asyncio.Event()
    connect = node.shim.forward_open

    async def slow(port: int, sock: int) -> None:
        asked.set()
        await go_on.wait()
        await connect(port, sock)

    monkeypatch.setattr(node.shim, "forward_open", slow)
    before = descriptors()
    url = (await port_forward.run(node.daemon, v1.PortForwardRequest(pod_sandbox_id=node.pod))).url
    async with spdy(url, "portforward.k8s.io") as client:
        for kind in ("error", "data"):
            await client.open(streamtype=kind, port="80", requestid="0")
        await asked.wait()
    # The client's, the server's, and its end of the pair; the shim's end is kept for the call.
    await until(lambda: descriptors() <= before + 1)
    go_on.set()
    await until(lambda: ("forward_open", 80) in node.shim.calls and descriptors() <= before)


@pytest.mark.parametrize(
    ("verb", "request_", "error"),
    [
        (exec_, v1.ExecRequest(container_id="none", cmd=["x"], stdout=True), NotFound),
        (exec_, v1.ExecRequest(cmd=["x"], stdout=True), InvalidArgument),
        (exec_, v1.ExecRequest(container_id="C", stdout=True), InvalidArgument),
        (exec_, v1.ExecRequest(container_id="C", cmd=["x"]), InvalidArgument),
        (
            exec_,
            v1.ExecRequest(container_id="C", cmd=["x"], stdout=True, stderr=True, tty=True),
            InvalidArgument,
        ),
        (attach, v1.AttachRequest(container_id="none", stdout=True), NotFound),
        (attach, v1.AttachRequest(container_id="C"), InvalidArgument),
        (attach, v1.AttachRequest(container_id="C", stderr=True, tty=True), InvalidArgument),
        (port_forward, v1.PortForwardRequest(pod_sandbox_id="none"), NotFound),
        (port_forward, v1.PortForwardRequest(), InvalidArgument),
        (port_forward, v1.PortForwardRequest(pod_sandbox_id="P", port=[0]), InvalidArgument),
    ],
)
async def test_requests_that_are_refused(
    node: Node, verb: Any, request_: Any, error: type[ThawError]
) -> None:
    if getattr(request_, "container_id", "") == "C":
        request_.container_id = node.container
    if getattr(request_, "pod_sandbox_id", "") == "P":
        request_.pod_sandbox_id = node.pod
    with pytest.raises(error):
        await verb.run(node.daemon, request_)


async def test_what_ended_between_the_url_and_its_use(node: Node) -> None:
    request = v1.ExecRequest(container_id=node.container, cmd=["cat"], stdout=True)
    url = (await exec_.run(node.daemon, request)).url
    forward = v1.PortForwardRequest(pod_sandbox_id=node.pod)
    forward_url = (await port_forward.run(node.daemon, forward)).url
    await sandbox_stop.run(node.daemon, v1.StopPodSandboxRequest(pod_sandbox_id=node.pod))
    async with spdy(url) as client:
        ids = await client.command("stdout")
        told = json.loads(await client.finished(ids["error"]))
        assert "is exited, not running" in told["message"]
    async with spdy(forward_url, "portforward.k8s.io") as client:
        errors = await client.open(streamtype="error", port="80", requestid="0")
        await client.open(streamtype="data", port="80", requestid="0")
        assert b"is not running" in await client.finished(errors)
    for verb, again in ((exec_, request), (port_forward, forward)):
        with pytest.raises(FailedPrecondition):
            await verb.run(node.daemon, again)


async def test_status_names_the_address(node: Node) -> None:
    answer = await status.run(node.daemon, v1.StatusRequest(verbose=True))
    assert json.loads(answer.info["config"])["streaming"] == node.daemon.streaming.base


async def test_a_port_in_use_and_an_address_of_others_are_refused(tmp_path: Path) -> None:
    daemon = make_world(tmp_path).daemon
    first = StreamingServer(options(Config().streaming), DaemonStreams(daemon))
    await first.start()
    port = int(first.base.rpartition(":")[2])
    for streaming in (Streaming(port=port), Streaming(address="192.0.2.1")):
        with pytest.raises(FailedPrecondition, match="cannot listen"):
            await StreamingServer(options(streaming), DaemonStreams(daemon)).start()
    await first.stop()
    await daemon.close()
