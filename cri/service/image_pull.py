"""PullImage. `image_ref` is the image's id."""

from __future__ import annotations

from typing import Protocol

from cri.api import v1_pb2 as v1
from cri.daemon import HANDLERS, Daemon
from hostlib.errors import InvalidArgument, NotFound
from images.model import Auth


async def run(daemon: Daemon, request: v1.PullImageRequest) -> v1.PullImageResponse:
    if not request.image.image:
        raise InvalidArgument("no image given")
    if request.image.runtime_handler not in HANDLERS:
        raise NotFound(
            f"no runtime for handler {request.image.runtime_handler!r} is configured",
            hint='the handlers are "thaw" and ""; they share their images',
        )
    image = await daemon.images.pull(request.image.image, auth=credentials(request.auth))
    return v1.PullImageResponse(image_ref=image.id)


class AuthFields(Protocol):
    """What CRI's AuthConfig and Thaw's own PullRequest have in common."""

    username: str
    password: str
    auth: str
    server_address: str
    identity_token: str
    registry_token: str


def credentials(auth: AuthFields) -> Auth | None:
    """What the kubelet, or the user, has for the registry; None for nothing."""
    found = Auth(
        username=auth.username,
        password=auth.password,
        auth=auth.auth,
        server_address=auth.server_address,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
    return None if found == Auth(server_address=auth.server_address) else found
