"""Show what a container wrote: its stdout on stdout, its stderr on stderr."""

from __future__ import annotations

import argparse
import itertools
import os
import sys

from cli import logfile
from cli.client import Client
from cri.api import v1_pb2
from hostlib.errors import FailedPrecondition, NotFound

HELP = "show a container's log"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("container", help="its id, or the beginning of it")
    parser.add_argument("-f", "--follow", action="store_true", help="go on until it ends")
    parser.add_argument("--tail", type=int, metavar="N", help="the last N lines only")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        status = client.container_status(arguments.container)
        if not status.log_path:
            raise FailedPrecondition(
                "this container has no log",
                hint="its pod was made without log_directory, or it without log_path",
            )
        if arguments.follow:
            checks = itertools.count()

            def ended() -> bool:
                # Asking twice a second is enough; the file is looked at more often.
                if next(checks) % 10:
                    return False
                state = client.container_status(status.id).state
                return bool(state == v1_pb2.CONTAINER_EXITED)

            lines = logfile.follow(status.log_path, ended, tail=arguments.tail)
        else:
            if not os.path.exists(status.log_path):
                raise NotFound(f"the log {status.log_path} does not exist (yet)")
            lines = logfile.read(status.log_path, tail=arguments.tail)
        for line in lines:
            emit(line)
    return 0


def emit(line: logfile.Line) -> None:
    """Write a piece of output to the stream that it came from."""
    sink = sys.stdout.buffer if line.stream == "stdout" else sys.stderr.buffer
    sink.write(line.content)
    sink.flush()
