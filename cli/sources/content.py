"""An image that the client has, as the daemon asks for it: blobs by digest.

The client only finds and reads; it judges nothing. Everything that it sends, manifests too, goes
through the daemon's checks for what a registry sends.
"""

from __future__ import annotations

import json
import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from hostlib.errors import InvalidArgument, ThawError
from images import reference

MAX_JSON: Final = 16 * 1024 * 1024
"""Bytes of an index, a manifest or a configuration that is read here; the daemon allows less."""


@dataclass(frozen=True)
class Content:
    """One image. ``digest`` and ``media_type`` are those of its manifest or index."""

    source: str
    names: tuple[str, ...]
    digest: str
    media_type: str
    registry_digest: bool
    """Whether the manifest is the one that a registry has, or would have."""
    pieces: Callable[[str], Iterator[bytes]]
    """The blob of a digest. Raises `NotFound`."""


def load(data: bytes, what: str, kind: type) -> Any:
    """The JSON of that kind in `data`. Raises `InvalidArgument`."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"{what} is no JSON") from error
    if not isinstance(found, kind):
        raise InvalidArgument(f"{what} does not look like it")
    return found


def text(body: dict[str, Any], key: str) -> str:
    """A text in a table, "" where there is none."""
    found = body.get(key)
    return found if isinstance(found, str) else ""


def split(place: str, exists: Callable[[str], bool]) -> tuple[str, str]:
    """``PATH[:TAG]`` as path and tag; a path that exists as a whole has none."""
    path, colon, tag = place.rpartition(":")
    if not colon or "/" in tag or exists(place):
        return place, ""
    return path, tag


def named(path: str, tag: str) -> str:
    """The name of an image that brings none: localhost/, its file's name, and its tag."""
    base = posixpath.basename(posixpath.abspath(path)).lower().removesuffix(".tar")
    try:
        return str(reference.parse(f"localhost/{base}:{tag or reference.DEFAULT_TAG}"))
    except ThawError as error:
        raise InvalidArgument(
            f"the image in {path} brings no name, and none can be made of the path",
            hint="name it: --as NAME[:TAG]",
        ) from error
