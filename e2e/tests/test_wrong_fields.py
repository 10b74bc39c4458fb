"""Every field of every request, wrong in turn: an exact code, and nothing else happens."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import pytest
from google.protobuf.message import Message

from cri.api import v1_pb2 as v1
from e2e.harness import wrong
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod, container, sandbox
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.wrong import Wrong
from hostlib import errors

RUNTIME: Final = "runtime.v1.RuntimeService/"
IMAGE: Final = "runtime.v1.ImageService/"
NOWHERE: Final = "0" * 64
"""The id of what is stopped and removed, since it must not be there afterwards."""

INEXACT: Final = frozenset({"UNKNOWN", "INTERNAL", "CANCELLED", "DEADLINE_EXCEEDED", "DATA_LOSS"})
EVENTS: Final = f"{RUNTIME}GetContainerEvents"

REQUIRED: Final = {
    "RunPodSandbox": {"config", "config.metadata", "config.metadata.name"},
    "CreateContainer": {
        *("config", "config.metadata", "config.metadata.name", "config.image"),
        "config.image.image",
    },
    "PullImage": {"image", "image.image"},
    "ImageStatus": {"image", "image.image"},
    "RemoveImage": {"image", "image.image"},
}
"""Beside the ids, without which no request means anything."""
IDS: Final = frozenset({"container_id", "pod_sandbox_id"})
OR_MINUS_ONE: Final = frozenset(
    {"cpu_quota", "memory_limit_in_bytes", "memory_swap_limit_in_bytes", "oom_score_adj"}
)
"""Where -1 means something; below 0, no other number does anywhere."""


def must_be_refused(case: Wrong) -> bool:
    """Whether what is missing is needed, or a number is below all that it can be."""
    name = case.method.rpartition("/")[2]
    field, _, how = case.what.partition(" is ")
    if name.startswith(("Checkpoint", "RestorePod")):
        return False
    if how in ("missing", "empty", "''"):
        return field in IDS or field in REQUIRED.get(name, ())
    if re.fullmatch(r"-\d+", how) is None:
        return False
    # What the pod was made from is known; a time of grace below 0 is none, as with containerd.
    unread = field.startswith("sandbox_config.") or (name, field) == ("StopContainer", "timeout")
    return not unread and not (how == "-1" and field.rpartition(".")[2] in OR_MINUS_ONE)


@dataclass
class Stage:
    """A pod with a container that runs, and one that ended."""

    daemon: Daemon
    pod: Pod
    runs: Container
    ended: Container

    def right(self, method: str) -> Message:
        """A request of this RPC with nothing wrong in it; it does no harm to the stage."""
        name = method.rpartition("/")[2]
        pod, config = self.pod.id, sandbox(self.daemon, "wrong")
        asked = v1.ImageSpec(image=SHELL)
        linux = v1.LinuxContainerConfig(resources=v1.LinuxContainerResources(cpu_shares=100))
        known: dict[str, Message] = {
            "RunPodSandbox": v1.RunPodSandboxRequest(config=config),
            "CreateContainer": v1.CreateContainerRequest(
                pod_sandbox_id=pod,
                config=container(SHELL, SLEEP, name="wrong", linux=linux),
                sandbox_config=self.pod.config,
            ),
            "ExecSync": v1.ExecSyncRequest(
                container_id=self.runs.id, cmd=["/bin/true"], timeout=20
            ),
            "Exec": v1.ExecRequest(container_id=self.runs.id, cmd=["/bin/true"], stdout=True),
            "Attach": v1.AttachRequest(container_id=self.runs.id, stdout=True),
            "PortForward": v1.PortForwardRequest(pod_sandbox_id=pod, port=[80]),
            "PullImage": v1.PullImageRequest(image=asked),
            "ImageStatus": v1.ImageStatusRequest(image=asked),
            "UpdateContainerResources": v1.UpdateContainerResourcesRequest(
                container_id=self.runs.id, linux=linux.resources
            ),
            "UpdatePodSandboxResources": v1.UpdatePodSandboxResourcesRequest(pod_sandbox_id=pod),
            "StopContainer": v1.StopContainerRequest(container_id=self.ended.id),
            "RemoveImage": v1.RemoveImageRequest(image=v1.ImageSpec(image="registry.test/none:1")),
        }
        if name in known:
            return known[name]
        message = wrong.methods()[method].input_type
        request: Message = getattr(v1, message.name)()
        ids = {"container_id": self.ended.id, "pod_sandbox_id": pod}
        if name in ("StopPodSandbox", "RemovePodSandbox", "RemoveContainer"):
            ids = dict.fromkeys(ids, NOWHERE)
        for field in message.fields_by_name.keys() & ids.keys():
            setattr(request, field, ids[field])
        return request

    def ask(self, case: Wrong) -> str:
        """The code of the answer; what the call made goes again."""
        method = wrong.methods()[case.method]
        answer = getattr(v1, method.output_type.name)
        client = self.daemon.client
        try:
            if method.server_streaming:
                for _ in client.stream(case.method, case.request, answer):
                    pass
                return "OK"
            made = client.call(case.method, case.request, answer, 60)
        except errors.ThawError as error:
            return error.code
        if isinstance(made, v1.RunPodSandboxResponse) and made.pod_sandbox_id != self.pod.id:
            client.stop_pod(made.pod_sandbox_id)
            client.remove_pod(made.pod_sandbox_id)
        if isinstance(made, v1.CreateContainerResponse):
            client.remove_container(made.container_id)
        return "OK"


@pytest.fixture
def stage(daemon: Daemon) -> Stage:
    pod = Pod.run(daemon)
    ended = pod.start(SHELL, ["/bin/true"], name="ended")
    ended.wait()
    return Stage(daemon, pod, pod.start(SHELL, SLEEP, name="runs"), ended)


def _state(stage: Stage) -> tuple[set[tuple[str, int]], set[tuple[str, int]], set[str]]:
    client = stage.daemon.client
    return (
        {(pod.id, pod.state) for pod in client.pods()},
        {(each.id, each.state) for each in client.containers()},
        {image.id for image in client.images()},
    )


def _cases(stage: Stage, service: str) -> Iterator[Wrong]:
    for method in sorted(wrong.methods()):
        # Its request has no fields, and its answer no end.
        if method.startswith(service) and method != EVENTS:
            yield from wrong.requests(method, stage.right(method))


@pytest.mark.parametrize("service", [RUNTIME, IMAGE])
@pytest.mark.timeout(600)
def test_each_field_of_each_request(stage: Stage, service: str) -> None:
    before, seen = _state(stage), len(stage.daemon.log_text())
    bad = []
    for case in _cases(stage, service):
        code = stage.ask(case)
        certain = case.certain or must_be_refused(case)
        if code in INEXACT or (certain and code != "INVALID_ARGUMENT"):
            bad.append(f"{case}: {code}")
    assert not bad, "\n".join(bad)
    assert _state(stage) == before
    assert stage.runs.sh("echo well") == "well"
    assert "Traceback" not in stage.daemon.log_text(seen)
