"""Carries bytes between a client's stream and a socket, one direction each.

They are callbacks, not tasks: a piece costs a system call on either side and no switch. The socket
belongs to whoever made the pumps, who closes it when both are done.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final

from cri.streaming.streams import PIECE, Bytes, ClientStream

# One buffer for all: a piece has left it before the next one is read.
_BUFFER: Final = memoryview(bytearray(PIECE))


class Outflow:
    """From a socket to the client, until the socket's end. `done` when that was passed on.

    The socket is not read while the client takes nothing, so that whoever writes to it waits. It is
    the sink of a stream that has no other: what the client sends there is dropped.
    """

    def __init__(self, sock: socket.socket, stream: ClientStream) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._stream = stream
        self._watching = False
        self.done: asyncio.Future[None] = self._loop.create_future()
        self._watch()

    def _watch(self) -> None:
        if not self._watching:
            self._watching = True
            self._loop.add_reader(self._sock, self._step)

    def _unwatch(self) -> None:
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._sock)

    def _step(self) -> None:
        if self.done.done():
            return
        room = self._stream.room()
        if room <= 0:
            self._unwatch()
            # To read at once then, in the order in which streams ran out of room, is to be fair.
            self._stream.when_room(self._step)
            return
        try:
            count = self._sock.recv_into(_BUFFER, room)
        except (BlockingIOError, InterruptedError):
            self._watch()
            return
        except OSError:
            # Reset by the other end: what it had sent before was read.
            count = 0
        if count:
            self._stream.send(_BUFFER[:count])
            self._watch()
        else:
            self._stream.end()
            self.stop()

    def receive(self, data: Bytes) -> None:
        self._stream.taken(len(data))

    def ended(self) -> None:
        pass

    def broken(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Carries no more. Idempotent."""
        self._unwatch()
        if not self.done.done():
            self.done.set_result(None)


class Inflow:
    """From the client to a socket, until the client's end; the sink of `stream`. `on_break` is
    called when the client breaks the stream off.

    `done` when the last byte and the end have been passed on, or when the socket's other end takes
    no more: then what still comes is dropped, as a shell drops what is written to a closed pipe.
    With `watch` that is seen without a write, too; the socket must not be read by others then.
    """

    def __init__(
        self,
        sock: socket.socket,
        stream: ClientStream,
        *,
        watch: bool = False,
        on_break: Callable[[], None] = lambda: None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._stream = stream
        self._on_break = on_break
        self._backlog = bytearray()
        self._writing = False
        self._ending = False
        self._watching = watch
        self.done: asyncio.Future[None] = self._loop.create_future()
        self.closed: asyncio.Future[None] = self._loop.create_future()
        """Done when the socket's other end is known to take no more."""
        if watch:
            self._loop.add_reader(sock, self._look)
        stream.attach(self)

    def receive(self, data: Bytes) -> None:
        size = len(data)
        sent = 0
        if not self._backlog and not self.done.done():
            sent = self._send(data)
        if self.done.done():
            self._stream.taken(size)
            return
        if sent < size:
            self._backlog += memoryview(data)[sent:]
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._sock, self._flush)
        if sent:
            self._stream.taken(sent)

    def _send(self, data: Bytes) -> int:
        try:
            return self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self._refused()
            return 0

    def _flush(self) -> None:
        sent = self._send(self._backlog)
        if self.done.done():
            return
        del self._backlog[:sent]
        if not self._backlog:
            self._stop_writing()
            if self._ending:
                self._pass_end()
        if sent:
            self._stream.taken(sent)

    def _look(self) -> None:
        try:
            if self._sock.recv(4096):
                return
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            pass
        self._refused()

    def ended(self) -> None:
        self._ending = True
        if not self._backlog and not self.done.done():
            self._pass_end()

    def _pass_end(self) -> None:
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._refused()
        self._finish()

    def _refused(self) -> None:
        if not self.closed.done():
            self.closed.set_result(None)
        self.stop()

    def broken(self) -> None:
        self.stop()
        self._on_break()

    def _stop_writing(self) -> None:
        if self._writing:
            self._writing = False
            self._loop.remove_writer(self._sock)

    def _finish(self) -> None:
        self._stop_writing()
        if not self.done.done():
            self.done.set_result(None)

    def stop(self) -> None:
        """Carries no more; what waits is dropped. Idempotent."""
        self._finish()
        if self._watching:
            self._watching = False
            self._loop.remove_reader(self._sock)
        waiting = len(self._backlog)
        self._backlog = bytearray()
        if waiting:
            self._stream.taken(waiting)
