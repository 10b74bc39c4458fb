"""Which image is meant by a name, a digest or an id."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from typing import Final

from hostlib.errors import InvalidArgument
from images import reference
from images.model import Image

_ID_PREFIX: Final = re.compile(r"[0-9a-f]{3,64}")


def find(images: Mapping[str, Image], text: str) -> Image | None:
    """The one of `images`, by id, that `text` means: a name, a name with digest, an id, or a unique
    prefix (3 digits at least) of one. Raises `InvalidArgument`."""
    bare = text.removeprefix("sha256:")
    if not _ID_PREFIX.fullmatch(bare):
        return by_name(images, text)
    if len(bare) == 64:
        return images.get(f"sha256:{bare}")
    if text == bare and (named := by_name(images, text)) is not None:
        return named
    found = [image for key, image in images.items() if key[7:].startswith(bare)]
    if len(found) > 1:
        raise InvalidArgument(
            f"{text} is the beginning of {len(found)} images' ids", hint="give more digits"
        )
    return found[0] if found else None


def by_name(images: Mapping[str, Image], text: str) -> Image | None:
    """The image that has this tag, or this digest. Raises `InvalidArgument`."""
    parsed = reference.parse(text)
    for image in images.values():
        if parsed.digest is not None:
            if f"{parsed.name}@{parsed.digest}" in image.repo_digests:
                return image
        elif str(parsed) in image.repo_tags:
            return image
    return None


def names_meant(image: Image, text: str) -> tuple[str, ...]:
    """The tag or digest of `image` that `text`, which means the image, names; all of its tags and
    digests where it is an id, or a part of one."""
    every = (*image.repo_tags, *image.repo_digests)
    with contextlib.suppress(InvalidArgument):
        parsed = reference.parse(text)
        name = f"{parsed.name}@{parsed.digest}" if parsed.digest else str(parsed)
        if name in every:
            return (name,)
    return every
