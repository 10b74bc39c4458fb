"""Run a command in a container; ends with its exit code.

Its output is shown as it comes. With -i it gets what comes on stdin, to its end; with -t it runs in
a terminal, as large as the one that thaw runs in; -it is what an interactive shell needs. A command
that is not there gives 127, one that cannot be executed 126. When thaw ends before the command, by
a signal or a lost connection, the command goes on until it reads or writes.
"""

from __future__ import annotations

import argparse
import sys

from cli import interrupts, remote, show, terminal
from cli.client import Client
from hostlib.errors import InvalidArgument

HELP = "run a command in a container"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-i", "--stdin", action="store_true", help="pass stdin on")
    parser.add_argument("-t", "--tty", action="store_true", help="run it in a terminal")
    parser.add_argument(
        "--timeout",
        type=int,
        default=0,
        metavar="SECONDS",
        help="kill it after so long; its output is shown at its end",
    )
    remote.add_arguments(parser)
    parser.add_argument("container", help="its id, or the beginning of it")
    parser.add_argument("command", help="the program to run")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, metavar="...")


def run(arguments: argparse.Namespace) -> int:
    command = [arguments.command, *arguments.arguments]
    with Client(arguments.address) as client:
        if arguments.timeout:
            if arguments.stdin or arguments.tty:
                raise InvalidArgument("--timeout goes neither with -i nor with -t")
            return _sync(client, arguments.container, command, arguments.timeout)
        streams = remote.Streams(arguments.stdin, arguments.tty)
        if streams.terminal and terminal.size() is None:
            show.warn("there is no terminal here: the command's has no size of ours")
        url = client.exec(
            arguments.container, command, stdin=streams.stdin, terminal=streams.terminal
        )
    code = interrupts.run(remote.join(url, streams, remote.tls(arguments)))
    return 0 if code is None else code


def _sync(client: Client, container: str, command: list[str], timeout: int) -> int:
    with remote.starting():
        answer = client.exec_sync(container, command, timeout)
    sys.stdout.buffer.write(answer.stdout)
    sys.stdout.buffer.flush()
    sys.stderr.buffer.write(answer.stderr)
    sys.stderr.buffer.flush()
    return int(answer.exit_code)
