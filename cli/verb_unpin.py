"""Take the pin off images, by name, or by id for all names of one; `thaw pull --pin` pins."""

from __future__ import annotations

import argparse
import sys

from cli.client import Client

HELP = "let images be collected again"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="name or id")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        for image in arguments.images:
            if client.unpin(image):
                print(
                    f"{image} is pinned still: by another name, or by images.pinned",
                    file=sys.stderr,
                )
    return 0
