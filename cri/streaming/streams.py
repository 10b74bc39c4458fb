"""The streams of a client, whatever the protocol, as pumps and sessions see them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, Protocol

PIECE: Final = 256 * 1024
"""Bytes that are read and sent at a time, at most."""

Bytes = bytes | bytearray | memoryview


class Sink(Protocol):
    """Takes what comes from a client on one stream.

    `receive` must use the data, or copy them, before it returns, and say by `ClientStream.taken`
    when they have left.
    """

    def receive(self, data: Bytes) -> None: ...

    def ended(self) -> None:
        """The client sends no more; it may go on receiving."""
        ...

    def broken(self) -> None:
        """The stream is over both ways."""
        ...


class ClientStream(ABC):
    """One stream between the server and a client. What comes before `attach` is kept."""

    half_closes = True
    """Whether either side can end it in its own direction."""

    def __init__(self) -> None:
        self._sink: Sink | None = None
        self._early = bytearray()
        self._over: Callable[[Sink], None] | None = None

    @abstractmethod
    def room(self) -> int:
        """How many bytes may be sent now, at most `PIECE`; see `when_room` for 0."""

    @abstractmethod
    def send(self, data: Bytes) -> None:
        """Sends so much as `room` allows; nothing when the client or the stream is gone.

        The data may change once it returns.
        """

    @abstractmethod
    def end(self) -> None:
        """Nothing more will be sent. Idempotent."""

    @abstractmethod
    def when_room(self, wake: Callable[[], None]) -> None:
        """Calls `wake`, once, when `room` may be more than 0 again; never if the client leaves."""

    @abstractmethod
    def taken(self, count: int) -> None:
        """The sink is done with `count` bytes."""

    def attach(self, sink: Sink) -> None:
        """From now on what comes goes to `sink`, beginning with what has come."""
        self._sink = sink
        early, self._early = self._early, bytearray()
        if early:
            sink.receive(early)
        if self._over is not None:
            self._over(sink)

    def deliver(self, data: Bytes) -> None:
        """The client sent something. (Its wire bounds what may be untaken.)"""
        if self._sink is None:
            self._early += data
        else:
            self._sink.receive(data)

    def deliver_end(self) -> None:
        self._finish(lambda sink: sink.ended())

    def deliver_break(self) -> None:
        self._finish(lambda sink: sink.broken())

    def _finish(self, tell: Callable[[Sink], None]) -> None:
        self._over = tell
        if self._sink is not None:
            tell(self._sink)


class Discard:
    """The sink of a stream that nobody reads."""

    def __init__(self, stream: ClientStream) -> None:
        self._stream = stream

    def receive(self, data: Bytes) -> None:
        self._stream.taken(len(data))

    def ended(self) -> None:
        pass

    def broken(self) -> None:
        pass
