"""A client and a server of SPDY whose bytes the tests carry from one to the other."""

from __future__ import annotations

from dataclasses import dataclass, field

from cri.streaming.spdy import events
from cri.streaming.spdy.connection import Connection
from cri.streaming.spdy.limits import Limits


@dataclass
class End:
    """One end, what it heard, and what it sent that has not arrived."""

    connection: Connection
    heard: list[events.Event] = field(default_factory=list)
    received: dict[int, bytearray] = field(default_factory=dict)
    wire: bytearray = field(default_factory=bytearray)

    def collect(self) -> None:
        for part in self.connection.data_to_send():
            self.wire += part

    def take(self, data: bytes) -> list[events.Event]:
        new = self.connection.receive_data(data)
        for event in new:
            if isinstance(event, events.DataReceived):
                self.received.setdefault(event.stream_id, bytearray()).extend(event.data)
        self.heard += new
        return new


class Pair:
    def __init__(self, *, windows: bool = False, limits: Limits | None = None) -> None:
        self.client = End(Connection(client=True, limits=limits))
        self.server = End(Connection(client=False, limits=limits))
        if windows:
            self.client.connection.announce_windows()

    def carry(self, *, to_server: bool, most: int = 1 << 30) -> list[events.Event]:
        """Lets up to so many bytes arrive."""
        sender, receiver = (self.client, self.server) if to_server else (self.server, self.client)
        sender.collect()
        data = bytes(sender.wire[:most])
        del sender.wire[:most]
        return receiver.take(data)

    def settle(self) -> None:
        """Lets everything arrive."""
        while True:
            self.carry(to_server=True)
            self.carry(to_server=False)
            self.client.collect()
            self.server.collect()
            if not self.client.wire and not self.server.wire:
                return

    def opened(self, **headers: str) -> int:
        """A stream that the client opened and the server has accepted."""
        stream_id = self.client.connection.open_stream(headers)
        self.settle()
        self.server.connection.reply(stream_id)
        self.settle()
        return stream_id
