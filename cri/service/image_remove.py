"""RemoveImage: the image goes with all its names; idempotent."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from hostlib.errors import InvalidArgument, NotFound


async def run(daemon: Daemon, request: v1.RemoveImageRequest) -> v1.RemoveImageResponse:
    if not request.image.image:
        raise InvalidArgument("no image given")
    try:
        await daemon.images.remove(request.image.image)
    except NotFound:
        pass
    return v1.RemoveImageResponse()
