"""The verbs of pods and containers, over a real gRPC connection; the daemon's shims are fakes."""

from __future__ import annotations

import asyncio
import json
import logging
from typing import Any

import grpc
import pytest

from cri.api import thaw_pb2
from cri.api import v1_pb2 as v1
from cri.server import IMAGE, RUNTIME, STREAMS
from cri.tests.client import Client, refused
from cri.tests.fakes import IMAGE as SHELL
from cri.tests.fakes import FakeShim, FakeZygote
from hostlib.errors import DeadlineExceeded, FailedPrecondition, NotFound, ThawError, Unavailable

Code = grpc.StatusCode


async def test_a_life(client: Client) -> None:
    pod = await client.run()
    container = await client.create(pod, command=["sleep"], args=["9"])
    assert (await client.status(container)).state == v1.CONTAINER_CREATED
    await client.runtime.StartContainer(v1.StartContainerRequest(container_id=container[:12]))
    running = await client.status(container)
    assert running.state == v1.CONTAINER_RUNNING
    assert running.started_at >= running.created_at > 0
    assert running.image_ref == running.image_id == SHELL.id
    assert running.log_path == str(client.logs / "c.log")
    answer = await client.runtime.ExecSync(
        v1.ExecSyncRequest(container_id=container, cmd=["true"], timeout=2)
    )
    assert (answer.stdout, answer.stderr, answer.exit_code) == (b"out", b"err", 3)
    await client.runtime.ReopenContainerLog(v1.ReopenContainerLogRequest(container_id=container))
    await client.runtime.StopContainer(v1.StopContainerRequest(container_id=container, timeout=7))
    ended = await client.status(container)
    assert (ended.state, ended.exit_code) == (v1.CONTAINER_EXITED, 131)
    assert ended.reason == "Error"
    assert ("container_stop", container, 3, 7.0) in client.shim(pod).calls
    await client.runtime.RemoveContainer(v1.RemoveContainerRequest(container_id=container))
    assert client.world.images.held == {}
    await client.runtime.StopPodSandbox(v1.StopPodSandboxRequest(pod_sandbox_id=pod))
    found = await client.runtime.PodSandboxStatus(
        v1.PodSandboxStatusRequest(pod_sandbox_id=pod, verbose=True)
    )
    assert found.status.state == v1.SANDBOX_NOTREADY
    assert found.timestamp > 0
    assert "vm" in json.loads(found.info["info"])
    await client.runtime.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    await refused(
        client.runtime.PodSandboxStatus(v1.PodSandboxStatusRequest(pod_sandbox_id=pod)),
        Code.NOT_FOUND,
    )
    config = client.world.daemon.config
    for folder in (config.root / "scratch", config.state / "vms", config.state / "netns"):
        assert list(folder.iterdir()) == []


async def test_stop_and_remove_are_idempotent(client: Client) -> None:
    runtime = client.runtime
    await runtime.StopContainer(v1.StopContainerRequest(container_id="none"))
    await runtime.RemoveContainer(v1.RemoveContainerRequest(container_id="none"))
    await runtime.StopPodSandbox(v1.StopPodSandboxRequest(pod_sandbox_id="none"))
    await runtime.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id="none"))
    pod = await client.run()
    for _ in range(2):
        await runtime.StopPodSandbox(v1.StopPodSandboxRequest(pod_sandbox_id=pod))


async def test_a_name_in_use(client: Client) -> None:
    pod = await client.run()
    request = v1.RunPodSandboxRequest(config=client.sandbox())
    await refused(client.runtime.RunPodSandbox(request), Code.ALREADY_EXISTS, pod)
    await client.create(pod)
    again = v1.CreateContainerRequest(pod_sandbox_id=pod, config=client.config())
    await refused(client.runtime.CreateContainer(again), Code.ALREADY_EXISTS)
    await client.runtime.RunPodSandbox(v1.RunPodSandboxRequest(config=client.sandbox(attempt=1)))


async def test_a_retried_call_gets_the_pod_of_the_first(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The first client goes away while the VM is restored; the pod is made all the same."""
    arrived = asyncio.Semaphore(0)
    run = client.world.daemon.runs.run

    async def counted(*flight: Any) -> str:
        arrived.release()
        return await run(*flight)

    monkeypatch.setattr(client.world.daemon.runs, "run", counted)
    caplog.set_level(logging.INFO)
    client.world.zygote.hold.clear()
    request = v1.RunPodSandboxRequest(config=client.sandbox())
    first = client.runtime.RunPodSandbox(request)
    await arrived.acquire()
    first.cancel()
    async with asyncio.timeout(10):
        while "RunPodSandbox: the client went away" not in caplog.text:  # noqa: ASYNC110 (the log tells)
            await asyncio.sleep(0.01)
    second = asyncio.ensure_future(client.runtime.RunPodSandbox(request))
    await arrived.acquire()
    client.world.zygote.hold.set()
    pod = (await second).pod_sandbox_id
    assert [each.id for each in client.world.daemon.index.pods] == [pod]


def fail_to_bind(zygote: FakeZygote, problem: ThawError, vms: int) -> None:
    """The next VMs, so many, cannot be made a pod's."""
    original, left = zygote.spawn, [problem] * vms

    async def spawn(*args: Any) -> Any:
        shim = await original(*args)
        assert isinstance(shim, FakeShim)
        if left:
            shim.fail["bind"] = left.pop()
        return shim

    setattr(zygote, "spawn", spawn)  # noqa: B010 (a method is replaced)


@pytest.mark.parametrize(
    ("problem", "code"),
    [
        (DeadlineExceeded("no answer"), Code.DEADLINE_EXCEEDED),
        (Unavailable("QEMU was killed"), Code.UNAVAILABLE),
    ],
)
async def test_a_vm_that_fails_is_replaced_by_another_once(
    client: Client, problem: ThawError, code: grpc.StatusCode, caplog: pytest.LogCaptureFixture
) -> None:
    world = client.world
    fail_to_bind(world.zygote, problem, vms=1)
    pod = await client.run("first")
    assert [each.id for each in world.daemon.index.pods] == [pod]
    assert list(world.network.attached) == [client.shim(pod).vm_id]
    assert len(world.zygote.shims) == 2
    assert f"pod {pod[:12]} gets another VM" in caplog.text
    assert problem.message in caplog.text
    fail_to_bind(world.zygote, problem, vms=2)
    request = v1.RunPodSandboxRequest(config=client.sandbox("second"))
    await refused(client.runtime.RunPodSandbox(request), code, problem.message)
    assert [each.id for each in world.daemon.index.pods] == [pod]
    assert list(world.network.attached) == [client.shim(pod).vm_id]


@pytest.mark.parametrize("step", ["vm", "network", "bind"])
async def test_a_pod_that_fails_leaves_nothing(client: Client, step: str) -> None:
    world = client.world
    problem = FailedPrecondition(f"no {step}", hint="mend it")
    if step == "vm":
        world.zygote.fail_spawn = problem
    elif step == "network":
        world.network.fail = problem
    else:
        fail_to_bind(world.zygote, problem, vms=1)
    request = v1.RunPodSandboxRequest(config=client.sandbox())
    await refused(
        client.runtime.RunPodSandbox(request),
        Code.FAILED_PRECONDITION,
        f"no {step} (hint: mend it)",
    )
    assert len(world.daemon.index.pods) == 0
    assert world.network.attached == {}
    config = world.daemon.config
    for folder in (config.root / "scratch", config.state / "vms", config.state / "netns"):
        assert list(folder.iterdir()) == []


async def test_requests_that_are_refused(client: Client) -> None:
    runtime = client.runtime
    handler = v1.RunPodSandboxRequest(config=client.sandbox(), runtime_handler="kata")
    await refused(runtime.RunPodSandbox(handler), Code.NOT_FOUND, "kata")
    await refused(runtime.RunPodSandbox(v1.RunPodSandboxRequest()), Code.INVALID_ARGUMENT)
    host = client.sandbox()
    host.linux.security_context.namespace_options.network = v1.NODE
    await refused(
        runtime.RunPodSandbox(v1.RunPodSandboxRequest(config=host)),
        Code.INVALID_ARGUMENT,
        "host's network namespace",
    )
    await refused(
        runtime.ContainerStatus(v1.ContainerStatusRequest(container_id="none")), Code.NOT_FOUND
    )
    pod = await client.run()
    missing = client.config()
    missing.image.image = "nowhere"
    await refused(
        runtime.CreateContainer(v1.CreateContainerRequest(pod_sandbox_id=pod, config=missing)),
        Code.NOT_FOUND,
        "nowhere",
    )
    await refused(
        runtime.CreateContainer(
            v1.CreateContainerRequest(pod_sandbox_id="none", config=client.config())
        ),
        Code.NOT_FOUND,
    )


async def test_a_log_folder_that_cannot_be_made(client: Client) -> None:
    config = client.sandbox()
    config.log_directory = "/proc/nothing/here"
    await refused(
        client.runtime.RunPodSandbox(v1.RunPodSandboxRequest(config=config)),
        Code.FAILED_PRECONDITION,
        "log directory /proc/nothing/here",
    )


async def test_a_command_that_does_not_exist(client: Client) -> None:
    pod = await client.run()
    container = await client.create(pod)
    client.shim(pod).fail["container_start"] = NotFound("exec: /nope: no such file")
    await refused(
        client.runtime.StartContainer(v1.StartContainerRequest(container_id=container)),
        Code.NOT_FOUND,
        "/nope",
    )
    found = await client.status(container)
    assert (found.state, found.exit_code) == (v1.CONTAINER_EXITED, 128)
    assert found.reason == "StartError"


async def test_started_twice(client: Client) -> None:
    pod = await client.run()
    container = await client.create(pod)
    request = v1.StartContainerRequest(container_id=container)
    await client.runtime.StartContainer(request)
    await refused(client.runtime.StartContainer(request), Code.FAILED_PRECONDITION)


async def test_exits_are_seen(client: Client) -> None:
    pod = await client.run()
    container = await client.create(pod)
    await client.runtime.StartContainer(v1.StartContainerRequest(container_id=container))
    client.shim(pod).exits(container, 0)
    found = await client.status(container)
    assert (found.reason, found.exit_code) == ("Completed", 0)
    assert found.finished_at > 0


async def test_a_shim_that_dies(client: Client) -> None:
    pod = await client.run()
    container = await client.create(pod)
    await client.runtime.StartContainer(v1.StartContainerRequest(container_id=container))
    shim = client.shim(pod)
    shim.closed.set()
    async with asyncio.timeout(60):
        while (found := await client.status(container)).state == v1.CONTAINER_RUNNING:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert (found.state, found.exit_code) == (v1.CONTAINER_EXITED, 255)
    assert "shim" in found.message
    await client.runtime.RemovePodSandbox(v1.RemovePodSandboxRequest(pod_sandbox_id=pod))
    assert client.world.network.attached == {}


async def test_filters(client: Client) -> None:
    one, two = await client.run("one"), await client.run("two")
    await client.create(one, "a", labels={"k": "v"})
    await client.create(two, "b")
    await client.runtime.StopPodSandbox(v1.StopPodSandboxRequest(pod_sandbox_id=two))

    async def pods(**filters: Any) -> list[str]:
        request = v1.ListPodSandboxRequest(filter=v1.PodSandboxFilter(**filters))
        return [each.id for each in (await client.runtime.ListPodSandbox(request)).items]

    async def containers(**filters: Any) -> list[str]:
        request = v1.ListContainersRequest(filter=v1.ContainerFilter(**filters))
        found = await client.runtime.ListContainers(request)
        return [each.metadata.name for each in found.containers]

    assert await pods() == [one, two]
    assert await pods(id=two[:10]) == [two]
    assert await pods(label_selector={"app": "one"}) == [one]
    assert await pods(state=v1.PodSandboxStateValue(state=v1.SANDBOX_NOTREADY)) == [two]
    assert await containers(pod_sandbox_id=one) == ["a"]
    assert await containers(label_selector={"k": "v"}) == ["a"]
    exited = v1.ContainerStateValue(state=v1.CONTAINER_EXITED)
    assert await containers(state=exited) == ["b"]


async def test_status(client: Client) -> None:
    found = await client.runtime.Status(v1.StatusRequest(verbose=True))
    conditions = {each.type: each for each in found.status.conditions}
    assert not conditions["RuntimeReady"].status
    assert conditions["RuntimeReady"].reason == "BaseSnapshotBaking"
    assert conditions["NetworkReady"].status
    assert [each.name for each in found.runtime_handlers] == ["", "thaw"]
    await client.run()
    found = await client.runtime.Status(v1.StatusRequest())
    assert found.status.conditions[0].status


async def test_the_rest_is_unimplemented_by_name(client: Client) -> None:
    services = v1.DESCRIPTOR.services_by_name
    known = {*RUNTIME, *IMAGE, *STREAMS, "GetContainerEvents"}
    names = {
        (service, method.name)
        for service, descriptor in services.items()
        for method in descriptor.methods
    }
    assert len(names) == 43
    for service, name in sorted(names):
        if name in known:
            continue
        stub = client.runtime if service == "RuntimeService" else client.image
        method = services[service].methods_by_name[name]
        request = getattr(v1, method.input_type.name)()
        call = getattr(stub, name)(request)
        await refused(call.read() if method.server_streaming else call, Code.UNIMPLEMENTED, name)


async def test_thaws_own_service(client: Client) -> None:
    progress = [each async for each in client.thaw.Bake(thaw_pb2.BakeRequest())]
    assert progress[0].phase == "boot"
    assert progress[-1].key == "key"
    await refused(client.thaw.Bake(thaw_pb2.BakeRequest(shape="3x3")).read(), Code.INVALID_ARGUMENT)
    pulled = [
        each
        async for each in client.thaw.Pull(thaw_pb2.PullRequest(image="docker.io/library/shell:1"))
    ]
    assert pulled[-1].image_ref == SHELL.id
    pod = await client.run()
    await client.create(pod, "main")
    traces = (await client.thaw.Trace(thaw_pb2.TraceRequest(pod_sandbox_id=pod[:8]))).traces
    steps = {step.name: step for step in traces[0].steps}
    assert {"vm", "network", "bind", "bind.reseed", "total"} <= set(steps)
    whole = steps["create main"]
    parts = [f"create main.{part}" for part in ("image", "host paths", "layers", "guest")]
    offsets = [steps[part].offset_ns for part in parts]
    assert [whole.offset_ns, *offsets] == sorted([whole.offset_ns, *offsets])
    assert whole.offset_ns >= steps["total"].offset_ns + steps["total"].duration_ns
    assert [steps[part].duration_ns for part in parts[2:]] == [3, 4]
    shapes = (await client.thaw.Pool(thaw_pb2.PoolRequest())).shapes
    assert shapes[0].snapshot_key == "key"
