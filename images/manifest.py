"""Manifests and indexes, OCI and docker schema 2, parsed strictly: a registry is not trusted."""

from __future__ import annotations

import json
import platform
import re
from dataclasses import dataclass
from typing import Any, Final

from hostlib.errors import DataLoss, InvalidArgument, NotFound, ResourceExhausted, Unimplemented
from images import decompress
from images.model import ImageConfig, Limits
from images.reference import is_digest

MANIFESTS: Final = frozenset(
    (
        "application/vnd.oci.image.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v2+json",
    )
)
INDEXES: Final = frozenset(
    (
        "application/vnd.oci.image.index.v1+json",
        "application/vnd.docker.distribution.manifest.list.v2+json",
    )
)
_KNOWN: Final = (*MANIFESTS, *INDEXES)
"""Compared with by equality: what a registry sends need not be hashable."""

ACCEPT: Final = ", ".join(sorted(MANIFESTS | INDEXES))
_CONFIGS: Final = frozenset(
    (
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
    )
)
_FOREIGN: Final = re.compile(r"\.foreign\.|\.nondistributable\.")
_ATTESTATION: Final = "vnd.docker.reference.type"
"""The annotation by which BuildKit marks entries that are about another one's image."""

_VARIANTS: Final[dict[str, tuple[str, ...]]] = {
    "amd64": ("", "v1"),
    "arm64": ("", "v8"),
}
"""What runs on every machine of an architecture, best first. Others (amd64/v3, arm64/v9) need
instructions that the guest's CPU may not have."""

_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "arm64": "arm64"}

MAX_SIZE: Final = 2**63 - 1
"""Sizes are 64-bit integers (OCI image specification, "Descriptor")."""

_BROKEN: Final = "the image is broken: build or push it again"


def architecture() -> str:
    """This machine's architecture, by Go's name for it."""
    machine = platform.machine()
    return _ARCHITECTURES.get(machine, machine)


@dataclass(frozen=True)
class Descriptor:
    """A reference to content; ``size`` is in bytes."""

    media_type: str
    digest: str
    size: int


@dataclass(frozen=True)
class Manifest:
    """An image manifest."""

    config: Descriptor
    layers: tuple[Descriptor, ...]


def load(data: bytes, what: str) -> dict[str, Any]:
    """The JSON object in `data`. Raises `DataLoss`."""
    try:
        body = json.loads(data)
        # Escapes can name half a character (\\ud800), which no other part could pass on.
        json.dumps(body, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise DataLoss(f"{what} is no JSON", hint=_BROKEN) from error
    if not isinstance(body, dict):
        raise DataLoss(f"{what} is no JSON object", hint=_BROKEN)
    return body


def _descriptor(body: object, what: str) -> Descriptor:
    if not isinstance(body, dict):
        raise DataLoss(f"{what} is no descriptor", hint=_BROKEN)
    media_type, digest, size = (body.get(key) for key in ("mediaType", "digest", "size"))
    if not isinstance(digest, str) or not is_digest(digest):
        raise DataLoss(f"{what} has no sha256 digest", hint=_BROKEN)
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
        raise DataLoss(f"{what} has no size", hint=_BROKEN)
    if not isinstance(media_type, str):
        raise DataLoss(f"{what} has no media type", hint=_BROKEN)
    return Descriptor(media_type[:255], digest, size)


def media_type(body: dict[str, Any], content_type: str) -> str:
    """The manifest's type. Raises `DataLoss` when header, field and shape do not agree."""
    sent = content_type.partition(";")[0].strip().lower()
    inner = body.get("mediaType")
    if inner is not None and not isinstance(inner, str):
        raise DataLoss("the manifest has a bad media type", hint=_BROKEN)
    if body.get("schemaVersion") == 1 or "docker.distribution.manifest.v1+" in sent:
        raise Unimplemented(
            "the image has a manifest of docker schema 1, which is obsolete",
            hint="push it again with a tool of this decade",
        )
    known = MANIFESTS | INDEXES
    if inner is not None and sent in known and inner != sent:
        raise DataLoss(
            f"the registry says the manifest is {sent}, the manifest says {str(inner)[:200]!r}",
            hint=_BROKEN,
        )
    found = inner if inner is not None else sent
    if found not in known:
        raise InvalidArgument(
            f"{str(found)[:200]!r} is no image manifest", hint="name a container image"
        )
    assert isinstance(found, str)
    shape = "manifests" if found in INDEXES else "layers"
    other = "layers" if found in INDEXES else "manifests"
    if not isinstance(body.get(shape), list) or other in body:
        raise DataLoss(f"the manifest says it is {found} and does not look it", hint=_BROKEN)
    return found


def manifest(body: dict[str, Any], limits: Limits) -> Manifest:
    """An image manifest's descriptors. Raises `DataLoss`, `ResourceExhausted`,
    `InvalidArgument` for artifacts that are no images."""
    config = _descriptor(body.get("config"), "the manifest's config")
    if config.media_type not in _CONFIGS:
        raise InvalidArgument(
            f"the manifest's config is {config.media_type!r}: this is no container image"
        )
    if config.size > limits.config_bytes:
        raise ResourceExhausted(
            f"the image's configuration has {config.size} bytes, over {limits.config_bytes}"
        )
    layers = body["layers"]
    if len(layers) > limits.layers:
        raise ResourceExhausted(
            f"the image has {len(layers)} layers, over {limits.layers}",
            hint="raise images.max_layers, or squash the image",
        )
    if not layers:
        raise InvalidArgument("the image has no layers")
    found = tuple(_descriptor(item, f"layer {n}") for n, item in enumerate(layers, 1))
    for number, layer in enumerate(found, 1):
        if _FOREIGN.search(layer.media_type):
            raise Unimplemented(
                f"layer {number} of the image is foreign (non-distributable): its content is not "
                "where the image is",
                hint="push the image again with its non-distributable layers as ordinary ones",
            )
        decompress.expected(layer.media_type)
    return Manifest(config, found)


def choose(body: dict[str, Any], arch: str) -> Descriptor:
    """The manifest for linux and `arch` in an index: the first of the best variant. Raises
    `NotFound`.

    An entry that names no platform is taken where no other fits, if it is the only such: its
    configuration is judged when it comes. Attestations are passed over.
    """
    variants = _VARIANTS.get(arch, ("",))
    offered: set[str] = set()
    best: tuple[int, int] | None = None
    bare: list[int] = []
    for position, item in enumerate(body["manifests"]):
        if not isinstance(item, dict) or item.get("mediaType") not in _KNOWN:
            continue
        notes = item.get("annotations")
        if isinstance(notes, dict) and _ATTESTATION in notes:
            continue
        found = item.get("platform")
        if not isinstance(found, dict):
            bare.append(position)
            continue
        variant = found.get("variant") or ""
        name = f"{found.get('os')}/{found.get('architecture')}"
        if name == f"linux/{arch}" and variant in variants:
            rank = (variants.index(variant), position)
            best = rank if best is None or rank < best else best
        elif name != "unknown/unknown":
            offered.add((f"{name}/{variant}" if variant else name)[:64])
    if best is None and len(bare) == 1:
        best = (0, bare[0])
    if best is not None:
        return _descriptor(body["manifests"][best[1]], f"entry {best[1] + 1} of the index")
    raise NotFound(
        f"the image does not exist for linux/{arch}",
        hint=f"it exists for {', '.join(sorted(offered)[:10]) or 'no platform'}",
    )


def _strings(body: dict[str, Any], key: str) -> tuple[str, ...]:
    value = body.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise DataLoss(f"the image's configuration has a bad {key}", hint=_BROKEN)
    return tuple(value)


def _string(body: dict[str, Any], key: str) -> str:
    value = body.get(key) or ""
    if not isinstance(value, str):
        raise DataLoss(f"the image's configuration has a bad {key}", hint=_BROKEN)
    return value


def _table(body: dict[str, Any], key: str) -> dict[str, Any]:
    value = body.get(key) or {}
    if not isinstance(value, dict):
        raise DataLoss(f"the image's configuration has a bad {key}", hint=_BROKEN)
    return value


def image_config(data: bytes) -> tuple[ImageConfig, tuple[str, ...]]:
    """The configuration and the layers' diff ids, lowest first. Raises `DataLoss`."""
    body = load(data, "the image's configuration")
    inner = _table(body, "config")
    diff_ids = _strings(_table(body, "rootfs"), "diff_ids")
    if not all(is_digest(item) for item in diff_ids):
        raise DataLoss("the image's configuration has a bad diff id", hint=_BROKEN)
    config = ImageConfig(
        user=_string(inner, "User"),
        env=_strings(inner, "Env"),
        entrypoint=_strings(inner, "Entrypoint"),
        cmd=_strings(inner, "Cmd"),
        working_dir=_string(inner, "WorkingDir"),
        stop_signal=_string(inner, "StopSignal"),
        exposed_ports=tuple(_table(inner, "ExposedPorts")),
        volumes=tuple(_table(inner, "Volumes")),
        labels=tuple((key, str(value)) for key, value in _table(inner, "Labels").items()),
        architecture=_string(body, "architecture"),
        os=_string(body, "os"),
    )
    return config, diff_ids
