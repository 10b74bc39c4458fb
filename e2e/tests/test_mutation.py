"""What `make mutation` does to a message, and which of its verdicts it keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from cri.api import v1_pb2
from cri.api.coverage import load
from e2e import mutation
from e2e.harness.dropping import drop


def test_a_field_is_taken_out_of_every_message_however_deep() -> None:
    def request(ref: str) -> v1_pb2.CreateContainerRequest:
        image = v1_pb2.ImageSpec(image="a", image_ref=ref)
        mounts = [v1_pb2.Mount(image=image), v1_pb2.Mount(container_path="/b")]
        config = v1_pb2.ContainerConfig(image=image, mounts=mounts, labels={"c": "d"})
        return v1_pb2.CreateContainerRequest(config=config)

    message = request("there")
    drop(message, "ImageSpec", "image_ref")
    assert message == request("")
    drop(message, "ContainerConfig", "labels")
    assert not message.config.labels


def test_a_verdict_counts_while_its_test_reads_as_it_did(tmp_path: Path) -> None:
    first, second, third, fourth = load().shown()[:4]
    verdicts = [mutation.verdict(each, mutation.NOTICED, 1, "") for each in (first, second, third)]
    verdicts[1] = replace(verdicts[1], digest="of another text")
    # The last word counts.
    verdicts += [replace(verdicts[2], verdict=mutation.SURVIVED)]
    verdicts += [mutation.verdict(fourth, mutation.BROKEN, 1, "")]
    path = tmp_path / "verdicts"
    assert mutation.noticed(path) == {}
    path.write_text("".join(json.dumps(asdict(each)) + "\n" for each in verdicts))
    assert mutation.noticed(path) == {first.name: verdicts[0]}
