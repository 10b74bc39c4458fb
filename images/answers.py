"""What a registry's failures mean: errors for people, and which of them may pass."""

from __future__ import annotations

import socket
from typing import Final

import httpx

from hostlib.errors import (
    DeadlineExceeded,
    FailedPrecondition,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
    ThawError,
    Unauthenticated,
    Unavailable,
)
from images.model import Limits

MAX_WAIT: Final = 30.0
"""Seconds that a registry can make a request wait by Retry-After."""


class Transient(Exception):
    """Carries the error to raise when trying again does not help."""

    def __init__(self, error: ThawError, wait: float | None = None) -> None:
        super().__init__(str(error))
        self.error = error
        self.wait = wait


def transport(error: httpx.TransportError, netloc: str, limits: Limits) -> ThawError:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, socket.gaierror):
            return Unavailable(
                f"registry host {netloc} is unknown",
                hint="check the image's name, and the node's DNS",
            )
        if isinstance(cause, ConnectionRefusedError):
            return Unavailable(
                f"registry {netloc} refused the connection",
                hint="check that it runs, its port, and the proxy settings",
            )
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ReadTimeout):
        return DeadlineExceeded(
            f"registry {netloc} sent nothing for {limits.stall_timeout:g} s",
            hint="the registry or the network is overloaded: try again",
        )
    return Unavailable(
        f"registry {netloc} cannot be reached: {str(error) or type(error).__name__}",
        hint="check the network; for plain http or a private CA, write a hosts.toml",
    )


def refusal(status: int, what: str, netloc: str) -> ThawError:
    if status == 401:
        return Unauthenticated(
            f"{netloc} refused access to {what}",
            hint="check the credentials, and that they may read this image",
        )
    if status == 403:
        return PermissionDenied(
            f"{netloc} forbids access to {what}", hint="check that the user may read this image"
        )
    if status == 404:
        return NotFound(f"{netloc} has no {what}", hint="check the image's name and tag")
    if status == 429:
        return ResourceExhausted(
            f"{netloc} limits the rate of requests (429) for {what}",
            hint="wait, log in, or use a mirror",
        )
    if status >= 500:
        return Unavailable(f"{netloc} failed with {status} for {what}", hint="try again later")
    return FailedPrecondition(f"{netloc} answered {status} for {what}")


def retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return min(float(value), MAX_WAIT) if value.isascii() and value.isdigit() else None


async def limited(response: httpx.Response, limit: int, what: str) -> bytes:
    data = bytearray()
    async for chunk in response.aiter_raw(65536):
        data += chunk
        if len(data) > limit:
            raise ResourceExhausted(f"{what} is larger than {limit} bytes")
    return bytes(data)
