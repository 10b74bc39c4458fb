"""Show what a container wrote: its stdout on stdout, its stderr on stderr.

With -f it goes on over rotations of the log, also while thawd is restarted, until the container has
ended and all was shown.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from cli import logfile
from cli.client import Client
from cri.api import v1_pb2
from hostlib.errors import FailedPrecondition, InvalidArgument, NotFound, ThawError
from shim.log import timestamp

HELP = "show a container's log"

ASK: Final = 0.2
"""Seconds between two questions whether a container has ended."""

_UNITS: Final = {"d": 86400, "h": 3600, "m": 60, "s": 1, "ms": 0.001}
_DURATION: Final = re.compile(r"(?:[0-9]+(?:\.[0-9]+)?(?:ms|[dhms]))+")
_PART: Final = re.compile(r"([0-9.]+)(ms|[dhms])")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", help="its id, or the beginning of it")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    parser.add_argument("--tail", type=int, metavar="N", help="the last N lines only")
    parser.add_argument(
        "--since",
        metavar="TIME",
        help="lines since a time, as 2026-01-31T12:00:00Z, or since so long ago, as 1h30m",
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.tail is not None and arguments.tail < 0:
        raise InvalidArgument(f"--tail {arguments.tail} is no number of lines")
    since = since_time(arguments.since, time.time_ns()) if arguments.since else b""
    with Client(arguments.address) as client:
        status = client.container_status(arguments.container)
        if not status.log_path:
            raise FailedPrecondition(
                "this container has no log",
                hint="its pod was made without log_directory, or it without log_path",
            )
        if arguments.follow:
            follow(client, status.id, status.log_path, tail=arguments.tail, since=since)
            return 0
        if not os.path.exists(status.log_path):
            raise NotFound(f"the log {status.log_path} does not exist (yet)")
        emit(logfile.read(status.log_path, tail=arguments.tail, since=since))
    return 0


def since_time(text: str, now_ns: int) -> bytes:
    """A point in time, or how long before now, as a record's time. Raises `InvalidArgument`."""
    if _DURATION.fullmatch(text):
        ago = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(text))
        return timestamp(max(0, now_ns - int(ago * 10**9)))
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise InvalidArgument(
            f"--since {text!r} is neither a time nor a duration",
            hint="write 90s, 1h30m, 2d, or a time with its zone: 2026-01-31T12:00:00Z",
        )
    return timestamp(max(0, int(when.timestamp() * 10**6) * 1000))


def follow(
    client: Client, container: str, path: str, *, tail: int | None = None, since: bytes = b""
) -> None:
    """Show a log until its container has ended."""
    with _watched(client, container) as ended:
        emit(logfile.follow(path, ended, tail=tail, since=since))


@contextmanager
def _watched(client: Client, container: str) -> Iterator[Callable[[], bool]]:
    """Whether a container has ended, asked in the background: nothing shown waits for thawd."""
    ended, over = threading.Event(), threading.Event()

    def watch() -> None:
        while not over.is_set() and not ended.is_set():
            try:
                if client.container_status(container).state == v1_pb2.CONTAINER_EXITED:
                    ended.set()
            except NotFound:
                ended.set()
            except (ThawError, ValueError):
                # thawd may be back soon; or we have closed the client.
                pass
            ended.is_set() or over.wait(ASK)

    thread = threading.Thread(target=watch, name="container's end", daemon=True)
    thread.start()
    try:
        yield ended.is_set
    finally:
        over.set()


def emit(pieces: Iterable[logfile.Piece]) -> None:
    """Write output to the streams that it came from."""
    for piece in pieces:
        sink = sys.stdout.buffer if piece.stream == "stdout" else sys.stderr.buffer
        sink.write(piece.content)
        sink.flush()
