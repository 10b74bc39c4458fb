"""List containers, newest first."""

from __future__ import annotations

import argparse

from cli import show
from cli.client import Client
from cri.api import v1_pb2

HELP = "list containers"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--all", action="store_true", help="those that ended, too")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        containers = [
            container
            for container in client.containers()
            if arguments.all or container.state != v1_pb2.CONTAINER_EXITED
        ]
    if arguments.json:
        print(show.as_json(containers))
        return 0
    rows = [
        (
            show.short(container.id),
            container.metadata.name,
            container.image.user_specified_image or container.image.image,
            v1_pb2.ContainerState.Name(container.state).removeprefix("CONTAINER_").lower(),
            show.age(container.created_at),
            show.short(container.pod_sandbox_id),
        )
        for container in containers
    ]
    print(show.table(("CONTAINER", "NAME", "IMAGE", "STATE", "AGE", "POD"), rows))
    return 0
