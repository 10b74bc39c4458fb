"""PullImage. `image_ref` is the image's id."""

from __future__ import annotations

import base64
import binascii

from images.service import Auth

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from hostlib.errors import InvalidArgument


async def run(daemon: Daemon, request: v1.PullImageRequest) -> v1.PullImageResponse:
    if not request.image.image:
        raise InvalidArgument("no image given")
    image = await daemon.images.pull(request.image.image, auth=credentials(request.auth))
    return v1.PullImageResponse(image_ref=image.id)


def credentials(auth: v1.AuthConfig) -> Auth | None:
    """What the kubelet found for the registry; None for nothing. Raises `InvalidArgument`."""
    username, password = auth.username, auth.password
    if auth.auth and not username:
        try:
            text = base64.b64decode(auth.auth, validate=True).decode().rstrip("\0")
        except (binascii.Error, UnicodeDecodeError) as error:
            raise InvalidArgument("auth is not base64 of user:password") from error
        username, colon, password = text.partition(":")
        if not colon:
            raise InvalidArgument("auth is not base64 of user:password")
    if not any((username, password, auth.identity_token, auth.registry_token)):
        return None
    return Auth(
        username=username,
        password=password,
        identity_token=auth.identity_token,
        registry_token=auth.registry_token,
    )
