"""Connections to the pod's own localhost, carried over the agent's channel."""

from __future__ import annotations

import asyncio
import socket
from typing import Any, Final

from hostlib.errors import ResourceExhausted
from hostlib.tasks import Tasks
from shim.layers import Machine
from shim.relay import Hangups, Outward, break_off, inward

MAX_CONNECTIONS: Final = 1024
"""Of one pod, at a time."""


class Forwards:
    """The connections of one pod."""

    def __init__(self, hangups: Hangups) -> None:
        self._hangups = hangups
        self._tasks = Tasks()

    async def open(self, vm: Machine, port: int, sock: socket.socket) -> None:
        """Connect to `port`; `sock`, which is ours from now on, carries the bytes both ways.

        Raises `Unavailable` when nothing listens there, `ResourceExhausted`.
        """
        try:
            if len(self._tasks) >= MAX_CONNECTIONS:
                raise ResourceExhausted(f"{MAX_CONNECTIONS} connections into the pod are open")
            to_guest, from_guest = vm.agent.open_stream(), vm.agent.open_stream()
            streams = {"input": to_guest.id, "output": from_guest.id}
            try:
                await vm.agent.request("port.connect", {"port": port, "streams": streams})
            except BaseException:
                for stream in (to_guest, from_guest):
                    break_off(stream)
                raise
        except BaseException:
            sock.close()
            raise
        self._tasks.start(self._carry(to_guest, from_guest, sock), f"port {port}")

    async def _carry(self, to_guest: Any, from_guest: Any, sock: socket.socket) -> None:
        def hung_up() -> None:
            break_off(to_guest)
            break_off(from_guest)

        self._hangups.watch(sock, hung_up)
        pumps = [
            asyncio.create_task(inward(sock, to_guest)),
            asyncio.create_task(Outward(from_guest, sock).run()),
        ]
        try:
            await asyncio.wait(pumps)
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.wait(pumps)
            self._hangups.forget(sock)
            sock.close()

    async def close(self) -> None:
        """End them all."""
        await self._tasks.close()
