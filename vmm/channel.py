"""The agent's channel: a virtio-serial port, or vsock where the host has vhost for it.

Both end as a connected stream socket, which is all that `vmm.agent.client` knows of them. A VM
keeps the channel with which it was baked: the guest's devices and kernel command line name it.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from hostlib.errors import DeadlineExceeded, FailedPrecondition, ResourceExhausted

SERIAL: Final = "serial"
VSOCK: Final = "vsock"

PORT: Final = 1024
"""The vsock port on which the agent listens."""

_VHOST: Final = Path("/dev/vhost-vsock")
_SET_GUEST_CID: Final = 0x4008AF60
"""_IOW(VHOST_VIRTIO, 0x60, __u64) of linux/vhost.h."""

_FIRST_CID: Final = 1 << 16
_CIDS: Final = 1 << 31
_ATTEMPTS: Final = 16
_RETRY: Final = 0.02
_DIAL_TIMEOUT: Final = 1.0

_NOT_YET: Final = frozenset(
    {errno.ECONNREFUSED, errno.ECONNRESET, errno.ENODEV, errno.ENETUNREACH, errno.ETIMEDOUT}
)
"""What a connection meets while the guest has no listener: it boots, or its device just reset."""

Dial = Callable[[], Awaitable[socket.socket]]
Open = Callable[[float], Awaitable[socket.socket]]
"""Gives the connected socket within so many seconds, or raises `DeadlineExceeded`."""


def choose(vhost: Path = _VHOST) -> str:
    """`VSOCK` where vhost-vsock opens, else `SERIAL`. /dev/vsock alone serves no guests."""
    try:
        os.close(os.open(vhost, os.O_RDWR | os.O_CLOEXEC))
    except OSError:
        return SERIAL
    return VSOCK


def claim(vhost: Path = _VHOST) -> tuple[int, int]:
    """A vhost-vsock descriptor for QEMU, and the context id that the kernel reserves for it.

    The id is free again when the last copy of the descriptor is closed. Raises
    `FailedPrecondition` when the device does not open, `ResourceExhausted` when no id is free.
    """
    try:
        descriptor = os.open(vhost, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise FailedPrecondition(
            f"{vhost} does not open: {error.strerror}", hint="modprobe vhost_vsock"
        ) from error
    try:
        for _ in range(_ATTEMPTS):
            cid = _FIRST_CID + secrets.randbelow(_CIDS - _FIRST_CID)
            try:
                fcntl.ioctl(descriptor, _SET_GUEST_CID, struct.pack("=Q", cid))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise FailedPrecondition(
                        f"{vhost} gives no context id: {error.strerror}"
                    ) from error
            else:
                return descriptor, cid
        raise ResourceExhausted("no vsock context id is free")
    except BaseException:
        os.close(descriptor)
        raise


def connected(sock: socket.socket) -> Open:
    """The channel whose socket is connected from the start: a virtio-serial port's."""

    async def give(_: float) -> socket.socket:
        return sock

    return give


async def _dial_vsock(cid: int) -> socket.socket:
    sock = socket.socket(socket.AF_VSOCK, socket.SOCK_STREAM)
    sock.setblocking(False)
    try:
        async with asyncio.timeout(_DIAL_TIMEOUT):
            await asyncio.get_running_loop().sock_connect(sock, (cid, PORT))
    except BaseException:
        sock.close()
        raise
    return sock


async def _try(dial: Dial, cid: int) -> socket.socket | None:
    """One attempt; None when the guest does not listen yet."""
    try:
        return await dial()
    except TimeoutError:
        return None
    except OSError as error:
        if error.errno in _NOT_YET:
            return None
        raise FailedPrecondition(f"vsock to guest {cid} fails: {error.strerror}") from error


def dialled(cid: int, dial: Dial | None = None) -> Open:
    """The channel that is connected when it is wanted: vsock, tried until the agent listens."""

    async def give(timeout: float) -> socket.socket:
        try:
            async with asyncio.timeout(timeout):
                while True:
                    sock = await _try(dial or (lambda: _dial_vsock(cid)), cid)
                    if sock is not None:
                        return sock
                    await asyncio.sleep(_RETRY)
        except TimeoutError as error:
            raise DeadlineExceeded(
                f"the guest's agent did not answer within {timeout:g} s"
            ) from error

    return give
