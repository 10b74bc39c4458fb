"""Lists, and the streams of the same: what they have, and what filters leave of it."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import Message

from cri.api import v1_pb2 as v1
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod, sandbox
from e2e.harness.refs import SHELL, SLEEP

ITEMS = {
    "PodSandboxes": "pod_sandboxes",
    "Containers": "containers",
    "Images": "images",
    "ContainerStats": "container_stats",
    "PodSandboxStats": "pod_sandbox_stats",
    "PodSandboxMetrics": "pod_sandbox_metrics",
}


def streamed(daemon: Daemon, what: str, **wanted: Message) -> list[Any]:
    """The items of ``Stream<what>``."""
    request = getattr(v1, f"Stream{what}Request")(**wanted)
    answer = getattr(v1, f"Stream{what}Response")
    service = "ImageService" if what == "Images" else "RuntimeService"
    messages = daemon.client.stream(f"runtime.v1.{service}/Stream{what}", request, answer)
    return [item for message in messages for item in getattr(message, ITEMS[what])]


def listed(daemon: Daemon, what: str, wanted: Message) -> list[Any]:
    """The items of ``List<what>`` of stats."""
    request = getattr(v1, f"List{what}Request")(filter=wanted)
    answer = getattr(v1, f"List{what}Response")
    return list(daemon.client.runtime(f"List{what}", request, answer).stats)


def ids(found: list[Any]) -> list[str]:
    return [each.id for each in found]


def told_of(daemon: Daemon, what: str, wanted: Message) -> list[str]:
    """Whose stats a filter leaves, in the list and in the stream alike."""
    found = [each.attributes.id for each in listed(daemon, what, wanted)]
    assert [each.attributes.id for each in streamed(daemon, what, filter=wanted)] == found
    return found


def test_streams_have_what_the_lists_have(daemon: Daemon) -> None:
    pods = []
    for number in ("one", "two"):
        config = sandbox(daemon, annotations={"note": number})
        config.labels["number"] = number
        pods.append(Pod(daemon, daemon.client.run_pod(config), config))
    boxes = [
        pod.start(SHELL, SLEEP, name=name, labels={"name": name}, annotations={"note": name})
        for pod in pods
        for name in ("first", "second")
    ]
    assert ids(streamed(daemon, "Containers")) == ids(boxes)
    assert ids(streamed(daemon, "PodSandboxes")) == ids(pods)
    images = ids(streamed(daemon, "Images"))
    assert sorted(images) == sorted(ids(daemon.client.images()))
    metrics = streamed(daemon, "PodSandboxMetrics")
    assert [each.pod_sandbox_id for each in metrics] == ids(pods)

    stats = [each.attributes for each in streamed(daemon, "ContainerStats")]
    assert sorted(ids(stats)) == sorted(ids(boxes))
    for box in boxes:
        [told] = [each for each in stats if each.id == box.id]
        assert told.labels == box.config.labels
        assert told.annotations == box.config.annotations
    stats = [each.attributes for each in streamed(daemon, "PodSandboxStats")]
    assert ids(stats) == ids(pods)
    for pod, told in zip(pods, stats, strict=True):
        assert told.labels == pod.config.labels
        assert told.annotations == pod.config.annotations

    by_pod = v1.ContainerFilter(pod_sandbox_id=pods[1].id)
    assert ids(streamed(daemon, "Containers", filter=by_pod)) == ids(boxes[2:])
    by_label = v1.PodSandboxFilter(label_selector={"number": "two"})
    assert ids(streamed(daemon, "PodSandboxes", filter=by_label)) == [pods[1].id]
    by_name = v1.ImageFilter(image=v1.ImageSpec(image=SHELL))
    [image] = streamed(daemon, "Images", filter=by_name)
    assert SHELL in image.repo_tags
    assert len(images) > 1

    containers = (
        (v1.ContainerStatsFilter(id=boxes[2].id), boxes[2:3]),
        (v1.ContainerStatsFilter(pod_sandbox_id=pods[0].id), boxes[:2]),
        (v1.ContainerStatsFilter(label_selector={"name": "second"}), boxes[1::2]),
    )
    for wanted, expected in containers:
        assert told_of(daemon, "ContainerStats", wanted) == ids(expected)
    for filtered in (
        v1.PodSandboxStatsFilter(id=pods[1].id),
        v1.PodSandboxStatsFilter(label_selector={"number": "two"}),
    ):
        assert told_of(daemon, "PodSandboxStats", filtered) == [pods[1].id]
