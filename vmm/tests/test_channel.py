import errno
import os
import socket
from pathlib import Path

import pytest

from hostlib.errors import DeadlineExceeded, FailedPrecondition
from vmm import channel


def test_vsock_is_chosen_where_its_device_opens(tmp_path: Path) -> None:
    assert channel.choose(tmp_path / "vhost-vsock") == channel.SERIAL
    assert channel.choose(tmp_path) == channel.SERIAL
    assert channel.choose(Path("/dev/null")) == channel.VSOCK


def test_a_context_id_is_had_from_the_kernel_or_not_at_all(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(FailedPrecondition) as caught:
        channel.claim(tmp_path / "vhost-vsock")
    assert caught.value.hint
    with pytest.raises(FailedPrecondition, match="context id"):
        channel.claim(Path("/dev/null"))
    assert len(os.listdir("/proc/self/fd")) == before


async def test_a_guest_is_called_until_it_listens() -> None:
    mine, other = socket.socketpair()
    answers = [errno.ECONNRESET, errno.ENODEV, errno.ECONNREFUSED]

    async def dial() -> socket.socket:
        if answers:
            raise OSError(answers.pop(), "not yet")
        return mine

    with mine, other:
        assert await channel.dialled(70000, dial)(5) is mine
    assert not answers


async def test_a_serial_channel_stands_from_the_start() -> None:
    mine, other = socket.socketpair()
    with mine, other:
        assert await channel.connected(mine)(0) is mine


async def test_a_guest_that_never_listens_runs_into_the_limit() -> None:
    async def refuse() -> socket.socket:
        raise ConnectionRefusedError(errno.ECONNREFUSED, "refused")

    with pytest.raises(DeadlineExceeded):
        await channel.dialled(70000, refuse)(0.05)


async def test_a_host_without_vsock_says_so() -> None:
    async def unknown() -> socket.socket:
        raise OSError(errno.EAFNOSUPPORT, "no such family")

    with pytest.raises(FailedPrecondition, match="no such family"):
        await channel.dialled(70000, unknown)(5)
