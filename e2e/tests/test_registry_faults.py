"""Registries that fail, lie or attack: each pull ends with the right code and leaves nothing."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.faulty import Answer, FaultyRegistry, Request, times
from e2e.harness.refs import NGINX, WEBAPP
from e2e.harness.waiting import until
from hostlib import errors
from images.tests.build import Built, Entry, hard_link, image, sha, symlink, tar

LAYER = tar(Entry("etc/faulty", b"x" * 200_000))
MEMBER = gzip.compress(bytes(16 << 20), mtime=0)
"""16 MiB in 16 KiB; a gzip file may have any number of such members."""


@pytest.fixture(autouse=True)
def _nothing_is_merged(daemon: Daemon) -> None:
    # What is merged in the background, of images that are here, is no pull's doing.
    for ref in (NGINX, WEBAPP):
        until(f"{ref} is merged", partial(daemon.merged, ref), 60)


def disk(daemon: Daemon) -> tuple[list[str], int, int]:
    """The image store: its files, and what ImageFsInfo says of it."""
    folder = daemon.root / "images"
    answer = daemon.client.image(
        "ImageFsInfo", v1_pb2.ImageFsInfoRequest(), v1_pb2.ImageFsInfoResponse
    )
    (usage,) = answer.image_filesystems
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    return files, usage.used_bytes.value, usage.inodes_used.value


def pull(daemon: Daemon, reference: str, **auth: str) -> str:
    request = v1_pb2.PullImageRequest(
        image=v1_pb2.ImageSpec(image=reference), auth=v1_pb2.AuthConfig(**auth)
    )
    return daemon.client.image("PullImage", request, v1_pb2.PullImageResponse, 120).image_ref


def refused(
    daemon: Daemon, reference: str, error: type[errors.ThawError], says: str, **auth: str
) -> errors.ThawError:
    """The refusal of a pull that must leave nothing."""
    before = disk(daemon)
    with pytest.raises(errors.ThawError, match=says) as caught:
        pull(daemon, reference, **auth)
    assert caught.value.code == error.code, caught.value
    assert disk(daemon) == before
    return caught.value


def accepted(daemon: Daemon, reference: str, **auth: str) -> None:
    """A pull that works in the end, taken back so that the next test begins as this one did."""
    found = pull(daemon, reference, **auth)
    assert found.startswith("sha256:")
    daemon.client.remove_image(found)


def wants(registry: FaultyRegistry, user: str, password: str) -> None:
    good = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()

    def behave(request: Request) -> Answer | None:
        if request.headers.get("authorization") == good:
            return None
        return Answer(401, headers={"WWW-Authenticate": 'Basic realm="test"'})

    registry.registry.behave = behave


def test_credentials(daemon: Daemon, faulty: FaultyRegistry) -> None:
    faulty.registry.add(image(LAYER))
    wants(faulty, "user", "secret")
    host = faulty.registry.host
    for auth in ({}, {"username": "user", "password": "wrong"}):
        found = refused(daemon, faulty.image, errors.Unauthenticated, host, **auth)
        assert found.hint
        assert "wrong" not in found.message
    accepted(daemon, faulty.image, username="user", password="secret")


@pytest.mark.parametrize(
    ("part", "status", "error"),
    [
        ("/manifests/", 403, errors.PermissionDenied),
        ("/manifests/", 404, errors.NotFound),
        ("/manifests/", 429, errors.ResourceExhausted),
        ("/manifests/", 500, errors.Unavailable),
        ("/blobs/", 404, errors.NotFound),
    ],
)
def test_a_status_for_ever(
    daemon: Daemon, faulty: FaultyRegistry, part: str, status: int, error: type[errors.ThawError]
) -> None:
    faulty.registry.add(image(LAYER))
    faulty.registry.behave = times(1000, part, Answer(status))
    assert refused(daemon, faulty.image, error, faulty.registry.host).hint


@pytest.mark.parametrize(
    "answer", [Answer(429, headers={"Retry-After": "1"}), Answer(500), Answer(503)]
)
@pytest.mark.parametrize("part", ["/manifests/", "/blobs/"])
def test_a_status_that_passes(
    daemon: Daemon, faulty: FaultyRegistry, part: str, answer: Answer
) -> None:
    faulty.registry.add(image(LAYER))
    faulty.registry.behave = times(1, part, answer)
    accepted(daemon, faulty.image)


def test_a_body_cut_short_is_resumed(daemon: Daemon, faulty: FaultyRegistry) -> None:
    built = faulty.registry.add(image(LAYER, form=""))
    digest = built.layers[0]
    cut = Answer(body=LAYER[:70_000], length=len(LAYER))
    faulty.registry.behave = times(1, digest, cut)
    accepted(daemon, faulty.image)
    ranges = [request.headers.get("range") for request in faulty.registry.paths(digest)]
    assert ranges == [None, "bytes=70000-"]


def lie(built: Built, registry: FaultyRegistry, **changes: object) -> None:
    """Serve the image by a manifest with `changes` to its first layer, or to itself."""
    body = json.loads(built.manifest)
    for key, value in changes.items():
        (body["layers"][0] if key in ("size", "digest") else body)[key] = value
    registry.registry.add_manifest(json.dumps(body).encode(), tag="latest")


def test_a_blob_with_another_digest(daemon: Daemon, faulty: FaultyRegistry) -> None:
    # A second layer that arrives whole goes with the image.
    built = faulty.registry.add(image(tar(Entry("whole", b"y" * 1000)), LAYER, form=""))
    faulty.registry.blobs[built.layers[1]] = LAYER.replace(b"xxxx", b"xxxy", 1)
    assert refused(daemon, faulty.image, errors.DataLoss, built.layers[1]).hint


@pytest.mark.parametrize("more", [-1, 1])
def test_a_blob_of_another_size(daemon: Daemon, faulty: FaultyRegistry, more: int) -> None:
    built = faulty.registry.add(image(LAYER, form=""))
    lie(built, faulty, size=len(LAYER) + more)
    if more < 0:
        refused(daemon, faulty.image, errors.DataLoss, built.layers[0])
    else:
        refused(daemon, faulty.image, errors.Unavailable, "ended blob")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"mediaType": "application/vnd.oci.image.index.v1+json"}, errors.DataLoss),
        ({"mediaType": None, "schemaVersion": 1}, errors.Unimplemented),
        ({"layers": None}, errors.DataLoss),
        ({"layers": []}, errors.InvalidArgument),
    ],
)
def test_a_manifest_that_lies_about_its_type(
    daemon: Daemon,
    faulty: FaultyRegistry,
    change: dict[str, object],
    error: type[errors.ThawError],
) -> None:
    lie(faulty.registry.add(image(LAYER)), faulty, **change)
    refused(daemon, faulty.image, error, "manifest|image|index|schema")


@pytest.mark.parametrize(
    ("layer", "error", "says"),
    [
        (b"this is no tar archive at all" * 100, errors.InvalidArgument, "no tar"),
        (LAYER[:100_000], errors.DataLoss, "damaged|ends"),
        (tar(Entry("../x")), errors.InvalidArgument, r"\.\./x.*leaves the image's root"),
        (tar(Entry("a/../../x")), errors.InvalidArgument, "leaves the image's root"),
        (tar(hard_link("x", "../../etc/passwd")), errors.InvalidArgument, r"etc/passwd.*leaves"),
        (tar(hard_link("x", "/etc/passwd")), errors.InvalidArgument, "nothing in this layer"),
        (
            tar(symlink("out", "/etc"), hard_link("x", "out/passwd")),
            errors.InvalidArgument,
            "nothing in this layer",
        ),
    ],
)
def test_a_layer_that_is_refused(
    daemon: Daemon,
    faulty: FaultyRegistry,
    layer: bytes,
    error: type[errors.ThawError],
    says: str,
) -> None:
    faulty.registry.add(image(layer))
    refused(daemon, faulty.image, error, says)


def test_names_that_lead_out_lie_in_the_image(
    daemon: Daemon, faulty: FaultyRegistry, tmp_path: Path
) -> None:
    # As tar and containerd take it: /x is x, below the image's root, and never on the host; what
    # was a link to a folder becomes a folder where a later name leads through it.
    outside = tmp_path / "outside"
    faulty.registry.add(
        image(
            tar(
                Entry(f"{outside}/absolute", b"kept inside\n"),
                symlink("door", str(outside)),
                Entry("door/through", b"kept inside\n"),
            )
        )
    )
    accepted(daemon, faulty.image)
    assert not outside.exists()


async def _endless(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(MEMBER)
        await writer.drain()


async def _silent(writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(3600)


def _served(built: Built, length: int, chunks: object) -> Callable[[Request], Answer | None]:
    return lambda request: (
        Answer(length=length, chunks=chunks)  # type: ignore[arg-type]
        if built.layers[0] in request.path
        else None
    )


def test_bombs_and_layers_that_never_end(
    make_daemon: Callable[..., Daemon], faulty: FaultyRegistry
) -> None:
    limits = {"max_layer_gib": 1, "max_layer_entries": 10, "max_layers": 3, "stall_seconds": 1.0}
    daemon = make_daemon(settings={"images": limits, "snapshot": {"on_demand": True}}).start()
    registry = faulty.registry

    # One GiB and more out of one MiB; more files, or more layers, than the configuration allows.
    registry.add(image(LAYER, raw=[gzip.compress(LAYER, mtime=0) + MEMBER * 66]))
    found = refused(daemon, faulty.image, errors.ResourceExhausted, "bomb.* 1073741824 bytes")
    assert "configuration" in str(found.hint)
    registry.add(image(tar(*(Entry(f"{n}") for n in range(11)))))
    refused(daemon, faulty.image, errors.ResourceExhausted, "bomb.* 10 entries")
    registry.add(image(*(tar(Entry(f"{n}")) for n in range(4))))
    refused(daemon, faulty.image, errors.ResourceExhausted, "layers")

    # More than was announced; announced as endless, and so it is; and one that stops coming.
    built = registry.add(image(LAYER))
    registry.behave = _served(built, 2**40, _endless)
    refused(daemon, faulty.image, errors.DataLoss, f"more than.*{built.layers[0]}")
    raw = gzip.compress(LAYER, mtime=0)
    built = registry.add(image(LAYER, raw=[raw]))
    lie(built, faulty, size=2**40)
    registry.behave = times(1000, sha(raw), Answer(body=raw, length=2**40, chunks=_endless))
    refused(daemon, faulty.image, errors.ResourceExhausted, "bomb")
    registry.behave = times(1000, sha(raw), Answer(body=raw[:100], length=2**40, chunks=_silent))
    assert refused(daemon, faulty.image, errors.DeadlineExceeded, "sent nothing").hint
    faulty.reset()
    faulty.registry.add(image(LAYER))
    accepted(daemon, faulty.image)
