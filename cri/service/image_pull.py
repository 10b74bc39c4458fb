"""PullImage. `image_ref` is the image's id."""

from __future__ import annotations

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from hostlib.errors import InvalidArgument
from images.model import Auth


async def run(daemon: Daemon, request: v1.PullImageRequest) -> v1.PullImageResponse:
    if not request.image.image:
        raise InvalidArgument("no image given")
    image = await daemon.images.pull(request.image.image, auth=credentials(request.auth))
    return v1.PullImageResponse(image_ref=image.id)


def credentials(auth: v1.AuthConfig) -> Auth | None:
    """What the kubelet found for the registry; None for nothing."""
    found = Auth(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
    return None if found == Auth(server_address=auth.server_address) else found
