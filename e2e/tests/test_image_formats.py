"""Every form that images have, from registries of two makes."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pytest
import zstandard

from demo import oci
from e2e.harness.crane import CraneRegistry
from e2e.harness.daemon import Daemon
from e2e.harness.layered import layered
from e2e.harness.pods import Pod
from e2e.harness.pushed import DOCKER, of, pull, put
from e2e.harness.refs import SLEEP
from e2e.harness.registry import Registry
from hostlib import errors
from images.tests.build import Entry, sha, tar

DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"


INDEX = "application/vnd.oci.image.index.v1+json"


EMPTY_TAR = bytes(1024)


LAYER = tar(Entry("etc/faulty", b"x" * 200_000))


@pytest.fixture(params=["docker-registry", "crane"])
def served(
    request: pytest.FixtureRequest, registry: Registry, second: CraneRegistry, puller: Daemon
) -> Registry:
    """A registry of either make, known to `puller`."""
    second.write_hosts(puller.folder / "hosts")
    return registry if request.param == "docker-registry" else second


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


def test_formats_that_are_refused(
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
