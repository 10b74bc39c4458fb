"""The daemon's side of the shim protocol: clients for shims, the zygote and bake processes."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from hostlib import errors, failpoint, ids
from hostlib.errors import DeadlineExceeded, Internal, ThawError, Unavailable
from hostlib.process import ENVIRONMENT
from hostlib.tasks import Tasks
from shim import protocol, records
from shim.protocol import VERSIONS, Closed, Connection, NotSent, Wire

log = logging.getLogger(__name__)

HELLO_TIMEOUT: Final = 10.0
"""Seconds for a peer to greet; a shim that was just forked loads nothing, it answers in 50 ms."""

START_TIMEOUT: Final = 60.0
"""Seconds for the zygote to greet: it loads all that shims need, after a boot from a cold disk and
while everything else starts."""

_RESTART_DELAY: Final = 0.2
_RESTART_DELAY_MAX: Final = 10.0
_END_TIMEOUT: Final = 5.0
_RETRY_DELAY: Final = 0.05

EventHandler = Callable[[Wire], None]


@dataclass(frozen=True)
class Reply:
    """An answer; whoever takes it owns its descriptors."""

    result: Wire
    body: bytes = b""
    fds: tuple[int, ...] = ()


class ShimClient:
    """A connection to a shim. Calls may overlap; each waits for its own answer.

    Events go to `on_event` in the order in which they came, `ready` and `failed` besides to
    `wait_ready`. `closed` is done when the connection is over; every call under way then fails
    with `Unavailable`.
    """

    def __init__(self, sock: socket.socket, on_event: EventHandler | None = None) -> None:
        self._connection = Connection(sock)
        self._on_event = on_event
        self._calls: dict[int, asyncio.Future[Reply]] = {}
        self._next = 1
        loop = asyncio.get_running_loop()
        self.closed: asyncio.Future[None] = loop.create_future()
        self._ready: asyncio.Future[Wire] = loop.create_future()
        self._reader = asyncio.create_task(self._read(), name="shim client")

    @classmethod
    async def connect(
        cls,
        path: str | os.PathLike[str],
        *,
        on_event: EventHandler | None = None,
        timeout: float = HELLO_TIMEOUT,
    ) -> ShimClient:
        """Connect to a shim's socket and greet it.

        Raises `Unavailable` when nothing listens there, `DeadlineExceeded` when nothing answers.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        sock.setblocking(False)
        try:
            async with asyncio.timeout(timeout):
                await asyncio.get_running_loop().sock_connect(sock, os.fspath(path))
            protocol.check_peer(sock)
        except TimeoutError as error:
            sock.close()
            raise DeadlineExceeded(f"{path} takes no connection") from error
        except OSError as error:
            sock.close()
            raise Unavailable(f"cannot connect to {path}: {error.strerror}") from error
        except BaseException:
            sock.close()
            raise
        return await cls.from_socket(sock, on_event=on_event, timeout=timeout)

    @classmethod
    async def from_socket(
        cls,
        sock: socket.socket,
        *,
        on_event: EventHandler | None = None,
        timeout: float = HELLO_TIMEOUT,
    ) -> ShimClient:
        """Greet the peer at the other end of `sock`, which is the client's from now on."""
        client = cls(sock, on_event)
        try:
            reply = await client.call("hello", {"protocol": list(VERSIONS)}, timeout=timeout)
            if reply.result.get("protocol") not in VERSIONS:
                raise Internal(f"the peer chose protocol {reply.result.get('protocol')!r}")
        except BaseException:
            await client.close()
            raise
        return client

    async def call(
        self,
        method: str,
        params: Wire | None = None,
        fds: Sequence[int] = (),
        body: bytes = b"",
        timeout: float | None = None,
    ) -> Reply:
        """Call `method` and wait for its answer, at most `timeout` seconds.

        Raises what the peer answered, `Unavailable` when the connection ends, and
        `DeadlineExceeded`. A caller that gives up leaves the request running at the peer.
        """
        if self.closed.done():
            raise NotSent("the connection to the shim is closed")
        number = self._next
        self._next += 1
        future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self._calls[number] = future
        try:
            async with asyncio.timeout(timeout):
                await self._connection.send(
                    protocol.request(number, method, params or {}), body, fds
                )
                return await future
        except TimeoutError as error:
            raise DeadlineExceeded(f"{method} took longer than {timeout:g} s") from error
        finally:
            self._calls.pop(number, None)
            if future.done() and not future.cancelled():
                future.exception()

    async def wait_ready(self, timeout: float | None = None) -> Wire:
        """The event `ready`; raises the error in `failed`, `Unavailable`, `DeadlineExceeded`."""
        try:
            async with asyncio.timeout(timeout):
                return await asyncio.shield(self._ready)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the shim was not ready within {timeout:g} s") from error

    async def close(self) -> None:
        """End the connection; idempotent."""
        self._connection.close()
        await asyncio.wait([self._reader])

    async def _read(self) -> None:
        error: ThawError = Closed("the shim closed the connection")
        try:
            while (message := await self._connection.receive()) is not None:
                self._take(message)
        except ThawError as problem:
            error = problem
        finally:
            self._connection.close()
            if not self.closed.done():
                self.closed.set_result(None)
            for future in self._calls.values():
                if not future.done():
                    future.set_exception(error)
            if not self._ready.done():
                self._ready.set_exception(error)
            if not self._ready.cancelled():
                self._ready.exception()

    def _take(self, message: protocol.Message) -> None:
        header = message.header
        if "event" in header:
            message.close()
            self._event(header)
            return
        number = header.get("id")
        future = self._calls.get(number) if isinstance(number, int) else None
        if future is None or future.done():
            message.close()
        elif "error" in header:
            message.close()
            future.set_exception(errors.from_dict(header["error"]))
        else:
            result = header.get("result")
            future.set_result(
                Reply(result if isinstance(result, dict) else {}, message.body, message.fds)
            )

    def _event(self, event: Wire) -> None:
        if not self._ready.done():
            if event["event"] == "ready":
                self._ready.set_result(event)
            elif event["event"] == "failed":
                self._ready.set_exception(errors.from_dict(event.get("error")))
                self._ready.exception()
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception:
                log.exception("handler of event %s failed", event["event"])


@dataclass(frozen=True)
class SpawnedShim:
    """A shim that was just forked; `client.wait_ready` says when its VM stands."""

    vm_id: str
    pid: int
    start_time: int
    client: ShimClient


class ZygoteClient:
    """Runs the zygote, and starts it anew when it dies.

    A call that finds it dead waits for the next one; a call that it dies under fails with
    `Unavailable` and can be repeated.
    """

    def __init__(self, *, log_level: str = "info") -> None:
        self._log_level = log_level
        self._tasks = Tasks()
        self._client: ShimClient | None = None
        self._started = asyncio.Event()
        self._stopping = False
        self.pid = 0

    async def start(self) -> None:
        """Start the zygote. Raises `Unavailable` when it does not come up in a minute."""
        self._stopping = False
        self._tasks.start(self._supervise(), "zygote supervisor")
        try:
            async with asyncio.timeout(START_TIMEOUT):
                await self._started.wait()
        except TimeoutError as error:
            await self.stop()
            raise Unavailable("the zygote does not start; see the daemon's log") from error

    async def stop(self) -> None:
        """End the zygote; the shims that it forked live on. Idempotent."""
        self._stopping = True
        await self._tasks.close()

    async def _supervise(self) -> None:
        delay = _RESTART_DELAY
        while not self._stopping:
            try:
                await self._run_once()
                delay = _RESTART_DELAY
            except (ThawError, OSError) as error:
                log.error("zygote: %s", error)
            log.warning("the zygote ended; another starts in %.1f s", delay)
            await asyncio.sleep(delay)
            delay = min(delay * 2, _RESTART_DELAY_MAX)

    async def _run_once(self) -> None:
        ours, theirs = socket.socketpair()
        # One heap however many threads: an arena for each would cost every shim its own pages.
        environment = {**ENVIRONMENT, "MALLOC_ARENA_MAX": "1", "MALLOC_TRIM_THRESHOLD_": "65536"}
        for name in (failpoint.ENV, failpoint.ENV_FILE):
            if name in os.environ:
                environment[name] = os.environ[name]
        try:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "shim.zygote"),
                *("--fd", str(theirs.fileno()), "--log-level", self._log_level),
                stdin=asyncio.subprocess.DEVNULL,
                env=environment,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
                cwd="/",
            )
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        client: ShimClient | None = None
        try:
            client = await ShimClient.from_socket(ours, timeout=START_TIMEOUT)
            self.pid = process.pid
            self._client = client
            self._started.set()
            await client.closed
        finally:
            self._started.clear()
            self._client = None
            if client is not None:
                await client.close()
            else:
                ours.close()
            # The end of the connection is its end. Not killed at once: a kill that meets a process
            # which has just ended takes its exit code away from asyncio.
            ended = asyncio.ensure_future(process.wait())
            await asyncio.wait([ended], timeout=_END_TIMEOUT)
            if not ended.done():
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await ended

    async def call(
        self, method: str, params: Wire, fds: Sequence[int] = (), timeout: float = 60.0
    ) -> Reply:
        """Call the zygote, waiting for it where it is just being started."""
        try:
            async with asyncio.timeout(timeout):
                while True:
                    await self._started.wait()
                    try:
                        if self._client is not None:
                            return await self._client.call(method, params, fds)
                    except NotSent:
                        # Dead, and not yet known to be.
                        log.info("%s waits for the next zygote", method)
                    await asyncio.sleep(_RETRY_DELAY)
        except TimeoutError as error:
            raise DeadlineExceeded(f"the zygote did not carry out {method}") from error

    async def spawn(
        self,
        vm_id: str,
        folder: Path,
        config: records.ShimConfig,
        ram: int,
        *,
        on_event: EventHandler | None = None,
    ) -> SpawnedShim:
        """Fork a shim that keeps its state in `folder`, which exists; `ram` is its sealed memfd.

        The caller keeps `ram`. Returns as soon as the shim speaks, before its VM stands.
        """
        params = {"vm_id": vm_id, "dir": str(folder), "config": records.to_dict(config)}
        reply, client = await self._child("spawn", params, (ram,), on_event)
        return SpawnedShim(vm_id, int(reply.result["pid"]), int(reply.result["start_time"]), client)

    async def _child(
        self, method: str, params: Wire, fds: Sequence[int], on_event: EventHandler | None
    ) -> tuple[Reply, ShimClient]:
        ours, theirs = socket.socketpair()
        try:
            reply = await self.call(method, params, (theirs.fileno(), *fds))
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()
        return reply, await ShimClient.from_socket(ours, on_event=on_event)

    async def bake(
        self,
        *,
        guest_dir: Path,
        snapshots_dir: Path,
        shape: Wire,
        accel: str,
        qemu: str,
        uid_base: int = ids.WORKER_UID_BASE,
        on_progress: Callable[[str, float], None] | None = None,
    ) -> Wire:
        """Bake a base snapshot, unless it is there, and return the event `baked`.

        Raises what the bake process reports. A caller that is cancelled ends the bake process.
        """
        done: asyncio.Future[Wire] = asyncio.get_running_loop().create_future()

        def event(message: Wire) -> None:
            if message["event"] == "progress" and on_progress is not None:
                on_progress(str(message.get("phase")), float(message.get("fraction") or 0.0))
            elif message["event"] == "baked" and not done.done():
                done.set_result(message)
            elif message["event"] == "failed" and not done.done():
                done.set_exception(errors.from_dict(message.get("error")))

        params: dict[str, Any] = {
            "guest_dir": str(guest_dir),
            "snapshots_dir": str(snapshots_dir),
            "shape": shape,
            "accel": accel,
            "qemu": qemu,
            "uid_base": uid_base,
        }
        _, client = await self._child("bake", params, (), event)
        try:
            waited: list[asyncio.Future[Any]] = [done, client.closed]
            await asyncio.wait(waited, return_when=asyncio.FIRST_COMPLETED)
            if not done.done():
                raise Unavailable("the bake process died", hint="see the daemon's log")
            return done.result()
        finally:
            done.cancel()
            await client.close()

    async def load(self, snapshot: Path) -> tuple[str, int]:
        """The key of `snapshot` and a sealed memfd of its RAM, which the caller owns."""
        reply = await self.call("load", {"path": str(snapshot)}, timeout=300.0)
        if len(reply.fds) != 1:
            protocol.close_all(reply.fds)
            raise Internal("the zygote sent no RAM")
        return str(reply.result["key"]), reply.fds[0]

    async def verify(self, snapshot: Path, key: str, ram: int) -> bool:
        """Whether `ram` is the sealed, unchanged RAM of `snapshot`, whose key is `key`."""
        params = {"path": str(snapshot), "key": key}
        reply = await self.call("verify", params, (ram,), timeout=300.0)
        return reply.result.get("valid") is True
