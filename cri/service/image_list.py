"""ListImages; the filter names one image by any of its names or its id."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.service import image_status
from hostlib.errors import NotFound


async def run(daemon: Daemon, request: v1.ListImagesRequest) -> v1.ListImagesResponse:
    if request.filter.image.image:
        try:
            found = [daemon.find_image(request.filter.image.image)]
        except NotFound:
            found = []
    else:
        found = daemon.images.list()
    return v1.ListImagesResponse(images=[image_status.message(each) for each in found])
