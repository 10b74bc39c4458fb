"""Manifests, indexes, configurations and layers that lie, or are of odd forms."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path

import pytest

from hostlib import errors
from images.manifest import architecture
from images.service import Images, Limits
from images.tests.build import OCI_INDEX, Entry, compress, image, index, sha, tar
from images.tests.fake_registry import Answer, FakeRegistry

LAYER = tar(Entry("a", b"x" * 200_000))


@pytest.mark.parametrize(
    ("content_type", "change", "error"),
    [
        ("application/vnd.docker.distribution.manifest.v2+json", {}, errors.DataLoss),
        ("application/vnd.oci.image.index.v1+json", {}, errors.DataLoss),
        (None, {"mediaType": "application/vnd.oci.image.index.v1+json"}, errors.DataLoss),
        ("text/html", {"mediaType": None}, errors.InvalidArgument),
        (None, {"schemaVersion": 1}, errors.Unimplemented),
        (None, {"layers": None}, errors.DataLoss),
        (None, {"layers": []}, errors.InvalidArgument),
        (None, {"config": {"digest": "sha256:../../x", "size": 1}}, errors.DataLoss),
        (None, {"config": {"mediaType": "x", "digest": sha(b""), "size": 1}},
         errors.InvalidArgument),
        (None, {"layers": [{"mediaType": "x", "digest": sha(b""), "size": -1}]}, errors.DataLoss),
        (None, {"layers": [{"mediaType": "x", "digest": sha(b""), "size": 2**64}]},
         errors.DataLoss),
        (None, {"mediaType": ["x"]}, errors.DataLoss),
        (None, {"annotations": {"x": "\ud800"}}, errors.DataLoss),
        (None, {"layers": [{"mediaType": "x", "digest": sha(b""), "size": 1}] * 128},
         errors.ResourceExhausted),
    ],
)  # fmt: skip
async def test_manifests_that_lie(
    images: Images,
    registry: FakeRegistry,
    content_type: str | None,
    change: dict[str, object],
    error: type[errors.ThawError],
) -> None:
    built = registry.add(image(LAYER))
    body = {**json.loads(built.manifest), **change}
    data = json.dumps(body).encode()
    registry.add_manifest(data, content_type or built.media_type, "latest")
    with pytest.raises(error):
        await images.pull(f"{registry.host}/a")


@pytest.mark.parametrize(
    ("change", "error"),
    [({"size": 7}, errors.DataLoss), ({"mediaType": {}}, errors.NotFound),
     ({"digest": sha(b"")}, errors.NotFound)],
)  # fmt: skip
async def test_indexes_that_lie(
    images: Images, registry: FakeRegistry, change: dict[str, object], error: type[errors.ThawError]
) -> None:
    body = json.loads(index((architecture(), registry.add(image(LAYER), ""))))
    body["manifests"][0] |= change
    registry.add_manifest(json.dumps(body).encode(), OCI_INDEX, "latest")
    with pytest.raises(error):
        await images.pull(f"{registry.host}/a")


async def test_a_configuration_with_half_a_character(
    images: Images, registry: FakeRegistry
) -> None:
    """It would make every later list of images fail."""
    registry.add(image(LAYER, config={"User": "\ud800"}))
    with pytest.raises(errors.DataLoss, match="configuration is no JSON"):
        await images.pull(f"{registry.host}/a")


async def test_layers_of_an_image_that_is_refused_do_not_stay(
    images: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add(image(LAYER, tar(Entry("../x"))))
    with pytest.raises(errors.InvalidArgument):
        await images.pull(f"{registry.host}/a")
    assert not [item for item in (tmp_path / "root/images").rglob("*") if item.is_file()]


async def test_a_manifest_that_is_no_json(images: Images, registry: FakeRegistry) -> None:
    registry.add_manifest(b"<html>", tag="latest")
    with pytest.raises(errors.DataLoss, match="no JSON"):
        await images.pull(f"{registry.host}/a")


@pytest.mark.parametrize(
    ("layer", "error", "match"),
    [
        (b"no tar at all" * 100, errors.InvalidArgument, "no tar"),
        (b"", errors.InvalidArgument, "empty"),
        (tar(Entry("../x")), errors.InvalidArgument, "leaves the image's root"),
        (LAYER[:100_000], errors.DataLoss, "ends|damaged"),
    ],
)
async def test_layers_that_are_refused(
    images: Images,
    registry: FakeRegistry,
    layer: bytes,
    error: type[errors.ThawError],
    match: str,
) -> None:
    registry.add(image(layer))
    with pytest.raises(error, match=match):
        await images.pull(f"{registry.host}/a")


async def test_a_layer_of_another_compression_than_promised(
    images: Images, registry: FakeRegistry
) -> None:
    registry.add(image(LAYER, raw=[compress(LAYER, "+zstd")]))
    with pytest.raises(errors.InvalidArgument, match="promises gzip"):
        await images.pull(f"{registry.host}/a")


async def test_a_layer_of_another_diff_id(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER, diff_ids=[sha(b"other")]))
    with pytest.raises(errors.DataLoss, match="configuration says"):
        await images.pull(f"{registry.host}/a")


async def test_a_bomb(registry: FakeRegistry, tmp_path: Path) -> None:
    limits = Limits(layer_bytes=1_000_000, layer_entries=10)
    service = Images(tmp_path, registry_config=None, limits=limits)
    await service.open()
    registry.add(image(tar(Entry("a", bytes(50_000_000)))), "bytes")
    registry.add(image(tar(*(Entry(f"{n}") for n in range(11)))), "entries")
    registry.add(image(tar(Entry("a")) + bytes(50_000_000)), "tail")
    for tag in ("bytes", "entries", "tail"):
        with pytest.raises(errors.ResourceExhausted, match="bomb"):
            await service.pull(f"{registry.host}/a:{tag}")
    assert not list((tmp_path / "images/ingest").iterdir())
    await service.close()


async def test_a_gzip_of_several_members(images: Images, registry: FakeRegistry) -> None:
    half = len(LAYER) // 2
    out = io.BytesIO()
    for part in (LAYER[:half], LAYER[half:]):
        out.write(compress(part, "+gzip"))
    registry.add(image(LAYER, raw=[out.getvalue()]))
    assert await images.pull(f"{registry.host}/a")
    registry.add(image(LAYER, raw=[compress(LAYER, "+gzip")[:-20]]), "cut")
    found = images.list()[0]
    await images.remove(found.id)
    with pytest.raises(errors.DataLoss, match="too early"):
        await images.pull(f"{registry.host}/a:cut")


@pytest.mark.parametrize("chunk", [1000, 65536, 1 << 22])
async def test_gzip_members_that_end_where_a_step_does(
    images: Images, registry: FakeRegistry, chunk: int
) -> None:
    # zlib then tells of what follows in two places at once.
    member = bytes(2 << 20)
    plain = LAYER + member * 3
    raw = compress(LAYER, "+gzip") + compress(member, "+gzip") * 3
    built = registry.add(image(plain, raw=[raw]))

    async def send(writer: asyncio.StreamWriter) -> None:
        for start in range(0, len(raw), chunk):
            writer.write(raw[start : start + chunk])
            await writer.drain()

    registry.behave = lambda r: (
        Answer(length=len(raw), chunks=send) if built.layers[0] in r.path else None
    )
    assert await images.pull(f"{registry.host}/a")
