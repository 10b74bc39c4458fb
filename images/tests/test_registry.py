"""Registries that fail, break off or stall."""

from __future__ import annotations

import asyncio
import json
import socket
from pathlib import Path

import pytest

from hostlib import errors
from images.service import Images, Limits
from images.tests.build import Entry, image, tar
from images.tests.fake_registry import Answer, Behaviour, FakeRegistry, Request

LAYER = tar(Entry("a", b"x" * 200_000))


def once(part: str, *answers: Answer) -> Behaviour:
    """Give these answers, one after another, to requests whose path holds `part`."""
    left = list(answers)

    def behave(request: Request) -> Answer | None:
        return left.pop(0) if part in request.path and left else None

    return behave


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (401, errors.Unauthenticated),
        (403, errors.PermissionDenied),
        (404, errors.NotFound),
        (418, errors.FailedPrecondition),
        (429, errors.ResourceExhausted),
        (500, errors.Unavailable),
        (503, errors.Unavailable),
    ],
)
async def test_refusals(
    images: Images, registry: FakeRegistry, status: int, error: type[errors.ThawError]
) -> None:
    registry.behave = lambda _: Answer(status)
    with pytest.raises(error) as caught:
        await images.pull(f"{registry.host}/a")
    assert registry.host in caught.value.message or "credentials" in caught.value.message
    assert len(registry.requests) == (5 if status == 429 or status >= 500 else 1)
    assert images.list() == []


@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_transient_refusals_are_outlived(
    images: Images, registry: FakeRegistry, part: str, status: int
) -> None:
    registry.add(image(LAYER))
    registry.behave = once(part, Answer(status), Answer(status, headers={"Retry-After": "0"}))
    assert await images.pull(f"{registry.host}/a")


async def test_a_body_cut_short_is_resumed(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(LAYER, form=""))
    digest = built.layers[0]
    blob = built.blobs[digest]
    registry.behave = once(digest, *(Answer(body=blob[:n], length=len(blob)) for n in (1000,)))
    assert await images.pull(f"{registry.host}/a")
    assert [item.headers.get("range") for item in registry.paths(digest)] == [None, "bytes=1000-"]


async def test_a_server_without_ranges_is_read_again(
    images: Images, registry: FakeRegistry
) -> None:
    built = registry.add(image(LAYER, form=""))
    digest = built.layers[0]
    blob = built.blobs[digest]
    registry.behave = once(digest, Answer(body=blob[:1000], length=len(blob)), Answer(body=blob))
    assert await images.pull(f"{registry.host}/a")


async def test_a_body_that_always_breaks_off_is_given_up(
    images: Images, registry: FakeRegistry
) -> None:
    built = registry.add(image(LAYER, form=""))
    digest = built.layers[0]
    registry.behave = lambda r: Answer(206, b"", length=10) if digest in r.path else None
    with pytest.raises((errors.Unavailable, errors.DataLoss)):
        await images.pull(f"{registry.host}/a")


async def test_a_resume_at_the_wrong_place(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(LAYER, form=""))
    digest = built.layers[0]
    blob = built.blobs[digest]
    wrong = Answer(206, blob[5:], {"Content-Range": f"bytes 5-{len(blob) - 1}/{len(blob)}"})
    registry.behave = once(digest, Answer(body=blob[:1000], length=len(blob)), wrong)
    with pytest.raises(errors.DataLoss, match="wrong place"):
        await images.pull(f"{registry.host}/a")


async def test_wrong_digest(images: Images, registry: FakeRegistry, tmp_path: Path) -> None:
    built = registry.add(image(LAYER, form=""))
    blob = bytearray(built.blobs[built.layers[0]])
    blob[600] ^= 1
    registry.blobs[built.layers[0]] = bytes(blob)
    with pytest.raises(errors.DataLoss, match="arrived as"):
        await images.pull(f"{registry.host}/a")
    assert not list((tmp_path / "root/images/layers").iterdir())


async def test_wrong_config_digest(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(LAYER))
    data = registry.blobs[built.config_digest]
    registry.blobs[built.config_digest] = data.replace(b"/bin/sh", b"/bin/ss")
    with pytest.raises(errors.DataLoss, match="arrived as"):
        await images.pull(f"{registry.host}/a")


async def test_wrong_manifest_digest(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(LAYER))
    registry.manifests[built.digest] = (built.manifest + b" ", built.media_type)
    with pytest.raises(errors.DataLoss, match="arrived as"):
        await images.pull(f"{registry.host}/a@{built.digest}")
    registry.add(built)
    found = await images.pull(f"{registry.host}/a:latest@{built.digest}")
    assert found.repo_tags == () and images.get(f"{registry.host}/a@{built.digest}") == found


@pytest.mark.parametrize("extra", [b"more", b""])
async def test_wrong_size(images: Images, registry: FakeRegistry, extra: bytes) -> None:
    built = registry.add(image(LAYER, form=""))
    body = json.loads(built.manifest)
    body["layers"][0]["size"] += -1 if extra else 1
    registry.add_manifest(json.dumps(body).encode(), tag="latest")
    with pytest.raises((errors.DataLoss, errors.Unavailable)):
        await images.pull(f"{registry.host}/a")


async def test_an_endless_body(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(LAYER, form=""))

    async def endless(writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()

    def behave(request: Request) -> Answer | None:
        if built.layers[0] in request.path:
            return Answer(body=LAYER, length=2**50, chunks=endless)
        return None

    registry.behave = behave
    with pytest.raises(errors.DataLoss, match="sends more than"):
        await images.pull(f"{registry.host}/a")


async def test_an_endless_manifest(images: Images, registry: FakeRegistry) -> None:
    registry.behave = lambda _: Answer(body=b" " * 5_000_000)
    with pytest.raises(errors.ResourceExhausted, match="larger than"):
        await images.pull(f"{registry.host}/a")


async def test_a_stall(registry: FakeRegistry, tmp_path: Path) -> None:
    service = Images(tmp_path, registry_config=None, limits=Limits(stall_timeout=0.1))
    await service.open()
    built = registry.add(image(LAYER, form=""))

    async def hang(_: asyncio.StreamWriter) -> None:
        await asyncio.sleep(3600)

    registry.behave = lambda r: (
        Answer(length=100, chunks=hang) if built.layers[0] in r.path else None
    )
    with pytest.raises(errors.DeadlineExceeded, match="sent nothing"):
        await service.pull(f"{registry.host}/a")
    await service.close()


async def test_a_refused_connection(images: Images) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(errors.Unavailable, match="refused the connection"):
            await images.pull(f"127.0.0.1:{port}/a")


async def test_an_unknown_host(images: Images) -> None:
    with pytest.raises(errors.Unavailable, match=r"is unknown|cannot be reached"):
        await images.pull("no-such-host.invalid/a")


async def test_a_failure_of_the_disk_is_no_failure_of_a_mirror(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    (tmp_path / "example.com").mkdir()
    (tmp_path / "example.com/hosts.toml").write_text(
        f'server = "http://{registry.host}"\n[host."http://{registry.host}"]\n'
    )
    limits = Limits(min_free_bytes=2**60)
    service = Images(tmp_path / "root", registry_config=tmp_path, limits=limits)
    await service.open()
    built = registry.add(image(LAYER))
    with pytest.raises(errors.ResourceExhausted, match="bytes free"):
        await service.pull("example.com/a")
    assert len(registry.paths(built.layers[0])) == 1
    await service.close()


async def test_layers_that_came_before_a_failure_go_with_it(
    images: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    built = registry.add(image(tar(Entry("first", b"y" * 1000)), LAYER, form=""))
    layers = tmp_path / "root/images/layers"

    async def first_comes(_: asyncio.StreamWriter) -> None:
        while not list(layers.iterdir()):  # noqa: ASYNC110 - a file is no event
            await asyncio.sleep(0.01)

    def behave(request: Request) -> Answer | None:
        if built.layers[1] not in request.path:
            return None
        return Answer(404) if list(layers.iterdir()) else Answer(length=9, chunks=first_comes)

    registry.behave = behave
    with pytest.raises(errors.NotFound):
        await images.pull(f"{registry.host}/a")
    for name in ("layers", "ingest", "blobs"):
        assert not list((tmp_path / "root/images" / name).iterdir())
