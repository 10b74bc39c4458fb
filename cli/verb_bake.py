"""Bake the base snapshot of a machine shape, unless it is there already."""

from __future__ import annotations

import argparse
import json

from cli import show
from cli.client import Client

HELP = "bake a base snapshot"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "shape", nargs="?", default="", help='CPUSxMEMORY in MiB, for example "2x2048"'
    )
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(arguments: argparse.Namespace) -> int:
    progress = show.Progress()
    with Client(arguments.address) as client:
        for message in client.bake(arguments.shape):
            if message.key:
                for warning in message.warnings:
                    show.warn(warning)
                result = {
                    "key": message.key,
                    "path": message.path,
                    "accelerator": message.accelerator,
                    "accelerator_reason": message.accelerator_reason,
                }
                if arguments.json:
                    print(json.dumps(result, indent=2))
                else:
                    print(message.key)
                    show.note(f"{message.accelerator}: {message.accelerator_reason}")
            else:
                percent = int(message.fraction * 100)
                progress.update("bake", message.phase, f"{show.bar(percent, 100)}  {message.phase}")
    return 0
