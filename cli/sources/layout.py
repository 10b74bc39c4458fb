"""OCI image layouts: ``oci-layout:DIR[:TAG]`` and ``oci-archive:FILE[:TAG]``."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any, Final

from cli.sources.content import MAX_JSON, Content, load, named, split, text
from cli.sources.files import Archive, Files, Folder, open_file, read
from hostlib.errors import InvalidArgument, NotFound, ThawError
from images import reference

_INDEX: Final = "application/vnd.oci.image.index.v1+json"
_TAG: Final = "org.opencontainers.image.ref.name"
_NAME: Final = "io.containerd.image.name"


def folder(place: str) -> Content:
    """The image in ``DIR[:TAG]``."""
    path, tag = split(place, os.path.exists)
    if not os.path.isdir(path):
        raise NotFound(f"there is no folder {path}")
    return find(Folder(path), path, tag)


def archive(place: str) -> Content:
    """The image in ``FILE[:TAG]``."""
    path, tag = split(place, os.path.exists)
    return find(Archive(open_file(path), path), path, tag)


def find(files: Files, path: str, tag: str) -> Content:
    """The image with that tag, or the only one. Raises `InvalidArgument`, `NotFound`."""
    try:
        data = read(files, "index.json", MAX_JSON)
        version = load(read(files, "oci-layout", MAX_JSON), f"oci-layout of {path}", dict)
    except NotFound as error:
        raise InvalidArgument(
            f"{path} is no OCI image layout: {error.message}",
            hint="what `docker save` writes is docker-archive:FILE",
        ) from error
    if not text(version, "imageLayoutVersion").startswith("1."):
        raise InvalidArgument(f"{path} is an OCI image layout of an unknown version")
    entries = load(data, f"index.json of {path}", dict).get("manifests")
    if not isinstance(entries, list) or not all(isinstance(each, dict) for each in entries):
        raise InvalidArgument(f"index.json of {path} has no manifests")
    chosen = _choose(entries, path, tag)

    def pieces(digest: str) -> Iterator[bytes]:
        if chosen is None and digest == own:
            yield data
        else:
            yield from files.pieces(f"blobs/{digest.replace(':', '/', 1)}")

    own = f"sha256:{hashlib.sha256(data).hexdigest()}"
    digest = own if chosen is None else text(chosen, "digest")
    media_type = _INDEX if chosen is None else text(chosen, "mediaType")
    if not reference.is_digest(digest):
        raise InvalidArgument(f"index.json of {path} names the image by no sha256 digest")
    name = _name(chosen or {}) or named(path, tag or _own_tag(chosen or {}))
    return Content(path, (name,), digest, media_type, True, pieces)


def _notes(entry: dict[str, Any]) -> dict[str, Any]:
    notes = entry.get("annotations")
    return notes if isinstance(notes, dict) else {}


def _own_tag(entry: dict[str, Any]) -> str:
    return text(_notes(entry), _TAG)


def _choose(entries: list[dict[str, Any]], path: str, tag: str) -> dict[str, Any] | None:
    """The entry; None where all of them are the platforms of one image."""
    tags = sorted({_own_tag(each) for each in entries} - {""})
    if tag:
        found = [each for each in entries if _own_tag(each) == tag]
        if not found:
            raise NotFound(
                f"{path} has no image {tag}", hint=f"it has {', '.join(tags[:10]) or 'no tags'}"
            )
        return found[0]
    if len(entries) == 1:
        return entries[0]
    if not entries:
        raise NotFound(f"{path} holds no image")
    if tags:
        raise InvalidArgument(
            f"{path} holds several images", hint=f"name one: :{', :'.join(tags[:10])}"
        )
    return None


def _name(entry: dict[str, Any]) -> str:
    """A whole name that the entry brings, with its tag; "" for none."""
    notes = _notes(entry)
    for candidate in (text(notes, _NAME), text(notes, _TAG)):
        # A tag alone would be taken for a repository of the default registry.
        if "/" in candidate:
            try:
                found = reference.parse(candidate)
            except ThawError:
                continue
            if found.tag and not found.digest:
                return str(found)
    return ""
