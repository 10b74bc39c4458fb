"""Pull an image, showing how far each layer is; prints the image's id.

From a registry, with the credentials of docker's config.json, or from what is on this machine:
oci-layout:DIR[:TAG], oci-archive:FILE[:TAG], docker-archive:FILE[:NAME], docker-daemon:NAME.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import replace

from cli import docker_config, show
from cli.client import Client
from cli.sources import find
from cri.api import thaw_pb2
from hostlib.errors import InvalidArgument
from images import reference

HELP = "pull an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "image",
        help="for example nginx:1.29, registry.example/app@sha256:..., or oci-archive:app.tar",
    )
    parser.add_argument(
        "--as", dest="name", metavar="NAME", help="its name here, for an image from no registry"
    )
    parser.add_argument(
        "--refresh",
        action="store_true",
        help="ask the registry what the tag means, also when it was asked a moment ago",
    )
    parser.add_argument(
        "--pin",
        action="store_true",
        help="have the kubelet's garbage collection told to keep what has this name",
    )


def run(arguments: argparse.Namespace) -> int:
    content = find.content(arguments.image)
    if content is None and arguments.name:
        raise InvalidArgument(
            "--as names an image from no registry",
            hint="an image from a registry has the name that it is pulled by",
        )
    with Client(arguments.address) as client:
        if content is None:
            print(pull(client, arguments.image, refresh=arguments.refresh, pin=arguments.pin))
            return 0
        if arguments.name:
            content = replace(content, names=(_with_tag(arguments.name),))
        print(_shown(content.names[0], client.load(content, pin=arguments.pin)))
    return 0


def _with_tag(name: str) -> str:
    parsed = reference.parse(name)
    if parsed.digest:
        raise InvalidArgument("an image's name here has no digest", hint="--as NAME[:TAG]")
    return str(parsed)


def pull(client: Client, image: str, *, refresh: bool = False, pin: bool = False) -> str:
    """Pull from a registry with progress on stderr; the image's id."""
    auth = docker_config.find(image)
    return _shown(image, client.pull(image, refresh=refresh, auth=auth, pin=pin))


def _shown(image: str, messages: Iterable[thaw_pb2.PullProgress]) -> str:
    progress = show.Progress()
    image_id = ""
    for message in messages:
        image_id = message.image_ref or image_id
        progress.update(message.layer, message.phase, line(image, message))
    return image_id


def line(image: str, message: thaw_pb2.PullProgress) -> str:
    """One message of progress, for people."""
    if not message.layer:
        drawn = f"  {show.bar(message.current, message.total)}" if message.total else ""
        return f"{image}  {message.phase}{drawn}"
    drawn = (
        show.bar(message.current, message.total)
        if message.phase == "downloading"
        else show.size(message.total)
    )
    return f"{show.short(message.layer)}  {message.phase:<11}  {drawn}"
