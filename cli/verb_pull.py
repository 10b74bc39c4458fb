"""Pull an image, showing how far each layer is; prints the image's id."""

from __future__ import annotations

import argparse

from cli import show
from cli.client import Client

HELP = "pull an image"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("image", help="for example nginx:1.29 or registry.example/app@sha256:...")


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        print(pull(client, arguments.image))
    return 0


def pull(client: Client, image: str) -> str:
    """Pull with progress on stderr; the image's id."""
    progress = show.Progress()
    image_id = ""
    for message in client.pull(image):
        image_id = message.image_ref or image_id
        if message.layer:
            drawn = (
                show.bar(message.current, message.total)
                if message.phase == "downloading"
                else show.size(message.total)
            )
            text = f"{show.short(message.layer)}  {message.phase:<11}  {drawn}"
            progress.update(message.layer, message.phase, text)
        else:
            drawn = f"  {show.bar(message.current, message.total)}" if message.total else ""
            progress.update("", message.phase, f"{image}  {message.phase}{drawn}")
    return image_id
