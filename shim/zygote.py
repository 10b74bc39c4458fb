"""The zygote: one small process, everything imported, that forks shims and bake processes.

Single-threaded and without an event loop of its own while it waits, so that a fork is safe. It
holds nothing that anyone needs: when its control socket ends, it ends, and the shims live on.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from hostlib import failpoint, linux
from hostlib import log as logs
from hostlib.errors import InvalidArgument, ThawError, Unavailable
from shim import bake, process, protocol, records
from shim.protocol import Message, Wire
from shim.server import choose_version
from vmm import ram, snapshot
from vmm.qemu.build import identify

log = logging.getLogger(__name__)

_PIDS: Final = struct.Struct("<iq")


def _close_foreign(keep: Sequence[int]) -> None:
    """Close every descriptor but standard ones and those in `keep`."""
    low = 3
    for fd in sorted(set(keep)):
        os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, max((int(name) for name in os.listdir("/proc/self/fd")), default=low) + 1)


def fork_daemon(work: Callable[[], int], keep: Sequence[int]) -> tuple[int, int]:
    """Run `work` in a grandchild, a session of its own; its pid and start time.

    The child between them is reaped here, so that the grandchild belongs to init and outlives this
    process. Raises `Unavailable` when the kernel forks no more.
    """
    reader, writer = os.pipe()
    try:
        child = os.fork()
    except OSError as error:
        os.close(reader)
        os.close(writer)
        raise Unavailable(f"cannot fork: {error.strerror}") from error
    if child == 0:
        _in_child(work, keep, writer)
    os.close(writer)
    try:
        data = b""
        while len(data) < _PIDS.size and (part := os.read(reader, _PIDS.size - len(data))):
            data += part
    finally:
        os.close(reader)
        os.waitpid(child, 0)
    if len(data) < _PIDS.size:
        raise Unavailable("a forked process died at once")
    pid, start_time = _PIDS.unpack(data)
    return pid, start_time


def _in_child(work: Callable[[], int], keep: Sequence[int], writer: int) -> None:
    code = 1
    try:
        os.setsid()
        if os.fork() == 0:
            pid = os.getpid()
            os.write(writer, _PIDS.pack(pid, linux.start_time(pid) or 0))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
                signal.signal(
                    number, signal.SIG_IGN if number == signal.SIGPIPE else signal.SIG_DFL
                )
            os.close(writer)
            _close_foreign(keep)
            code = work()
        else:
            code = 0
    except BaseException:
        # Nobody above this frame may run in a forked process.
        logging.getLogger(__name__).exception("forked process failed")
    finally:
        logging.shutdown()
        os._exit(code)


def _spawn(message: Message, params: Wire) -> tuple[Wire, list[int]]:
    if len(message.fds) != 2:
        raise InvalidArgument("spawn takes a control socket and the RAM")
    control, memory = message.fds
    vm_id, folder = str(params.get("vm_id")), Path(str(params.get("dir")))
    config = records.from_dict(records.ShimConfig, params.get("config"))
    if not folder.is_dir():
        raise InvalidArgument(f"{folder} is no folder")
    # Cached for every shim forked from here on: it runs a command and hashes the binary.
    asyncio.run(identify(config.qemu))
    pid, start = fork_daemon(
        lambda: process.main(vm_id, folder, config, control, memory), (control, memory)
    )
    return {"pid": pid, "start_time": start}, []


def _bake(message: Message, params: Wire) -> tuple[Wire, list[int]]:
    if len(message.fds) != 1:
        raise InvalidArgument("bake takes a control socket")
    control = message.fds[0]
    request = records.from_dict(bake.BakeRequest, params)
    pid, start = fork_daemon(lambda: bake.main(request, control), (control,))
    return {"pid": pid, "start_time": start}, []


def _load(_message: Message, params: Wire) -> tuple[Wire, list[int]]:
    async def work() -> tuple[str, int]:
        found = await snapshot.load(Path(str(params.get("path"))))
        return found.key, await ram.load(found)

    key, descriptor = asyncio.run(work())
    return {"key": key}, [descriptor]


def _verify(message: Message, params: Wire) -> tuple[Wire, list[int]]:
    if len(message.fds) != 1:
        raise InvalidArgument("verify takes the RAM")

    async def work() -> bool:
        try:
            found = await snapshot.load(Path(str(params.get("path"))))
            await ram.verify_fd(message.fds[0], found)
        except ThawError as error:
            log.warning("RAM of another process is not used: %s", error)
            return False
        return found.key == params.get("key")

    return {"valid": asyncio.run(work())}, []


_METHODS: Final = {"spawn": _spawn, "bake": _bake, "load": _load, "verify": _verify}


def _answer(message: Message) -> tuple[Wire, list[int]]:
    number = message.header.get("id", 0)
    method, params = message.header.get("method"), message.header.get("params")
    try:
        if not isinstance(params, dict):
            raise InvalidArgument("params is no object")
        if method == "hello":
            return {"id": number, "result": choose_version(params)}, []
        handler = _METHODS.get(str(method))
        if handler is None:
            raise InvalidArgument(f"the zygote has no method {method!r}")
        result, fds = handler(message, params)
        return {"id": number, "result": result}, fds
    except Exception as error:
        if not isinstance(error, ThawError):
            log.exception("%s failed", method)
        return protocol.failure(number, error), []


def serve(sock: socket.socket) -> None:
    """Answer requests until the other end closes."""
    while (message := protocol.receive_blocking(sock)) is not None:
        header, fds = _answer(message)
        try:
            protocol.send_blocking(sock, header, fds=fds)
        finally:
            message.close()
            protocol.close_all(fds)
            gc.freeze()


def main() -> int:
    """The zygote's process."""
    parser = argparse.ArgumentParser(prog="shim.zygote")
    parser.add_argument("--fd", type=int, default=3)
    parser.add_argument("--log-level", default="info", choices=logs.LEVELS)
    arguments = parser.parse_args()
    logs.setup(arguments.log_level, process="zygote")
    linux.set_process_name("thaw-zygote")
    failpoint.load_environment()
    sock = socket.socket(fileno=arguments.fd)
    sock.set_inheritable(False)
    records.preload()
    # No collection in shims before they have objects of their own: it would touch shared pages.
    gc.collect()
    gc.freeze()
    gc.disable()
    # The interpreter's cache of attributes holds names of all that was imported: a shim that puts
    # its own in their place would write on each name's page.
    sys._clear_type_cache()
    with contextlib.suppress(protocol.Closed, ConnectionError):
        serve(sock)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
