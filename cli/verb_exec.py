"""Run a command in a container and show its output when it has ended; ends with its exit code."""

from __future__ import annotations

import argparse
import sys

from cli.client import Client

HELP = "run a command in a container"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout", type=int, default=0, metavar="SECONDS", help="kill it after so long"
    )
    parser.add_argument("container", help="its id, or the beginning of it")
    parser.add_argument("command", help="the program to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")


def run(arguments: argparse.Namespace) -> int:
    command = [arguments.command, *arguments.arguments]
    with Client(arguments.address) as client:
        answer = client.exec_sync(arguments.container, command, arguments.timeout)
    sys.stdout.buffer.write(answer.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(answer.stderr)
    sys.stderr.buffer.flush()
    return int(answer.exit_code)
