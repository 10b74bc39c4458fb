"""The `thaw` command: parses the command line and hands over to the verb's module."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Final

from cli import interrupts, show
from cli.client import default_address
from hostlib.errors import ThawError

VERBS: Final = (
    "doctor",
    "bake",
    "pull",
    "unpin",
    "images",
    "pods",
    "ps",
    "logs",
    "exec",
    "attach",
    "port-forward",
    "run",
    "rm",
    "trace",
    "config",
)


def parser(argv: Sequence[str] = ()) -> argparse.ArgumentParser:
    """The command line; each verb's module adds its own in `add_arguments`.

    Where `argv` names a verb, only its module is loaded: all of them take longer than most verbs.
    """
    main_parser = argparse.ArgumentParser(
        prog="thaw", description="Run pods as microVMs thawed from baked snapshots."
    )
    main_parser.add_argument(
        "--address",
        default=default_address(),
        metavar="unix:///PATH",
        help="thawd's socket (THAW_ADDRESS, else %(default)s)",
    )
    verbs = main_parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    named = _verb(argv)
    for verb in VERBS:
        if named in VERBS and verb != named:
            verbs.add_parser(verb)
            continue
        module = import_module(f"cli.verb_{verb.replace('-', '_')}")
        verb_parser = verbs.add_parser(
            verb, help=module.HELP, description=module.__doc__ or module.HELP
        )
        module.add_arguments(verb_parser)
        verb_parser.set_defaults(run=module.run)
    return main_parser


def _verb(argv: Sequence[str]) -> str:
    """The first word that is no option, nor an option's value."""
    words = iter(argv)
    for word in words:
        if word == "--address":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return ""


def main(argv: Sequence[str] | None = None) -> None:
    """The entry point; ends the process with the verb's exit code.

    0 success, 1 failure, 2 wrong usage, 128 + the signal that ended it; `exec`, `attach` and `run`
    give their command's own.
    """
    _fill_standard_descriptors()
    given = sys.argv[1:] if argv is None else argv
    arguments = parser(given).parse_args(given)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except ThawError as error:
        show.error(error)
        code = getattr(error, "exit_code", 1)
    except interrupts.Interrupted as error:
        code = 128 + error.number
    except KeyboardInterrupt:
        code = 128 + signal.SIGINT
    except BrokenPipeError:
        # The reader of our output went away; nothing may be flushed into it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 128 + signal.SIGPIPE
    sys.exit(code)


def _fill_standard_descriptors() -> None:
    """What the caller has closed is nothing, and never becomes one of our sockets."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115 - for as long as we live


if __name__ == "__main__":
    main()
