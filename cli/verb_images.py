"""List the images on this node."""

from __future__ import annotations

import argparse

from cli import show
from cli.client import Client

HELP = "list images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        images = client.images()
    if arguments.json:
        print(show.as_json(images))
        return 0
    rows = [
        (name, show.short(image.id), show.size(image.size))
        for image in images
        for name in (image.repo_tags or image.repo_digests or ["<none>"])
    ]
    print(show.table(("IMAGE", "ID", "SIZE"), sorted(rows)))
    return 0
