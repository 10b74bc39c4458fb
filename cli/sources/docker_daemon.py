"""Images of a Docker daemon: ``docker-daemon:NAME``, over its socket.

``GET /images/{name}/get`` (Docker Engine API, "Export an image") answers with what `docker save`
writes, whose table of contents may come last: it is kept in a file without a name for as long as
it is read.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import replace
from typing import Any, Final
from urllib.parse import quote, urlsplit

import httpx

from cli.sources import docker_archive
from cli.sources.content import Content, named
from cli.sources.files import Archive
from hostlib.errors import FailedPrecondition, InvalidArgument, NotFound, ThawError, Unavailable
from images import reference

DEFAULT: Final = "unix:///var/run/docker.sock"
_STALL: Final = 300.0
"""Seconds: the daemon may pack a large image before the first byte comes."""


def image(place: str) -> Content:
    """The image `place` of the daemon that DOCKER_HOST names. Raises `NotFound`, `Unavailable`."""
    host = os.environ.get("DOCKER_HOST") or DEFAULT
    socket = urlsplit(host).path
    if not host.startswith("unix://") or not socket:
        raise InvalidArgument(
            f"DOCKER_HOST is {host[:200]!r}: only unix:///PATH can be read",
            hint="save the image there, and pull docker-archive:FILE here",
        )
    if not place:
        raise InvalidArgument("which image of the Docker daemon?", hint="docker-daemon:NAME[:TAG]")
    spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the content
    _export(socket, place, spool)
    spool.seek(0)
    found = docker_archive.find(Archive(spool, place), place, "")
    return replace(found, source=f"docker-daemon:{place}", names=(_name(place, found),))


def _name(place: str, found: Content) -> str:
    try:
        parsed = reference.parse(place)
    except ThawError:
        # By its id.
        return found.names[0]
    return str(parsed) if parsed.tag and not parsed.digest else named(parsed.name, "")


def _export(socket: str, place: str, spool: Any) -> None:
    timeout = httpx.Timeout(_STALL, connect=10)
    url = f"http://docker/images/{quote(place, safe='/:@')}/get"
    try:
        with (
            httpx.Client(transport=httpx.HTTPTransport(uds=socket), timeout=timeout) as client,
            client.stream("GET", url) as answer,
        ):
            if answer.status_code != 200:
                raise _refusal(place, answer)
            for piece in answer.iter_raw(1024 * 1024):
                spool.write(piece)
    except httpx.HTTPError as error:
        raise Unavailable(
            f"the Docker daemon at {socket} cannot be asked: {error}",
            hint="check that it runs, and DOCKER_HOST",
        ) from error
    except OSError as error:
        raise FailedPrecondition(
            f"the image cannot be kept meanwhile: {error.strerror}",
            hint="set TMPDIR to a folder with enough room",
        ) from error


def _refusal(place: str, answer: httpx.Response) -> ThawError:
    text = b"".join(part for part, _ in zip(answer.iter_raw(4096), range(4), strict=False))
    try:
        message = str(httpx.Response(200, content=text).json()["message"])[:500]
    except (ValueError, KeyError, TypeError):
        message = f"status {answer.status_code}"
    kind = NotFound if answer.status_code == 404 else FailedPrecondition
    return kind(f"the Docker daemon does not give {place}: {message}")
