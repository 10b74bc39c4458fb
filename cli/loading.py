"""An image that this side has, sent to the daemon as it asks for it."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from typing import Any

from cli.sources.content import Content
from cri.api import thaw_pb2 as api
from hostlib.errors import ThawError


def converse(
    call: Callable[[Iterator[api.LoadRequest]], Any], content: Content, *, pin: bool
) -> Iterator[api.PullProgress]:
    """Make the `call` of Load; its progress. Ends with the call, or ends it. Raises RpcError."""
    # The daemon asks for one blob at a time.
    wanted: queue.Queue[str | None] = queue.Queue()
    answers = call(_requests(content, wanted, pin))
    try:
        for answer in answers:
            if answer.WhichOneof("part") == "wanted":
                wanted.put(answer.wanted)
            else:
                yield answer.progress
    finally:
        wanted.put(None)
        answers.cancel()


def _requests(
    content: Content, wanted: queue.Queue[str | None], pin: bool
) -> Iterator[api.LoadRequest]:
    yield api.LoadRequest(
        start=api.LoadStart(
            names=content.names,
            digest=content.digest,
            media_type=content.media_type,
            registry_digest=content.registry_digest,
            source=content.source,
            pin=pin,
        )
    )
    while (digest := wanted.get()) is not None:
        try:
            for piece in content.pieces(digest):
                yield api.LoadRequest(data=api.LoadData(data=piece))
        except (ThawError, OSError) as error:
            yield api.LoadRequest(data=api.LoadData(error=str(error)[:1000]))
            return
        yield api.LoadRequest(data=api.LoadData(last=True))
