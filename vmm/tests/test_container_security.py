"""What the agent itself refuses of a container's filter and PID namespace. On real QEMU."""

from __future__ import annotations

import base64
import struct
from typing import Any

import pytest

from hostlib.errors import FailedPrecondition, Internal, InvalidArgument, NotFound
from vmm.tests.containers import Guest


def filtered(*instructions: tuple[int, int, int, int], flags: int = 0) -> dict[str, Any]:
    program = b"".join(struct.pack("=HBBI", *one) for one in instructions)
    return {"seccomp": {"program": base64.b64encode(program).decode(), "flags": flags}}


def space(path: str) -> dict[str, Any]:
    return {"namespaces": [{"type": "mount"}, {"type": "pid", "path": path}]}


ALLOW = (0x06, 0, 0, 0x7FFF0000)


async def test_filters_that_are_none(busybox: Guest) -> None:
    await (await busybox.run(linux=filtered(ALLOW))).delete()
    for wrong in (filtered(), filtered(*[ALLOW] * 4097), filtered(ALLOW, flags=8)):
        with pytest.raises(InvalidArgument, match=r"linux\.seccomp"):
            await busybox.create("true", linux=wrong)
    # The kernel's word: a jump out of the program. The container has ended then.
    with pytest.raises(Internal, match="load the seccomp filter"):
        await busybox.run("true", linux=filtered((0x05, 0, 0, 9), ALLOW))


async def test_pid_namespaces_of_others(busybox: Guest) -> None:
    first = await busybox.run()
    joined = await busybox.run(linux=space(f"container:{first.id}"))
    assert "sleep 600" in await joined.sh("cat /proc/1/cmdline | tr '\\0' ' '")
    with pytest.raises(NotFound):
        await busybox.create("true", linux=space("container:" + "0" * 64))
    with pytest.raises(InvalidArgument, match="pid"):
        await busybox.create("true", linux=space("/proc/1/ns/pid"))
    created = await busybox.create("true")
    with pytest.raises(FailedPrecondition, match="created"):
        await busybox.create("true", linux=space(f"container:{created.id}"))
    for one in (joined, first, created):
        await one.delete()
