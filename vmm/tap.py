"""TAP devices, opened by ioctl in the current network namespace."""

from __future__ import annotations

import fcntl
import os
import struct
import threading
from typing import Final

from hostlib import linux
from hostlib.errors import FailedPrecondition, InvalidArgument

_TUNSETIFF: Final = 0x400454CA
_TUNSETPERSIST: Final = 0x400454CB
_IFF_TAP: Final = 0x0002
_IFF_NO_PI: Final = 0x1000
_IFF_VNET_HDR: Final = 0x4000
_NAME_MAX: Final = 15


def open_tap(name: str) -> int:
    """Create (or attach to) the TAP `name`, one queue, with the virtio-net header.

    A TAP that is not persistent goes with its last descriptor. ``%d`` in the name is a number that
    the kernel picks. Raises `FailedPrecondition` where the host has no TUN, or denies it.
    """
    if not name or len(name) > _NAME_MAX:
        raise InvalidArgument(f"an interface name has 1 to {_NAME_MAX} characters: {name!r}")
    try:
        descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise FailedPrecondition(
            f"/dev/net/tun does not open: {error.strerror}", hint="load the tun module; run as root"
        ) from error
    request = struct.pack("16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | _IFF_VNET_HDR)
    try:
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
    except OSError as error:
        os.close(descriptor)
        raise FailedPrecondition(
            f"the TAP {name} cannot be made: {error.strerror}", hint="it needs CAP_NET_ADMIN"
        ) from error
    return descriptor


def leave_to_namespace(descriptor: int) -> None:
    """Let the TAP live on without descriptors, until its network namespace goes.

    Else QEMU's end waits until the kernel has unregistered the device, half of the time that its
    end takes; a namespace is cleaned up behind everybody's back.
    """
    fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)


def open_private_tap() -> int:
    """A TAP in a network namespace of its own, which goes with the descriptor.

    For VMs that need no network, but the device they were baked with.
    """
    found: list[int] = []
    failed: list[Exception] = []

    def work() -> None:
        try:
            linux.unshare(linux.CLONE_NEWNET)
            found.append(open_tap("tap0"))
        except (OSError, FailedPrecondition) as error:
            failed.append(error)

    # A thread of its own: unshare moves the calling thread for good.
    thread = threading.Thread(target=work, name="private-tap")
    thread.start()
    thread.join()
    if failed:
        raise FailedPrecondition(
            f"no private network namespace: {failed[0]}", hint="it needs CAP_SYS_ADMIN"
        ) from failed[0]
    return found[0]
