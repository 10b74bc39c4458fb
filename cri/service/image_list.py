"""ListImages; the filter names one image by any of its names or its id."""

from __future__ import annotations

from collections.abc import Iterator

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.service import image_status
from hostlib.errors import NotFound


async def run(daemon: Daemon, request: v1.ListImagesRequest) -> v1.ListImagesResponse:
    return v1.ListImagesResponse(images=items(daemon, request.filter))


def items(daemon: Daemon, wanted: v1.ImageFilter) -> Iterator[v1.Image]:
    """The images that the filter names, each made as it is asked for."""
    if wanted.image.image:
        try:
            found = [daemon.find_image(wanted.image.image)]
        except NotFound:
            found = []
    else:
        found = daemon.images.list()
    return (image_status.message(each) for each in found)
