"""Pulls: of an image that is not there, and of one that is."""

from __future__ import annotations

import gzip
import os
import time

from bench.images import BIG, repository
from bench.session import Session
from demo import oci
from e2e.harness.daemon import PROJECT


def pull(session: Session) -> None:
    """Rows pull_cold, pull_present; the image stays, for other cases."""
    session.extra["big_image"] = _describe()
    for number in session.rounds(3, 1, 80):
        for node in session.nodes:
            if number or node.client.image_status(BIG) is not None:
                node.client.remove_image(BIG)
            os.sync()
            session.quiet(node)
            with session.figures.timed("pull_cold", node.name):
                node.client.pull_image(BIG)
            for _ in range(5):
                with session.figures.timed("pull_present", node.name):
                    node.client.pull_image(BIG)


def _describe() -> dict[str, float]:
    """The image's sizes in MB, and the least that a pull on one core takes: unpacking by zlib."""
    image = oci.load(PROJECT / ".build" / "images" / repository(BIG))
    begun = time.perf_counter()
    raw = sum(len(gzip.decompress(layer.data)) for layer in image.layers)
    return {
        "layers": len(image.layers),
        "compressed_mb": sum(len(layer.data) for layer in image.layers) / 1e6,
        "raw_mb": raw / 1e6,
        "gunzip_ms": (time.perf_counter() - begun) * 1000,
    }
