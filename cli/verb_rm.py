"""Stop and remove pods, containers, or images, by id or the beginning of it."""

from __future__ import annotations

import argparse

from cli.client import Client
from hostlib.errors import InvalidArgument, NotFound

HELP = "remove pods, containers, images"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="ID", help="pod, container, or image")
    parser.add_argument("--all", action="store_true", help="all pods, with their containers")


def run(arguments: argparse.Namespace) -> int:
    if bool(arguments.names) == arguments.all:
        raise InvalidArgument("what to remove?", hint="name pods, containers, images, or --all")
    with Client(arguments.address) as client:
        if arguments.all:
            for pod in client.pods():
                remove_pod(client, pod.id)
                print(pod.id)
        for name in arguments.names:
            print(remove(client, name))
    return 0


def remove_pod(client: Client, pod_id: str) -> None:
    """Stop a pod and remove it with its containers."""
    client.stop_pod(pod_id)
    client.remove_pod(pod_id)


def remove(client: Client, name: str) -> str:
    """Remove the one pod, container or image that `name` means; its full id."""
    pods = [pod.id for pod in client.pods() if pod.id.startswith(name)]
    containers = [item.id for item in client.containers() if item.id.startswith(name)]
    if len(pods) + len(containers) > 1:
        raise InvalidArgument(
            f"{name} is the beginning of more than one id", hint="write more of it"
        )
    if pods:
        remove_pod(client, pods[0])
        return pods[0]
    if containers:
        client.stop_container(containers[0], 10)
        client.remove_container(containers[0])
        return containers[0]
    image = client.image_status(name)
    if image is None:
        raise NotFound(
            f"no pod, container or image {name}", hint="thaw pods; thaw ps -a; thaw images"
        )
    client.remove_image(image.id)
    return image.id
