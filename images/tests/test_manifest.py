from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hostlib import errors
from images import manifest
from images.model import Limits
from images.tests.build import OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST, sha


def entry(name: str, **platform: Any) -> dict[str, Any]:
    made: dict[str, Any] = {"mediaType": OCI_MANIFEST, "digest": sha(name.encode()), "size": 1}
    return made | ({"platform": platform} if platform else {})


def chosen(arch: str, *entries: Any) -> str:
    return manifest.choose({"manifests": list(entries)}, arch).digest


PLAIN = entry("plain", os="linux", architecture="arm64")
V7, V8, V9 = (
    entry(variant, os="linux", architecture="arm64", variant=variant)
    for variant in ("v7", "v8", "v9")
)


def test_variants() -> None:
    assert chosen("arm64", V9, V7, V8) == sha(b"v8")
    assert chosen("arm64", V9, V8, PLAIN) == sha(b"plain")
    with pytest.raises(errors.NotFound) as caught:
        chosen("arm64", V9, V7)
    assert caught.value.hint == "it exists for linux/arm64/v7, linux/arm64/v9"
    with pytest.raises(errors.NotFound):
        chosen("s390x", PLAIN)


def test_entries_without_a_platform() -> None:
    bare, other = entry("bare"), entry("other")
    assert chosen("arm64", V9, bare) == sha(b"bare")
    assert chosen("arm64", bare, PLAIN) == sha(b"plain")
    with pytest.raises(errors.NotFound, match="linux/arm64"):
        chosen("arm64", bare, other)


def test_attestations_are_no_images() -> None:
    about = {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    for each in (PLAIN | about, entry("x", os="unknown", architecture="unknown")):
        with pytest.raises(errors.NotFound) as caught:
            chosen("arm64", each)
        assert caught.value.hint == "it exists for no platform"


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-1, 3), st.sampled_from(
        ["", "linux", "amd64", "v1", OCI_MANIFEST, OCI_INDEX, OCI_CONFIG, sha(b"")])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["mediaType", "digest", "size", "platform", "os", "architecture", "variant", "annotations",
         "manifests", "layers", "config", "schemaVersion"]), inner, max_size=5),
    max_leaves=20,
)  # fmt: skip


@given(st.lists(JSON, max_size=4))
def test_odd_indexes_are_refused(entries: list[Any]) -> None:
    with contextlib.suppress(errors.ThawError):
        manifest.choose({"manifests": entries}, "amd64")


@given(st.dictionaries(st.sampled_from(["config", "layers", "mediaType"]), JSON), JSON)
def test_odd_manifests_are_refused(body: dict[str, Any], kind: Any) -> None:
    with contextlib.suppress(errors.ThawError):
        found = manifest.media_type(body, str(kind))
        if found in manifest.MANIFESTS:
            manifest.manifest(body, Limits())


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", errors.Unimplemented),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar", errors.Unimplemented),
        ("application/vnd.oci.image.layer.nondistributable.v1.tar+zstd", errors.Unimplemented),
        (f"{OCI_LAYER}+gzip+encrypted", errors.InvalidArgument),
        ("application/octet-stream", errors.InvalidArgument),
    ],
)
def test_layers_that_are_none_are_refused_before_they_come(
    kind: str, error: type[errors.ThawError]
) -> None:
    body = {
        "config": {"mediaType": OCI_CONFIG, "digest": sha(b""), "size": 1},
        "layers": [{"mediaType": kind, "digest": sha(b""), "size": 1}],
    }
    with pytest.raises(error):
        manifest.manifest(body, Limits())
