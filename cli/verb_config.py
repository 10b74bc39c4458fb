"""Print a commented configuration with all defaults, or judge a configuration file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from cri import config

HELP = "print or check configuration"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("default", help="print a commented file with every default")
    check = actions.add_parser("check", help="judge a file and its drop-ins")
    check.add_argument("file", type=Path)


def run(arguments: argparse.Namespace) -> int:
    if arguments.action == "default":
        sys.stdout.write(config.commented_template())
    else:
        config.check(arguments.file)
        print(f"{arguments.file}: good")
    return 0
