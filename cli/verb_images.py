"""List the images on this node, or those that are on their way."""

from __future__ import annotations

import argparse

from cli import show
from cli.client import Client
from cri.api import thaw_pb2

HELP = "list images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument("--pulling", action="store_true", help="the pulls under way")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        if arguments.pulling:
            pulls = client.pulls()
            print(show.as_json(pulls) if arguments.json else _pulls(pulls))
            return 0
        images = client.images()
    if arguments.json:
        print(show.as_json(images))
        return 0
    rows = [
        (name, show.short(image.id), show.size(image.size), "yes" if image.pinned else "")
        for image in images
        for name in (image.repo_tags or image.repo_digests or ["<none>"])
    ]
    print(show.table(("IMAGE", "ID", "SIZE", "PINNED"), sorted(rows)))
    return 0


def _pulls(pulls: list[thaw_pb2.PullUnderWay]) -> str:
    rows = []
    for pull in pulls:
        layers = [each for each in pull.progress if each.layer]
        done = sum(each.phase in ("done", "present") for each in layers)
        came, total = (sum(getattr(each, key) for each in layers) for key in ("current", "total"))
        merging = [each for each in pull.progress if not each.layer]
        if merging:
            phase, came, total = "merging", merging[0].current, merging[0].total
        else:
            phase = "downloading" if layers else "resolving"
        rows.append(
            (
                pull.image,
                show.age(pull.started_at),
                phase,
                f"{done}/{len(layers)}",
                show.bar(came, total) if layers else "",
            )
        )
    return show.table(("IMAGE", "AGE", "PHASE", "LAYERS", "PROGRESS"), rows)
