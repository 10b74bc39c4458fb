"""What `docker save` writes: ``docker-archive:FILE[:NAME]``.

It holds no manifest of the kind that registries have: one is made of its parts here.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from typing import Any, Final

from cli.sources.content import MAX_JSON, Content, load, named, split, text
from cli.sources.files import Archive, Files, open_file, read
from hostlib.errors import InvalidArgument, NotFound, ThawError
from images import decompress, reference
from images.reference import Reference

_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar"
_SUFFIX: Final = {"gzip": "+gzip", "zstd": "+zstd", "none": ""}
_MAX_LAYERS: Final = 1000


def archive(place: str) -> Content:
    """The image in ``FILE[:NAME]``, or the only one of the file."""
    path, wanted = _split(place)
    return find(Archive(open_file(path), path), path, wanted)


def _split(place: str) -> tuple[str, str]:
    if os.path.exists(place):
        return place, ""
    # A name may have colons and slashes of its own: the shortest file that is there counts.
    parts = place.split(":")
    for n in range(1, len(parts)):
        if os.path.isfile(path := ":".join(parts[:n])):
            return path, ":".join(parts[n:])
    return split(place, os.path.exists)


def find(files: Files, path: str, wanted: str) -> Content:
    """The image of the name `wanted`, or the only one. Raises `InvalidArgument`, `NotFound`."""
    try:
        entries = load(read(files, "manifest.json", MAX_JSON), f"manifest.json of {path}", list)
    except NotFound as error:
        raise InvalidArgument(
            f"{path} is no docker archive: {error.message}",
            hint="an OCI image layout is oci-archive:FILE, or oci-layout:DIR",
        ) from error
    if not all(isinstance(each, dict) for each in entries):
        raise InvalidArgument(f"manifest.json of {path} lists no images")
    entry = _choose(entries, path, wanted)
    places: dict[str, str] = {}
    config = read(files, text(entry, "Config"), MAX_JSON)
    inline = {_sha256(config): config}
    layers = []
    names = entry.get("Layers") or []
    if not isinstance(names, list) or len(names) > _MAX_LAYERS:
        raise InvalidArgument(f"manifest.json of {path} lists no layers")
    for name in names:
        if not isinstance(name, str):
            raise InvalidArgument(f"manifest.json of {path} names a layer by no text")
        descriptor = _layer(files, name)
        places[descriptor["digest"]] = name
        layers.append(descriptor)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": {"mediaType": _CONFIG, "digest": _sha256(config), "size": len(config)},
            "layers": layers,
        }
    ).encode()
    inline[_sha256(manifest)] = manifest

    def pieces(digest: str) -> Iterator[bytes]:
        if digest in inline:
            data = inline[digest]
            step = 256 * 1024
            yield from (data[n : n + step] for n in range(0, len(data), step))
        elif digest in places:
            yield from files.pieces(places[digest])
        else:
            raise NotFound(f"{path} has no blob {digest}")

    found = _tags(entry)
    tags = [str(each) for each in found if not wanted or each == reference.parse(wanted)]
    return Content(
        path, tuple(tags) or (named(path, ""),), _sha256(manifest), _MANIFEST, False, pieces
    )


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _tags(entry: dict[str, Any]) -> list[Reference]:
    tags = entry.get("RepoTags") or []
    found = []
    for each in tags if isinstance(tags, list) else []:
        try:
            parsed = reference.parse(each) if isinstance(each, str) else None
        except ThawError:
            continue
        if parsed is not None and parsed.tag and not parsed.digest:
            found.append(parsed)
    return found


def _choose(entries: list[dict[str, Any]], path: str, wanted: str) -> dict[str, Any]:
    if wanted:
        name = reference.parse(wanted)
        for entry in entries:
            if name in _tags(entry):
                return entry
    elif len(entries) == 1:
        return entries[0]
    offered = sorted({str(tag) for entry in entries for tag in _tags(entry)})
    what = f"has no image {wanted}" if wanted else f"holds {len(entries)} images"
    raise InvalidArgument(
        f"{path} {what}", hint=f"name one: :{', :'.join(offered[:10]) or 'it names none'}"
    )


def _layer(files: Files, name: str) -> dict[str, Any]:
    digest, size, head = hashlib.sha256(), 0, b""
    for piece in files.pieces(name):
        head = head or piece[:16]
        digest.update(piece)
        size += len(piece)
    return {
        "mediaType": _LAYER + _SUFFIX[decompress.sniff(head)],
        "digest": f"sha256:{digest.hexdigest()}",
        "size": size,
    }
