"""Registries that fail, lie, stall or want credentials."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import socket
import ssl
from pathlib import Path

import pytest

from hostlib import errors, process
from images.manifest import architecture
from images.service import Auth, Images, Limits
from images.tests.build import OCI_INDEX, Entry, compress, image, index, sha, tar
from images.tests.fake_registry import Answer, Behaviour, FakeRegistry, Request, running

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


async def test_a_refused_connection(images: Images) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(errors.Unavailable, match="refused the connection"):
            await images.pull(f"127.0.0.1:{port}/a")


async def test_an_unknown_host(images: Images) -> None:
    with pytest.raises(errors.Unavailable, match=r"is unknown|cannot be reached"):
        await images.pull("no-such-host.invalid/a")


def bearer(registry: FakeRegistry, *, good: str) -> Behaviour:
    """Wants a token from its own token server, and `good` as credentials for it."""

    def behave(request: Request) -> Answer | None:
        sent = request.headers.get("authorization", "")
        if request.path.startswith("/token"):
            if sent != good:
                return Answer(401)
            return Answer(body=json.dumps({"token": "T", "expires_in": 300}).encode())
        if sent == "Bearer T":
            return None
        challenge = f'Bearer realm="http://{registry.host}/token",service="s"'
        return Answer(401, headers={"WWW-Authenticate": challenge})

    return behave


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_a_bearer_token(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))
    registry.behave = bearer(registry, good=basic("u", "p"))
    name = f"{registry.host}/a"
    with pytest.raises(errors.Unauthenticated, match="without credentials"):
        await images.pull(name)
    with pytest.raises(errors.Unauthenticated, match="refused the credentials"):
        await images.pull(name, auth=Auth("u", "wrong"))
    with pytest.raises(errors.Unauthenticated):
        await images.pull(name, auth=Auth("u", "p", server_address="other.example"))
    encoded = base64.b64encode(b"u:p").decode()
    registry.requests.clear()
    assert await images.pull(name, auth=Auth(auth=encoded, server_address=registry.host))
    assert len(registry.paths("/token")) == 1
    assert "scope=repository%3Aa%3Apull" in registry.paths("/token")[0].path


async def test_an_anonymous_token(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))
    registry.behave = bearer(registry, good="")
    assert await images.pull(f"{registry.host}/a")


async def test_an_identity_token(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))

    def behave(request: Request) -> Answer | None:
        if request.path.startswith("/token") and b"refresh_token=I" not in request.body:
            return Answer(401)
        return bearer(registry, good="")(request)

    registry.behave = behave
    assert await images.pull(f"{registry.host}/a", auth=Auth(identity_token="I"))


async def test_basic_credentials(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))

    def behave(request: Request) -> Answer | None:
        if request.headers.get("authorization") == basic("u", "p"):
            return None
        return Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    registry.behave = behave
    with pytest.raises(errors.Unauthenticated, match="wants credentials"):
        await images.pull(f"{registry.host}/a")
    assert await images.pull(f"{registry.host}/a", auth=Auth("u", "p"))


async def test_a_redirect_gets_no_credentials(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(LAYER))
    async with running() as elsewhere:
        elsewhere.add(built)

        def behave(request: Request) -> Answer | None:
            if request.headers.get("authorization") != basic("u", "p"):
                return Answer(401, headers={"WWW-Authenticate": "Basic"})
            if "/blobs/" in request.path:
                return Answer(307, headers={"Location": f"http://{elsewhere.host}{request.path}"})
            return None

        registry.behave = behave
        assert await images.pull(f"{registry.host}/a", auth=Auth("u", "p"))
        assert len(elsewhere.requests) == 2
        assert not any("authorization" in item.headers for item in elsewhere.requests)


async def test_redirects_without_end(images: Images, registry: FakeRegistry) -> None:
    registry.behave = lambda r: Answer(302, headers={"Location": r.path})
    with pytest.raises(errors.Unavailable, match="redirects"):
        await images.pull(f"{registry.host}/a")


async def test_a_mirror_is_asked_first_and_passed_over(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    config = tmp_path / "hosts"
    (config / "example.com").mkdir(parents=True)
    service = Images(tmp_path / "root", registry_config=config, limits=Limits())
    await service.open()
    built = registry.add(image(LAYER))
    async with running() as mirror:
        (config / "example.com/hosts.toml").write_text(
            f'server = "http://{registry.host}"\n'
            f'[host."http://{mirror.host}"]\ncapabilities = ["pull", "resolve"]\n'
            '[host."http://' + mirror.host + '".header]\nx-who = "thaw"\n'
        )
        found = await service.pull("example.com/team/app")
        assert found.repo_tags == ("example.com/team/app:latest",)
        assert mirror.requests and registry.requests
        assert "ns=example.com" in mirror.requests[0].path
        assert mirror.requests[0].headers["x-who"] == "thaw"
        await service.remove(found.id)
        registry.requests.clear()
        mirror.add(built)
        await service.pull("example.com/team/app", auth=Auth("u", "p"))
        assert not registry.requests
        assert not any("authorization" in item.headers for item in mirror.requests)
    await service.close()


async def test_a_bad_hosts_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default/hosts.toml").write_text("servr = 1\n")
    service = Images(tmp_path / "root", registry_config=tmp_path, limits=Limits())
    await service.open()
    with pytest.raises(errors.InvalidArgument, match=r"hosts.toml: servr: unknown key"):
        await service.pull("example.com/a")
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


async def test_a_private_authority(tmp_path: Path) -> None:
    await process.run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
        "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "ca.pem"),
    )  # fmt: skip
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    service = Images(tmp_path / "root", registry_config=tmp_path, limits=Limits())
    await service.open()
    (tmp_path / "_default").mkdir()
    hosts = tmp_path / "_default/hosts.toml"
    async with running(tls) as secure:
        secure.add(image(LAYER))
        server = f'server = "https://{secure.host}"\n'
        hosts.write_text(server)
        with pytest.raises(errors.Unavailable, match="certificate"):
            await service.pull("example.com/a")
        for extra in ('ca = "../ca.pem"\n', "skip_verify = true\n"):
            hosts.write_text(server + extra)
            found = await service.pull("example.com/a")
            await service.remove(found.id)
    await service.close()
