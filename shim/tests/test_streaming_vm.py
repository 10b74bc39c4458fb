"""Streams of execs, attached clients and forwarded connections, through a real shim and VM."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from hostlib import ids
from hostlib.errors import FailedPrecondition, NotFound, Unavailable
from shim import records
from shim.records import ContainerMetadata, ContainerRecord
from shim.tests.test_vm import VM, Host, points, running_host, snapshots
from vmm.rehearse import process, spec
from vmm.tests.containers import busybox_layer

__all__ = ["points", "snapshots"]

LIMIT = 60.0

pytestmark = pytest.mark.timeout(120)


def pair() -> tuple[socket.socket, socket.socket]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    return ours, theirs


async def everything(sock: socket.socket) -> bytes:
    said = bytearray()
    async with asyncio.timeout(LIMIT):
        with contextlib.suppress(ConnectionResetError):
            while piece := await asyncio.get_running_loop().sock_recv(sock, 1 << 18):
                said += piece
    return bytes(said)


async def until(sock: socket.socket, text: bytes) -> bytes:
    said = bytearray()
    async with asyncio.timeout(LIMIT):
        while text not in said:
            piece = await asyncio.get_running_loop().sock_recv(sock, 1 << 18)
            assert piece, bytes(said)
            said += piece
    return bytes(said)


async def send(sock: socket.socket, data: bytes) -> None:
    async with asyncio.timeout(LIMIT):
        await asyncio.get_running_loop().sock_sendall(sock, data)


@dataclass
class Exec:
    name: str
    stdin: socket.socket
    stdout: socket.socket
    stderr: socket.socket


@dataclass
class Pod:
    vm: VM
    layer: Path
    socks: list[socket.socket] = field(default_factory=list)

    async def container(self, script: str, **changes: Any) -> str:
        container = await self.created(script, **changes)
        await self.start(container)
        return container

    async def start(self, container: str) -> None:
        await self.vm.client.call("container.start", {"id": container})

    async def created(self, script: str, **changes: Any) -> str:
        container = ids.new_object_id()
        record = ContainerRecord(
            container, self.vm.pod_id, ContainerMetadata("c"), time.time_ns(),
            log_path=str(self.vm.folder / f"{container[:8]}.log"), **changes,
        )  # fmt: skip
        await self.vm.client.call(
            "container.create",
            {
                "container": records.to_dict(record),
                "spec": spec("/bin/sh", "-c", script),
                "layers": [{"name": "busybox", "path": str(self.layer)}],
                "mounts": [],
            },
        )
        return container

    async def ask(self, method: str, names: list[str], **params: Any) -> Any:
        """Call with a socket for each name; the answer and our ends."""
        pairs = {name: pair() for name in names}
        self.socks += [ours for ours, _ in pairs.values()]
        try:
            if method != "forward.open":
                params["streams"] = names
            fds = tuple(theirs.fileno() for _, theirs in pairs.values())
            reply = await self.vm.client.call(method, params, fds)
        finally:
            for _, theirs in pairs.values():
                theirs.close()
        return reply.result, {name: ours for name, (ours, _) in pairs.items()}

    async def exec(self, container: str, script: str, *, terminal: bool = False) -> Exec:
        names = ["stdin", "stdout"] if terminal else ["stdin", "stdout", "stderr"]
        plan = process("/bin/sh", "-c", script)
        told, ends = await self.ask(
            "exec.open", names, container=container, process=plan, terminal=terminal
        )
        return Exec(told["exec"], ends["stdin"], ends["stdout"], ends.get("stderr", ends["stdout"]))

    async def code(self, name: str) -> int:
        reply = await self.vm.client.call("exec.wait", {"exec": name}, timeout=LIMIT)
        return int(reply.result["exit_code"])

    async def sh(self, container: str, script: str) -> str:
        code, said = await self.vm.exec(container, "/bin/sh", "-c", script)
        assert code == 0, said
        return said.decode()


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layer") / "busybox.squashfs"
    asyncio.run(busybox_layer(path))
    return path


@pytest.fixture
async def pod(points: Path, tmp_path: Path, snapshots: Path, layer: Path) -> AsyncIterator[Pod]:
    async with running_host(tmp_path, snapshots) as host:
        vm = await Host.spawn(host)
        await vm.ready()
        await vm.bind()
        found = Pod(vm, layer)
        yield found
        for sock in found.socks:
            sock.close()


async def test_an_exec_has_streams_of_its_own(pod: Pod) -> None:
    box = await pod.container("sleep 600")
    one = await pod.exec(box, "cat; echo bad >&2; exit 7")
    data = os.urandom(5_000_000)
    copying = asyncio.create_task(everything(one.stdout))
    await send(one.stdin, data)
    one.stdin.shutdown(socket.SHUT_WR)
    assert hashlib.sha256(await copying).digest() == hashlib.sha256(data).digest()
    assert await everything(one.stderr) == b"bad\n"
    assert await pod.code(one.name) == 7
    with pytest.raises(NotFound):
        await pod.code(one.name)

    with pytest.raises(NotFound, match="/bin/nothing"):
        await pod.ask("exec.open", ["stdout"], container=box, process=process("/bin/nothing"))
    assert await everything(pod.socks[-1]) == b""

    # The process wants no input: who writes to it learns so.
    deaf = await pod.exec(box, "exec 0<&-; echo closed; sleep 600")
    await until(deaf.stdout, b"closed")
    with pytest.raises(OSError):
        for _ in range(100_000):
            await send(deaf.stdin, b"x" * 4096)


async def test_a_terminal(pod: Pod) -> None:
    box = await pod.container("sleep 600")
    one = await pod.exec(
        box, "read a; busybox stty size; read b; echo $b; cat; exit 3", terminal=True
    )
    size = {"exec": one.name, "width": 132, "height": 43}
    await pod.vm.client.call("exec.resize", size)
    await send(one.stdin, b"\n")
    assert b"43 132" in await until(one.stdout, b"132")
    await send(one.stdin, b"typed\n")
    await until(one.stdout, b"typed\r\ntyped\r\n")
    one.stdin.shutdown(socket.SHUT_WR)
    await everything(one.stdout)
    assert await pod.code(one.name) == 3

    # A client that goes away hangs the terminal up.
    two = await pod.exec(
        box,
        "trap 'echo hup > /hup; exit 1' HUP; echo on; while :; do sleep 0.1; done",
        terminal=True,
    )
    await until(two.stdout, b"on")
    two.stdin.close()
    two.stdout.close()
    assert await pod.code(two.name) == 1
    assert await pod.sh(box, "cat /hup") == "hup\n"


async def test_who_leaves_ends_the_streams_and_who_reads_slowly_stops_no_other(pod: Pod) -> None:
    box = await pod.container("sleep 600")
    slow = await pod.exec(box, "yes")
    gone = await pod.exec(box, "yes; echo $? > /code")
    await until(gone.stdout, b"y\n" * 100_000)
    gone.stdout.close()
    # The writer gets SIGPIPE; its stderr and stdin are still ours.
    assert await pod.code(gone.name) == 0
    assert await pod.sh(box, "cat /code") == "141\n"
    assert await pod.sh(box, "echo other") == "other\n"
    # It says nothing until its reader is gone; how long the guest takes to see that, nobody knows.
    late = "until [ -e /go ]; do sleep 0.1; done; while echo late; do sleep 0.1; done; exit 0"
    silent = await pod.exec(box, late)
    silent.stdout.close()
    await pod.sh(box, "echo > /go")
    assert await pod.code(silent.name) != 0
    await until(slow.stdout, b"y\n" * 300_000)


async def test_a_child_that_keeps_the_output_holds_up_nobody(pod: Pod) -> None:
    box = await pod.container("sleep 600")
    one = await pod.exec(box, "sleep 600 & echo said; exit 2")
    assert await everything(one.stdout) == b"said\n"
    assert await pod.code(one.name) == 2


async def test_what_a_slow_reader_has_not_read_is_kept_for_it(pod: Pod) -> None:
    box = await pod.container("sleep 600")
    one = await pod.exec(box, "head -c 600000 /dev/zero")
    # Longer than a child may keep output open; the process has ended by then.
    await asyncio.sleep(6)
    assert len(await everything(one.stdout)) == 600_000
    assert await pod.code(one.name) == 0


async def test_attached_clients(pod: Pod) -> None:
    script = "read a; echo first $a; echo err >&2; seq 1 300000; read b; echo last $b"
    box = await pod.container(script, stdin=True)
    names = ["stdin", "stdout", "stderr"]
    _, mine = await pod.ask("attach.open", names, container=box)
    _, other = await pod.ask("attach.open", ["stdout"], container=box)
    _, deaf = await pod.ask("attach.open", ["stdout"], container=box)
    deaf["stdout"].setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    await send(mine["stdin"], b"in\n")
    reading = [asyncio.create_task(everything(end["stdout"])) for end in (mine, other)]
    _, typist = await pod.ask("attach.open", ["stdin"], container=box)
    await send(typist["stdin"], b"end\n")
    wanted = "".join(["first in\n", *(f"{n}\n" for n in range(1, 300_001)), "last end\n"]).encode()
    assert [await one for one in reading] == [wanted, wanted]
    assert await everything(mine["stderr"]) == b"err\n"
    mine["stdin"].close()
    assert (await pod.vm.exited(box))["exit_code"] == 0
    logged = re.findall(r"stdout F (.*)", pod.vm.log(box))
    assert "\n".join(logged).encode() + b"\n" == wanted
    with pytest.raises(FailedPrecondition, match="has ended"):
        await pod.ask("attach.open", ["stdout"], container=box)


async def test_who_ends_its_input_is_let_go(pod: Pod) -> None:
    box = await pod.container("cat", stdin=True)
    _, other = await pod.ask("attach.open", ["stdout"], container=box)
    for word in (b"one\n", b"two\n"):
        _, mine = await pod.ask("attach.open", ["stdin", "stdout", "stderr"], container=box)
        await send(mine["stdin"], word)
        assert await asyncio.get_running_loop().sock_recv(other["stdout"], 100) == word
        mine["stdin"].close()
        assert await everything(mine["stdout"]) == word
        assert await everything(mine["stderr"]) == b""
    await pod.ask("attach.open", ["stdin"], container=box)


async def test_who_attaches_before_the_start_misses_nothing(pod: Pod) -> None:
    box = await pod.created("read a; stty size; echo got $a", stdin=True, tty=True)
    _, mine = await pod.ask("attach.open", ["stdin", "stdout"], container=box)
    await pod.vm.client.call("container.resize", {"container": box, "width": 71, "height": 17})
    await send(mine["stdin"], b"typed\n")
    await pod.start(box)
    assert (await everything(mine["stdout"])).endswith(b"17 71\r\ngot typed\r\n")


async def test_one_who_does_not_read_is_dropped_and_the_log_is_whole(pod: Pod) -> None:
    script = "read a; yes $(seq -s , 1 2000 | head -c 8000) | head -n 1500; echo late >&2"
    box = await pod.container(script, stdin=True, stdin_once=True)
    _, deaf = await pod.ask("attach.open", ["stdin", "stdout", "stderr"], container=box)
    await send(deaf["stdin"], b"go\n")
    assert (await pod.vm.exited(box))["exit_code"] == 0
    assert (
        re.findall(r"stdout F (.*)", pod.vm.log(box))
        == [",".join(map(str, range(1, 2001)))[:8000]] * 1500
    )
    assert len(await everything(deaf["stdout"])) < 8_000_000
    # Half of an output is none: the other stream went with it.
    assert await everything(deaf["stderr"]) == b""


async def test_stdin_once_ends_the_input(pod: Pod) -> None:
    box = await pod.container("cat; echo over", stdin=True, stdin_once=True)
    _, mine = await pod.ask("attach.open", ["stdin", "stdout"], container=box)
    await send(mine["stdin"], b"all\n")
    mine["stdin"].shutdown(socket.SHUT_WR)
    assert await everything(mine["stdout"]) == b"all\nover\n"


ECHO = "nc -ll -p 7000 -e cat"


async def listening(pod: Pod, box: str) -> None:
    async with asyncio.timeout(LIMIT):
        while True:
            table = await pod.sh(box, "cat /proc/net/tcp /proc/net/tcp6")
            if any(line.split()[3] == "0A" for line in table.splitlines()[1:] if ":" in line):
                return


async def connected(pod: Pod, box: str) -> int:
    table = await pod.sh(box, "cat /proc/net/tcp /proc/net/tcp6")
    return sum(line.split()[3] == "01" for line in table.splitlines() if ":" in line)


async def test_forwarded_connections(pod: Pod) -> None:
    box = await pod.container(ECHO)
    await listening(pod, box)
    _, ends = await pod.ask("forward.open", ["both"], port=7000)
    data = os.urandom(1_000_000)
    copying = asyncio.create_task(everything(ends["both"]))
    await send(ends["both"], data)
    # Half-closed: what was sent comes back all the same.
    ends["both"].shutdown(socket.SHUT_WR)
    assert hashlib.sha256(await copying).digest() == hashlib.sha256(data).digest()
    with pytest.raises(Unavailable, match=r"7001: connect: connection refused"):
        await pod.ask("forward.open", ["both"], port=7001)

    many = [(await pod.ask("forward.open", ["both"], port=7000))[1]["both"] for _ in range(100)]
    for number, sock in enumerate(many):
        await send(sock, b"%d\n" % number)
    for number, sock in enumerate(many):
        assert await until(sock, b"\n") == b"%d\n" % number
    assert await connected(pod, box) >= 200
    for sock in many:
        sock.close()
    async with asyncio.timeout(LIMIT):
        while await connected(pod, box):  # noqa: ASYNC110 - a guest tells nothing by itself
            await asyncio.sleep(0.1)


async def test_the_end_of_the_vm_ends_all(pod: Pod) -> None:
    box = await pod.container(ECHO)
    await listening(pod, box)
    one = await pod.exec(box, "sleep 600")
    _, attached = await pod.ask("attach.open", ["stdout"], container=box)
    _, ends = await pod.ask("forward.open", ["both"], port=7000)
    waiting = asyncio.create_task(pod.code(one.name))
    os.kill(int((await pod.vm.client.call("describe")).result["qemu_pid"]), signal.SIGKILL)
    assert await everything(one.stdout) == b""
    assert await everything(attached["stdout"]) == b""
    assert await everything(ends["both"]) == b""
    with pytest.raises(FailedPrecondition, match="VM ended"):
        await waiting
