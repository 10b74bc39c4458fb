"""Registries of two makes: formats, TLS, credentials, mirrors, and what is said of what came."""

from __future__ import annotations

import base64
import gzip
import json
import shlex
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import zstandard

from cri.api import v1_pb2
from demo import oci
from e2e.harness.authority import Authority
from e2e.harness.command import thaw
from e2e.harness.crane import CraneRegistry, crane
from e2e.harness.daemon import Daemon
from e2e.harness.faulty import Answer, FaultyRegistry, Request
from e2e.harness.layered import layered
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import Registry
from e2e.harness.waiting import until
from hostlib import errors
from images.tests.build import Entry, image, sha, tar

# bcrypt of "s3cret-Word": the only form that docker-registry takes.
HTPASSWD = "user:$2b$05$abcdefghijklmnopqrstuuxwmP4QpMhOYPojw/dWE6DJ9CnGV0H32"
SECRET = "s3cret-Word"

DOCKER = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
INDEX = "application/vnd.oci.image.index.v1+json"
EMPTY_TAR = bytes(1024)
LAYER = tar(Entry("etc/faulty", b"x" * 200_000))


@pytest.fixture(scope="module")
def second(workspace: Path) -> Iterator[CraneRegistry]:
    with CraneRegistry(workspace / "crane", host="crane.test") as running:
        yield running


@pytest.fixture(params=["docker-registry", "crane"])
def served(
    request: pytest.FixtureRequest, registry: Registry, second: CraneRegistry, puller: Daemon
) -> Registry:
    """A registry of either make, known to `puller`."""
    second.write_hosts(puller.folder / "hosts")
    return registry if request.param == "docker-registry" else second


def pull(daemon: Daemon, reference: str, **auth: str) -> v1_pb2.Image:
    request = v1_pb2.PullImageRequest(
        image=v1_pb2.ImageSpec(image=reference), auth=v1_pb2.AuthConfig(**auth)
    )
    daemon.client.image("PullImage", request, v1_pb2.PullImageResponse, 120)
    found = daemon.client.image_status(reference)
    assert found is not None
    return found


def put(registry: Registry, repository: str, tag: str, data: bytes, media_type: str) -> None:
    """Push a manifest."""
    done = httpx.put(
        f"{registry.url}/v2/{repository}/manifests/{tag}",
        content=data, headers={"content-type": media_type}, trust_env=False,
    )  # fmt: skip
    assert done.status_code == 201, done.text


def of(
    base: oci.Image,
    layers: list[tuple[str, bytes, bytes]],
    manifest: str = oci.MANIFEST,
    kind: str = oci.CONFIG,
    **more: Any,
) -> oci.Image:
    """`base` with layers on top (media type, blob, uncompressed tar), with manifest and
    configuration of these types, and `more` in the configuration."""
    document = json.loads(base.config.data) | more
    document["rootfs"]["diff_ids"] += [sha(plain) for _, _, plain in layers]
    blobs = (*base.layers, *(oci.Blob(kind, blob) for kind, blob, _ in layers))
    if manifest == DOCKER:
        zipped = "application/vnd.docker.image.rootfs.diff.tar.gzip"
        blobs = tuple(
            replace(each, media_type=zipped) if each.media_type == oci.LAYER_GZIP else each
            for each in blobs
        )
    head = oci.Blob(kind, json.dumps(document).encode())
    body = {
        "schemaVersion": 2, "mediaType": manifest, "config": head.descriptor,
        "layers": [each.descriptor for each in blobs],
    }  # fmt: skip
    return oci.Image(oci.Blob(manifest, json.dumps(body).encode()), head, blobs)


def chunked(plain: bytes) -> bytes:
    """A layer in the form zstd:chunked: one frame for each piece, so that pieces can be fetched
    alone, then a table of contents in skippable frames, which a plain reader passes over."""
    pieces = [plain[n : n + 5000] for n in range(0, len(plain), 5000)]
    table = zstandard.compress(b'{"version":1,"entries":[]}')
    footer = b"\0" * 56 + b"GNUlInUx"

    def skippable(data: bytes) -> bytes:
        return b"\x50\x2a\x4d\x18" + len(data).to_bytes(4, "little") + data

    return b"".join(map(zstandard.compress, pieces)) + skippable(table) + skippable(footer)


def test_every_form_of_layer_runs(
    puller: Daemon, served: Registry, built: dict[str, oci.Image]
) -> None:
    """gzip, zstd, zstd:chunked, uncompressed, empty ones, in OCI's and in Docker's form."""
    base = built["demo/shell"]
    tars = {name: tar(Entry(f"forms/{name}", name.encode() * 3000)) for name in "abcd"}
    oci_layer = "application/vnd.oci.image.layer.v1.tar"
    forms = [
        (oci.LAYER_GZIP, gzip.compress(tars["a"], mtime=0), tars["a"]),
        (oci.LAYER_GZIP, gzip.compress(EMPTY_TAR, mtime=0), EMPTY_TAR),
        (oci.LAYER_ZSTD, zstandard.compress(tars["b"]), tars["b"]),
        (oci.LAYER_ZSTD, chunked(tars["c"]), tars["c"]),
        (oci_layer, tars["d"], tars["d"]),
        (oci_layer, EMPTY_TAR, EMPTY_TAR),
    ]
    docker_layer = "application/vnd.docker.image.rootfs.diff.tar"
    docker = [
        (f"{docker_layer}.gzip", gzip.compress(tars["a"], mtime=0), tars["a"]),
        (f"{docker_layer}.gzip", gzip.compress(EMPTY_TAR, mtime=0), EMPTY_TAR),
        (docker_layer, tars["d"], tars["d"]),
    ]
    first = served.push(of(base, forms), "e2e/forms", "oci")
    config = "application/vnd.docker.container.image.v1+json"
    other = served.push(of(base, docker, DOCKER, config), "e2e/forms", "docker")
    pod = Pod.run(puller)
    for ref, names in ((first, "abcd"), (other, "ad")):
        pull(puller, ref)
        container = pod.start(ref, SLEEP, name=ref.rpartition(":")[2])
        listed = container.sh("cd /forms; for f in *; do echo $f $(wc -c < $f); done")
        assert listed.split("\n") == [f"{name} 3000" for name in names]
    # Layers, and what they are made of, are shared by digest: the second image brought little.
    pod.remove()


def test_an_index_gives_what_this_machine_can_run(
    puller: Daemon, served: Registry, built: dict[str, oci.Image]
) -> None:
    """Variants that need a newer CPU, other systems and attestations are passed over."""
    base = built["demo/shell"]

    def entry(name: str, **platform: str) -> dict[str, Any]:
        layer = oci.Layer().file("etc/which", name)
        made = layered(base, [layer])
        served.push(made, "e2e/index", name)
        return made.manifest.descriptor | ({"platform": platform} if platform else {})

    attestation = entry("attestation", os="linux", architecture="amd64") | {
        "annotations": {"vnd.docker.reference.type": "attestation-manifest"}
    }
    unknown = entry("unknown", os="unknown", architecture="unknown")
    v3 = entry("v3", os="linux", architecture="amd64", variant="v3")
    arm = entry("arm", os="linux", architecture="arm64", variant="v8")
    windows = entry("windows", os="windows", architecture="amd64")
    mine = entry("mine", os="linux", architecture="amd64")
    v1 = entry("v1", os="linux", architecture="amd64", variant="v1")
    bare = entry("bare")

    def index(tag: str, *entries: dict[str, Any], kind: str = INDEX) -> str:
        body = {"schemaVersion": 2, "mediaType": kind, "manifests": entries}
        put(served, "e2e/index", tag, json.dumps(body).encode(), kind)
        return f"{served.host}/e2e/index:{tag}"

    def which(ref: str) -> str:
        found = pull(puller, ref)
        assert len(found.repo_digests) >= 1
        for name in ("mine", "v1", "bare"):
            config = layered(base, [oci.Layer().file("etc/which", name)]).config.data
            if found.id == oci.digest(config):
                return name
        raise AssertionError(found)

    others = (attestation, unknown, v3, windows, arm)
    assert which(index("best", *others, v1, mine)) == "mine"
    assert which(index("docker", *others, mine, kind=DOCKER_LIST)) == "mine"
    assert which(index("v1", *others, v1)) == "v1"
    assert which(index("bare", *others, bare)) == "bare"
    with pytest.raises(errors.NotFound, match="linux/amd64") as caught:
        pull(puller, index("none", *others))
    assert "amd64/v3" in str(caught.value.hint) and "unknown" not in str(caught.value.hint)


def test_what_is_refused(
    puller: Daemon, second: CraneRegistry, built: dict[str, oci.Image]
) -> None:
    second.write_hosts(puller.folder / "hosts")
    base = built["demo/shell"]
    blob = gzip.compress(LAYER, mtime=0)
    for foreign in (
        "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    ):
        ref = second.push(of(base, [(foreign, blob, LAYER)]), "e2e/foreign")
        with pytest.raises(errors.Unimplemented, match=r"foreign \(non-distributable\)") as caught:
            pull(puller, ref)
        assert caught.value.hint
    encrypted = "application/vnd.oci.image.layer.v1.tar+gzip+encrypted"
    ref = second.push(of(base, [(encrypted, blob, LAYER)]), "e2e/encrypted")
    with pytest.raises(errors.InvalidArgument, match="no file system layer"):
        pull(puller, ref)
    old = "application/vnd.docker.distribution.manifest.v1+prettyjws"
    body = json.dumps({"schemaVersion": 1, "name": "a", "fsLayers": [{"blobSum": sha(b"")}]})
    put(second, "e2e/old", "latest", body.encode(), old)
    with pytest.raises(errors.Unimplemented, match="schema 1"):
        pull(puller, f"{second.host}/e2e/old")
    chart = of(base, [], kind="application/vnd.cncf.helm.config.v1+json")
    with pytest.raises(errors.InvalidArgument, match="no container image"):
        pull(puller, second.push(chart, "e2e/chart"))
    assert puller.client.images() == []


def test_the_largest_configuration(
    puller: Daemon, second: CraneRegistry, built: dict[str, oci.Image]
) -> None:
    second.write_hosts(puller.folder / "hosts")
    base = built["demo/shell"]
    limit = 8 * 1024 * 1024
    empty = len(of(base, [], filler="").config.data)
    largest = of(base, [], filler="x" * (limit - empty))
    assert len(largest.config.data) == limit
    ref = second.push(largest, "e2e/config", "largest")
    pull(puller, ref)
    pod = Pod.run(puller)
    assert pod.start(ref, SLEEP).sh("echo runs") == "runs"
    pod.remove()
    over = of(base, [], filler="x" * (limit - empty + 1))
    with pytest.raises(errors.ResourceExhausted, match="configuration has 8388609 bytes"):
        pull(puller, second.push(over, "e2e/config", "over"))


# --- TLS and credentials


@pytest.fixture(scope="module")
def secure(workspace: Path, built: dict[str, oci.Image]) -> Iterator[tuple[Registry, Authority]]:
    """docker-registry with htpasswd, behind TLS that asks for a client's certificate."""
    folder = workspace / "secure"
    authority = Authority(folder / "tls")
    certificate, key = authority.issue("server")
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    settings = {
        "http": {
            "tls": {
                "certificate": str(certificate),
                "key": str(key),
                "clientcas": [str(authority.certificate)],
            }
        },
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
    }
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(*authority.issue("client"))
    client = {"verify": context, "auth": ("user", SECRET)}
    with Registry(
        folder, settings=settings, scheme="https", client=client, host="secure.test"
    ) as running:
        running.push(built["demo/shell"], "e2e/private")
        yield running, authority


@pytest.fixture
def hosts(puller: Daemon) -> Iterator[Callable[[str, str], None]]:
    """Writes the hosts.toml of a name."""
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        place = puller.folder / "hosts" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "hosts.toml").write_text(text)
        written.append(place / "hosts.toml")

    yield write
    for path in written:
        path.unlink(missing_ok=True)


def test_tls_and_every_form_of_credentials(
    puller: Daemon, secure: tuple[Registry, Authority], hosts: Callable[[str, str], None]
) -> None:
    registry, authority = secure
    tls = authority.path("").parent / "tls"
    ref = "secure.test/e2e/private:latest"
    good = {"username": "user", "password": SECRET}
    server = f'server = "{registry.url}"\n'
    ca = f'ca = "{tls}/ca.pem"\n'
    client = f'client = [["{tls}/client.pem", "{tls}/client.key"]]\n'
    for text, says in (
        (server + client, "certificate"),
        (server + ca, "(?i)ended the TLS connection.*certificate"),
        (server + client + "skip_verify = false\n", "certificate"),
    ):
        hosts("secure.test", text)
        with pytest.raises(errors.Unavailable, match=says):
            pull(puller, ref, **good)
    hosts("secure.test", server + ca + 'client = "/nowhere.pem"\n')
    with pytest.raises(errors.InvalidArgument, match="TLS files of registry host"):
        pull(puller, ref, **good)
    hosts("secure.test", server + client + "skip_verify = true\n")
    puller.client.remove_image(pull(puller, ref, **good).id)

    hosts("secure.test", server + ca + client)
    encoded = base64.b64encode(f"user:{SECRET}".encode()).decode()
    for auth in (
        good,
        {"auth": encoded},
        {"auth": encoded, "server_address": "secure.test"},
        {**good, "server_address": "https://secure.test/v1/"},
        {**good, "server_address": registry.url},
    ):
        puller.client.remove_image(pull(puller, ref, **auth).id)
    for auth, says in (
        ({}, "wants credentials"),
        ({**good, "password": "wrong"}, "refused access"),
        ({**good, "server_address": "other.test"}, "wants credentials; .* for other.test"),
        # This registry knows no tokens.
        ({"identity_token": SECRET}, "wants credentials|refused access"),
        ({"registry_token": SECRET}, "refused access"),
    ):
        with pytest.raises(errors.Unauthenticated, match=says) as caught:
            pull(puller, ref, **auth)
        assert caught.value.hint and SECRET not in str(caught.value)
    for auth in (
        {"auth": "!"},
        {"auth": base64.b64encode(b"no colon").decode()},
        {**good, "username": "a:b"},
        {**good, "server_address": "http://[bad"},
        {"registry_token": "two\nlines"},
    ):
        with pytest.raises(errors.InvalidArgument, match="credentials"):
            pull(puller, ref, **auth)
    log = puller.log_text()
    assert SECRET not in log and encoded not in log


def test_thaw_pull_uses_dockers_credentials(
    puller: Daemon, secure: tuple[Registry, Authority], hosts: Callable[[str, str], None],
    tmp_path: Path,
) -> None:  # fmt: skip
    registry, authority = secure
    tls = authority.path("").parent / "tls"
    hosts(
        "secure.test",
        f'server = "{registry.url}"\nca = "{tls}/ca.pem"\n'
        f'client = [["{tls}/client.pem", "{tls}/client.key"]]\n',
    )
    ref = "secure.test/e2e/private:latest"
    asked = tmp_path / "asked"
    helper = tmp_path / "bin/docker-credential-test"
    helper.parent.mkdir()
    answer = json.dumps({"ServerURL": "secure.test", "Username": "user", "Secret": SECRET})
    path = f"{helper.parent}:/usr/bin:/bin"

    def script(text: str) -> None:
        helper.write_text(f'#!/bin/sh\necho "$1 $(cat)" >> {asked}\n{text}\n')
        helper.chmod(0o755)

    def run(config: object) -> Any:
        data = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(data)
        environment = {"DOCKER_CONFIG": str(tmp_path), "PATH": path}
        return thaw(puller, "pull", "--refresh", ref, environment=environment)

    encoded = base64.b64encode(f"user:{SECRET}".encode()).decode()
    script(f"echo {shlex.quote(answer)}")
    good: list[dict[str, Any]] = [
        {"auths": {"secure.test": {"auth": encoded}}},
        {"auths": {"https://secure.test/v2/": {"username": "user", "password": SECRET}}},
        {"auths": {"secure.test": {"auth": "bm86"}, "secure.test/e2e": {"auth": encoded}}},
        {"credHelpers": {"secure.test": "test"}, "auths": {"secure.test": {}}},
        {"credsStore": "test"},
    ]
    for config in good:
        done = run(config)
        assert done.returncode == 0, (config, done.stderr)
        puller.client.remove_image(done.stdout.strip())
    assert asked.read_text() == "get secure.test\n" * 2

    # A store that has none leaves it to auths.
    script("echo credentials not found in native keychain; exit 1")
    assert run({"credsStore": "test", **good[0]}).returncode == 0
    puller.client.remove_image(ref)
    shown = []
    bad: list[tuple[Any, str]] = [
        ({}, "wants credentials"),
        ({"auths": {"other.test": {"auth": encoded}}}, "wants credentials"),
        ({"credsStore": "test"}, "wants credentials"),
        (
            {"credHelpers": {"secure.test": "none-such"}},
            "none-such cannot be run",
        ),
        ({"credHelpers": {"secure.test": "../x"}}, "bad name"),
        ({"auths": {"secure.test": {"auth": SECRET}}}, "is no base64"),
        ('{"auths": ' + SECRET, "is no JSON object"),
        ({"auths": [SECRET]}, "auths is no object"),
    ]
    for each, says in bad:
        done = run(each)
        assert done.returncode == 1
        assert says in done.stderr, (each, done.stderr)
        shown.append(done.stderr)
    script(f"echo {SECRET}; echo {SECRET} >&2; exit 3")
    failing = run({"credsStore": "test"})
    assert "failed with 3" in failing.stderr
    script(f"echo {SECRET}")
    silent = run({"credsStore": "test"})
    assert "answered no credentials" in silent.stderr
    said = "".join([*shown, failing.stderr, silent.stderr, puller.log_text()])
    assert SECRET not in said and encoded not in said


# --- mirrors


@pytest.fixture
def mirrors() -> Iterator[tuple[FaultyRegistry, FaultyRegistry]]:
    with FaultyRegistry() as first, FaultyRegistry() as other:
        yield first, other


def test_mirrors_are_asked_in_their_order_for_what_they_may(
    puller: Daemon, registry: Registry, mirrors: tuple[FaultyRegistry, FaultyRegistry],
    hosts: Callable[[str, str], None],
) -> None:  # fmt: skip
    """One that is down, one that only resolves, one under a path of its own that has only blobs,
    then the registry."""
    resolver, store = mirrors
    made = image(LAYER, tar(Entry("second")))
    moved = image(tar(Entry("moved")))
    resolver.registry.add(made, "1")
    store.registry.add(moved, "1")
    store.registry.blobs |= made.blobs

    def mirror(url: str, *lines: str) -> str:
        return "\n".join([f'[host."{url}"]', *lines, ""])

    header = f'[host."http://{store.registry.host}/cache/x".header]\nX-Team = ["a", "b"]\n'
    hosts(
        "mirrored.test",
        f'server = "{registry.url}"\n'
        + mirror("http://127.0.0.1:1", 'dial_timeout = "500ms"')
        + mirror(f"http://{resolver.registry.host}", 'capabilities = ["resolve"]')
        + mirror(
            f"http://{store.registry.host}/cache/x",
            'capabilities = ["pull"]',
            "override_path = true",
        )
        + header,
    )
    found = pull(puller, "mirrored.test/team/app:1", username="u", password="p")
    assert found.id == made.config_digest
    assert list(found.repo_tags) == ["mirrored.test/team/app:1"]
    assert [r.path for r in resolver.registry.requests] == [
        "/v2/team/app/manifests/1?ns=mirrored.test"
    ]
    paths = sorted(r.path for r in store.registry.requests)
    assert paths == sorted(
        f"/cache/x/team/app/blobs/{digest}?ns=mirrored.test" for digest in made.blobs
    )
    # Its headers, and nobody's credentials.
    for request in (*resolver.registry.requests, *store.registry.requests):
        assert "authorization" not in request.headers
    assert all(r.headers.get("x-team") == "b" for r in store.registry.requests)
    # All of them without it: what the registry has.
    for each in mirrors:
        each.reset()
    with pytest.raises(errors.NotFound, match="has no manifest 2"):
        pull(puller, "mirrored.test/team/app:2")
    assert "is passed over for mirrored.test" in puller.log_text()


def test_redirects_and_their_credentials(
    puller: Daemon, mirrors: tuple[FaultyRegistry, FaultyRegistry],
    hosts: Callable[[str, str], None],
) -> None:  # fmt: skip
    """A registry that keeps its blobs elsewhere: neither credentials nor headers go there."""
    front, storage = mirrors
    made = front.registry.add(image(LAYER))
    storage.registry.add(made)
    good = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()

    def behave(request: Request) -> Answer | None:
        if request.headers.get("authorization") != good:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if "/blobs/" in request.path:
            target = f"http://{storage.registry.host}{request.path}"
            return Answer(307, headers={"Location": target})
        return None

    front.registry.behave = behave
    hosts(
        "front.test",
        f'server = "http://{front.registry.host}"\n[header]\nX-Key = "{SECRET}"\n',
    )
    found = pull(puller, "front.test/team/app", username="user", password=SECRET)
    assert found.id == made.config_digest
    assert front.registry.requests and len(storage.registry.requests) == 2
    assert all(r.headers.get("x-key") == SECRET for r in front.registry.requests)
    for request in storage.registry.requests:
        assert not {"authorization", "x-key", "cookie"} & set(request.headers)


# --- what Images says of what came


def usage(daemon: Daemon) -> tuple[int, int]:
    """Bytes of the image and of the container filesystem."""
    found = daemon.client.image(
        "ImageFsInfo", v1_pb2.ImageFsInfoRequest(), v1_pb2.ImageFsInfoResponse
    )
    (images,), (containers,) = found.image_filesystems, found.container_filesystems
    assert Path(images.fs_id.mountpoint).is_dir() and images.inodes_used.value > 0
    return images.used_bytes.value, containers.used_bytes.value


def test_removal_by_any_name_removes_every_name(
    puller: Daemon, registry: Registry, built: dict[str, oci.Image]
) -> None:
    made = layered(built["demo/shell"], [oci.Layer().file("etc/names", "n")])
    refs = [registry.push(made, f"e2e/{name}", tag) for name in ("n", "m") for tag in ("1", "2")]
    image_id = oci.digest(made.config.data)
    empty = usage(puller)[0]
    names = [
        refs[0], refs[3], f"registry.test/e2e/m@{made.digest}", image_id, image_id[7:],
        image_id[7:20], f"registry.test/e2e/n:whatever@{made.digest}",
    ]  # fmt: skip
    for name in names:
        for ref in refs:
            pull(puller, ref)
        (found,) = puller.client.images()
        assert sorted(found.repo_tags) == sorted(refs)
        assert len(found.repo_digests) == 2
        assert usage(puller)[0] >= empty + found.size > empty
        puller.client.remove_image(name)
        assert puller.client.images() == [], name
        assert usage(puller)[0] == empty
        puller.client.remove_image(name)
    with pytest.raises(errors.InvalidArgument):
        puller.client.remove_image("Bad//Name")


def test_one_id_in_every_answer(
    puller: Daemon, registry: Registry, built: dict[str, oci.Image]
) -> None:
    config = json.loads(built["demo/shell"].config.data)["config"]
    made = of(built["demo/shell"], [], config={**config, "User": "1234:5"})
    ref = registry.push(made, "e2e/pinned")
    wanted = oci.digest(made.config.data)
    assert puller.client.pull_image(ref) == wanted
    assert thaw(puller, "pull", ref).stdout.strip() == wanted
    for handler, known in (("thaw", True), ("runc", False)):
        spec = v1_pb2.ImageSpec(image=ref, runtime_handler=handler)
        request = v1_pb2.PullImageRequest(image=spec)
        if known:
            puller.client.image("PullImage", request, v1_pb2.PullImageResponse)
        else:
            with pytest.raises(errors.NotFound, match="no runtime for handler 'runc'"):
                puller.client.image("PullImage", request, v1_pb2.PullImageResponse)
    (listed,) = puller.client.images()
    status = puller.client.image_status(ref)
    assert listed == status
    assert (listed.id, listed.spec.image, listed.pinned) == (wanted, wanted, True)
    assert (listed.uid.value, listed.username) == (1234, "")
    pod = Pod.run(puller)
    before = usage(puller)
    made_of = [ref, wanted, wanted[7:19], f"registry.test/e2e/pinned@{made.digest}"]
    containers = [pod.start(name, SLEEP, name=f"c{n}") for n, name in enumerate(made_of)]
    for container, name in zip(containers, made_of, strict=True):
        found = container.status()
        assert (found.image_ref, found.image_id) == (wanted, wanted)
        assert found.image.image == name
    assert {(c.image_ref, c.image_id) for c in puller.client.containers()} == {(wanted, wanted)}
    # What containers write is theirs, and goes with them.
    containers[0].sh("dd if=/dev/urandom of=/tmp/big bs=1M count=20 2>/dev/null && sync", 120)
    until("it is counted", lambda: usage(puller)[1] >= before[1] + 20 * 1024 * 1024)
    assert usage(puller)[0] == before[0]
    # A pinned image goes when it is told to; its containers keep their files.
    puller.client.remove_image(ref)
    assert puller.client.images() == []
    assert containers[1].sh("echo runs") == "runs"
    assert usage(puller)[0] >= listed.size
    pod.remove()
    until(
        "both filesystems shrink",
        lambda: usage(puller)[1] < before[1] and usage(puller)[0] < before[0],
    )


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [
        ("", None, ""), ("0", 0, ""), ("web", None, "web"), ("web:staff", None, "web"),
        ("7:staff", 7, ""), ("4294967294", 4294967294, ""), ("²", None, "²"), ("٣", None, "٣"),
        ("99999999999999999999999", None, "99999999999999999999999"), ("-1", None, "-1"),
    ],
)  # fmt: skip
def test_whom_an_image_runs_as(
    puller: Daemon, second: CraneRegistry, user: str, uid: int | None, name: str
) -> None:
    """An image may claim anything; no list of images fails for it."""
    second.write_hosts(puller.folder / "hosts")
    made = image(LAYER, config={"User": user})
    blobs = [oci.Blob("", data) for data in made.blobs.values()]
    config = next(each for each in blobs if oci.digest(each.data) == made.config_digest)
    layers = tuple(each for each in blobs if each is not config)
    ref = second.push(
        oci.Image(oci.Blob(made.media_type, made.manifest), config, layers), "e2e/users"
    )
    pull(puller, ref)
    (found,) = puller.client.images()
    assert (found.uid.value if found.HasField("uid") else None, found.username) == (uid, name)


def test_a_second_registry_with_its_own_tool(
    puller: Daemon, second: CraneRegistry, registry: Registry
) -> None:
    """What crane copies from registry to registry is the same image, and runs."""
    second.write_hosts(puller.folder / "hosts")
    source = registry.url.removeprefix("http://") + "/demo/shell:latest"
    target = second.url.removeprefix("http://") + "/team/deep/shell:v1"
    crane("copy", source, target)
    assert crane("digest", target) == crane("digest", source)
    found = pull(puller, "crane.test/team/deep/shell:v1")
    assert found.id == pull(puller, SHELL).id
    assert list(found.repo_digests) == [f"crane.test/team/deep/shell@{crane('digest', target)}"]
    pod = Pod.run(puller)
    assert pod.start("crane.test/team/deep/shell:v1", SLEEP).sh("echo runs") == "runs"
    pod.remove()
