"""List the pods on this node, newest first."""

from __future__ import annotations

import argparse

from cli import show
from cli.client import Client
from cri.api import v1_pb2

HELP = "list pods"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print as JSON")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        pods = client.pods()
    if arguments.json:
        print(show.as_json(pods))
        return 0
    rows = [
        (
            show.short(pod.id),
            pod.metadata.namespace,
            pod.metadata.name,
            v1_pb2.PodSandboxState.Name(pod.state).removeprefix("SANDBOX_").lower(),
            show.age(pod.created_at),
        )
        for pod in pods
    ]
    print(show.table(("POD", "NAMESPACE", "NAME", "STATE", "AGE"), rows))
    return 0
