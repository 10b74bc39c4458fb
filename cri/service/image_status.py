"""ImageStatus: an image that is not here is an empty response."""

from __future__ import annotations

import json
from typing import Final

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from hostlib.errors import InvalidArgument, NotFound
from images.model import Image

_MAX_UID: Final = 2**32 - 2


async def run(daemon: Daemon, request: v1.ImageStatusRequest) -> v1.ImageStatusResponse:
    if not request.image.image:
        raise InvalidArgument("no image given")
    try:
        found = daemon.find_image(request.image.image)
    except NotFound:
        return v1.ImageStatusResponse()
    return v1.ImageStatusResponse(image=message(found), info=info(found) if request.verbose else {})


def message(image: Image) -> v1.Image:
    """The image as CRI has it."""
    uid, name = user(image.config.user)
    return v1.Image(
        id=image.id,
        repo_tags=image.repo_tags,
        repo_digests=image.repo_digests,
        size=image.size,
        uid=None if uid is None else v1.Int64Value(value=uid),
        username=name,
        spec=v1.ImageSpec(image=image.id),
        pinned=image.pinned,
    )


def user(text: str) -> tuple[int | None, str]:
    """A configuration's ``user[:group]`` as a number or a name. A number that is no user id is a
    name that no system has: the image is free to claim anything."""
    name = text.partition(":")[0]
    if name.isascii() and name.isdecimal() and len(name) <= 20 and int(name) <= _MAX_UID:
        return int(name), ""
    return None, name


def info(image: Image) -> dict[str, str]:
    layers = [{"diff_id": each.diff_id, "size": each.size} for each in image.layers]
    one = {"chain_id": image.merged.diff_id, "size": image.merged.size} if image.merged else None
    config = {
        "user": image.config.user,
        "env": list(image.config.env),
        "entrypoint": list(image.config.entrypoint),
        "cmd": list(image.config.cmd),
        "working_dir": image.config.working_dir,
        "stop_signal": image.config.stop_signal,
    }
    return {"info": json.dumps({"layers": layers, "merged": one, "config": config})}
