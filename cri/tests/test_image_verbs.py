"""The verbs of images, and what containers are made of them, over a real gRPC connection."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import grpc

from cri.api import thaw_pb2
from cri.api import v1_pb2 as v1
from cri.tests.client import Client, refused
from cri.tests.fakes import IMAGE as SHELL
from hostlib.errors import ResourceExhausted
from images.model import Image, Layer, LayerProgress, Progress

Code = grpc.StatusCode


async def test_images(client: Client) -> None:
    image = client.image
    name = v1.ImageSpec(image="docker.io/library/shell:1")
    assert (await image.PullImage(v1.PullImageRequest(image=name))).image_ref == SHELL.id
    absent = v1.ImageSpec(image="absent")
    assert not (await image.ImageStatus(v1.ImageStatusRequest(image=absent))).HasField("image")
    assert (await image.ImageStatus(v1.ImageStatusRequest(image=name))).image.size == 4096
    assert len((await image.ListImages(v1.ListImagesRequest())).images) == 1
    filtered = v1.ListImagesRequest(filter=v1.ImageFilter(image=absent))
    assert len((await image.ListImages(filtered)).images) == 0
    usage = await image.ImageFsInfo(v1.ImageFsInfoRequest())
    assert usage.image_filesystems[0].used_bytes.value == 4096
    for _ in range(2):
        await image.RemoveImage(v1.RemoveImageRequest(image=name))


def layered(client: Client, count: int) -> None:
    """The one image has so many layers from now on."""
    layers = tuple(Layer(f"sha256:{n:064x}", Path(f"/layers/{n}"), 1) for n in range(count))
    client.world.images.images = [dataclasses.replace(SHELL, layers=layers)]


async def test_an_image_of_many_layers_is_mounted_merged(client: Client) -> None:
    layered(client, 20)
    pod = await client.run()
    await client.create(pod)
    (call,) = [each for each in client.shim(pod).calls if each[0] == "container_create"]
    assert call[2] == [{"name": "9" * 64, "path": "/merged/9"}]
    request = v1.ImageStatusRequest(image=v1.ImageSpec(image=SHELL.id), verbose=True)
    info = json.loads((await client.image.ImageStatus(request)).info["info"])
    assert len(info["layers"]) == 20
    assert info["merged"] == {"chain_id": "sha256:" + "9" * 64, "size": 4096}


async def test_an_image_is_merged_when_the_pods_slots_are_short(client: Client) -> None:
    pod = await client.run()
    shim = client.shim(pod)
    create = shim.container_create

    async def short(record: Any, spec: Any, layers: Any, *more: Any) -> Any:
        if len(layers) > 2:
            raise ResourceExhausted("2 of 12 slots free")
        return await create(record, spec, layers, *more)

    shim.container_create = short  # type: ignore[method-assign,assignment]
    layered(client, 3)
    container = await client.create(pod)
    assert shim.calls[-1][2] == [{"name": "9" * 64, "path": "/merged/9"}]
    assert client.world.images.held == {f"{container}/{SHELL.id}": SHELL.id}
    # One layer: there is nothing to merge.
    shim.container_create = create  # type: ignore[method-assign]
    shim.fail["container_create"] = ResourceExhausted("no slot is free")
    layered(client, 1)
    await refused(
        client.runtime.CreateContainer(
            v1.CreateContainerRequest(pod_sandbox_id=pod, config=client.config("d"))
        ),
        Code.RESOURCE_EXHAUSTED,
        "no slot",
    )
    assert client.world.images.held == {f"{container}/{SHELL.id}": SHELL.id}


async def test_progress_of_a_pull_that_merges(client: Client) -> None:
    async def pull(ref: str, *, progress: Any, **_: Any) -> Image:
        layer = LayerProgress("sha256:1", 5, 5, "done")
        progress(Progress(ref, (layer,)))
        progress(Progress(ref, (layer,), (3, 9)))
        return SHELL

    client.world.images.pull = pull  # type: ignore[method-assign,assignment]
    told = [each async for each in client.thaw.Pull(thaw_pb2.PullRequest(image="x"))]
    assert [(each.phase, each.layer, each.current, each.total) for each in told] == [
        ("done", "sha256:1", 5, 5), ("merging", "", 3, 9), ("done", "", 0, 0),
    ]  # fmt: skip
