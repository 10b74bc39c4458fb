"""What `thaw pull` was given: a name in a registry, or another source by its prefix."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from cli.sources.content import Content

SOURCES: Final[Mapping[str, tuple[str, str]]] = {
    "oci-layout": ("layout", "folder"),
    "oci-archive": ("layout", "archive"),
    "docker-archive": ("docker_archive", "archive"),
    "docker-daemon": ("docker_daemon", "image"),
}
"""The module and the function for each prefix; they are loaded where they are needed."""


def content(text: str) -> Content | None:
    """The image of another source; None for a name in a registry. Raises `ThawError`."""
    kind, colon, place = text.partition(":")
    if not colon or kind not in SOURCES:
        return None
    module, function = SOURCES[kind]
    found: Content = getattr(import_module(f"cli.sources.{module}"), function)(place)
    return found
