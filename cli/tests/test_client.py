from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import verb_run
from cli.client import Client
from cli.tests.fake_runtime import FakeRuntime, serving_runtime
from cri.api import v1_pb2
from hostlib import errors


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[tuple[FakeRuntime, Client]]:
    with serving_runtime(tmp_path) as runtime, Client(runtime.address) as client:
        yield runtime, client


def test_an_error_comes_back_as_it_was_raised(fake: tuple[FakeRuntime, Client]) -> None:
    runtime, client = fake
    runtime.answers["StartContainer"] = errors.NotFound("no x", hint="thaw ps")
    with pytest.raises(errors.NotFound) as caught:
        client.start_container("x")
    assert (caught.value.message, caught.value.hint) == ("no x", "thaw ps")


def test_lists_are_newest_first(fake: tuple[FakeRuntime, Client]) -> None:
    runtime, client = fake
    runtime.answers["ListPodSandbox"] = v1_pb2.ListPodSandboxResponse(
        items=[v1_pb2.PodSandbox(id="old", created_at=1), v1_pb2.PodSandbox(id="new", created_at=2)]
    )
    assert [pod.id for pod in client.pods()] == ["new", "old"]


def test_an_image_that_is_not_there_is_none(fake: tuple[FakeRuntime, Client]) -> None:
    assert fake[1].image_status("x") is None


@pytest.mark.parametrize("failing", ["RunPodSandbox", "CreateContainer", "StartContainer"])
def test_run_removes_the_pod_wherever_it_fails(
    fake: tuple[FakeRuntime, Client], failing: str, tmp_path: Path
) -> None:
    runtime, client = fake
    pod = v1_pb2.PodSandboxConfig(
        metadata=v1_pb2.PodSandboxMetadata(name="run-1"), log_directory=str(tmp_path)
    )
    made = v1_pb2.PodSandbox(id="p", metadata=pod.metadata)
    runtime.answers["RunPodSandbox"] = v1_pb2.RunPodSandboxResponse(pod_sandbox_id="p")
    runtime.answers["ListPodSandbox"] = v1_pb2.ListPodSandboxResponse(items=[made])
    runtime.answers[failing] = errors.Internal("broken")
    with pytest.raises(errors.Internal, match="broken"):
        verb_run.live(client, pod, v1_pb2.ContainerConfig(log_path="c.log"))
    assert runtime.asked[-2:] == ["StopPodSandbox", "RemovePodSandbox"]


def test_run_passes_the_exit_code_on(fake: tuple[FakeRuntime, Client], tmp_path: Path) -> None:
    runtime, client = fake
    runtime.answers["ContainerStatus"] = v1_pb2.ContainerStatusResponse(
        status=v1_pb2.ContainerStatus(state=v1_pb2.CONTAINER_EXITED, exit_code=9)
    )
    runtime.answers["RunPodSandbox"] = v1_pb2.RunPodSandboxResponse(pod_sandbox_id="p")
    pod = v1_pb2.PodSandboxConfig(log_directory=str(tmp_path))
    assert verb_run.live(client, pod, v1_pb2.ContainerConfig(log_path="c.log")) == 9
    assert runtime.asked[-1] == "RemovePodSandbox"
