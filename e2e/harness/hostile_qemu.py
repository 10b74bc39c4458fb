#!/usr/bin/python3
"""QEMU, with a liar between the guest's agent and the shim.

A daemon whose `vm.qemu` is a copy of this file, made by `install`, runs the real QEMU under it.
What the guest's agent says to the shim passes through a process of ours, unchanged until the file
`attack` beside the copy says "VM ATTACK": then that VM's agent turns hostile, and the pipe `done`
there says so. The process is confined as QEMU is: it sees its folder, and can change nothing there.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent / "lib"))

from vmm.agent.codec import (
    INITIAL_CREDIT,
    MAX_PAYLOAD,
    Decoder,
    Flag,
    Frame,
    Type,
    encode,
    encode_message,
)

QEMU: Final = "/usr/bin/qemu-system-x86_64"
POLL: Final = 0.05
NOBODYS: Final = 1_000_000
"""A stream that the host will not have opened."""


def boast(honest: bytes) -> dict[str, Any]:
    """What no guest can use, of all that the honest answer names."""
    names = set(re.findall(rb'"([0-9a-f]{64})"', honest))
    group = {
        "cpu": {"usage_usec": 2**70, "user_usec": "much", "nr_periods": -1},
        "memory": {"current": 2**62, "anon": [], "inactive_file": 0, "limit": 2**80},
        "io": {"rbytes": 2**64},
        "tasks": 2**64,
        "processes": 2**64,
        "pressure": {"cpu": {"some": {"total": 2**64, "avg10": 1e300, "avg60": "x"}}, "x": 5},
        "upper": {"bytes": 2**63, "inodes": 2**63},
    }
    return {
        "pod": group,
        "containers": {name.decode(): group for name in names} | {"f" * 64: group, "x": 1},
        "interfaces": [
            {"name": f"eth{number}" if number < 200 else "bad name\n", "received": [0] * 4}
            for number in range(20_000)
        ],
        "scratch": ["none"],
    }


class Liar:
    """What passes between the shim and the guest, and what is added to it."""

    def __init__(self, shim: socket.socket, guest: socket.socket) -> None:
        self._shim = shim
        self._guest = guest
        self._turn = threading.Lock()
        self._nonce = 0
        self._exec: dict[str, int] = {}
        self._swallow: Type | None = None
        self._dead: set[int] = set()
        self._stretch = False
        self._boast = False
        self._asked: set[int] = set()
        """Requests for stats."""

    def to_guest(self) -> None:
        """Passes on what the shim says, and learns the session's nonce and streams from it."""
        decoder = Decoder()
        while data := self._shim.recv(1 << 16):
            for frame in decoder.feed(data):
                self._nonce = frame.nonce
                if frame.type is Type.REQUEST:
                    self._learn(json.loads(frame.payload), frame.stream)
            self._guest.sendall(data)

    def _learn(self, request: dict[str, Any], number: int) -> None:
        if request["method"] == "pod.stats":
            self._asked.add(number)
        if request["method"] == "process.exec" and request["params"]["streams"].get("stdin"):
            self._exec = request["params"]["streams"]

    def to_shim(self) -> None:
        """Passes on what the guest says."""
        decoder = Decoder()
        while data := self._guest.recv(1 << 16):
            for frame in decoder.feed(data):
                if frame.type is self._swallow or frame.stream in self._dead:
                    continue
                with self._turn:
                    if self._boast and frame.type is Type.RESPONSE and frame.stream in self._asked:
                        if not frame.flags & Flag.MORE:
                            self._asked.discard(frame.stream)
                            said = {"result": boast(frame.payload)}
                            self._shim.sendall(
                                encode_message(frame.nonce, Type.RESPONSE, frame.stream, said)
                            )
                    elif self._stretch and frame.type is Type.RESPONSE:
                        self._stretch = False
                        longer = Frame(frame.nonce, frame.type, frame.stream, bytes(1000))
                        self._shim.sendall(encode(longer)[:-1000] + frame.payload)
                        # What follows is taken for the rest of the answer.
                        self._say(Type.CREDIT, self._exec["stdin"], bytes(2000))
                    else:
                        self._shim.sendall(encode(frame))

    def _say(self, kind: Type, stream: int, payload: bytes = b"") -> None:
        self._shim.sendall(encode(Frame(self._nonce, kind, stream, payload)))

    # --- what ends the pod

    def data_for_nobody(self) -> None:
        self._say(Type.DATA, NOBODYS, b"x")

    def reset_for_nobody(self) -> None:
        self._say(Type.RESET, NOBODYS)

    def data_without_credit(self) -> None:
        for _ in range(1000):
            self._say(Type.DATA, self._exec["stdout"], bytes(MAX_PAYLOAD))

    def data_after_the_end(self) -> None:
        stream = self._exec["stdout"]
        last = encode(Frame(self._nonce, Type.DATA, stream, b"x", Flag.FIN))
        # At once: what comes after the shim has forgotten the stream is dropped.
        self._shim.sendall(last + encode(Frame(self._nonce, Type.DATA, stream, b"y")))

    def credit_without_end(self) -> None:
        for _ in range(3):
            self._say(Type.CREDIT, self._exec["stdin"], (1 << 30).to_bytes(4, "little"))

    def credit_that_is_none(self) -> None:
        self._say(Type.CREDIT, self._exec["stdin"], b"abc")

    def an_answer_to_nothing(self) -> None:
        frame = encode_message(self._nonce, Type.RESPONSE, NOBODYS, {"result": {}})
        self._shim.sendall(frame)

    def a_length_that_lies(self) -> None:
        self._stretch = True

    # --- what it does to itself

    def resets(self) -> None:
        self._dead = {number for number in self._exec.values() if number}
        for _ in range(20_000):
            for number in self._dead:
                self._say(Type.RESET, number)

    def no_credit(self) -> None:
        self._swallow = Type.CREDIT

    def boasts(self) -> None:
        self._boast = True

    def garbage(self) -> None:
        """No frames: a length beyond the limit, half headers, magic after magic."""
        frame = bytearray(encode(Frame(self._nonce, Type.DATA, self._exec["stdout"], b"x")))
        frame[20:24] = (MAX_PAYLOAD + 1).to_bytes(4, "little")
        self._shim.sendall(bytes(frame) + frame[:13] + b"THAW" * INITIAL_CREDIT)

    def wait(self, order: Path, vm: str) -> None:
        """Carries out the attack that is ordered, once."""
        while True:
            words = order.read_text().split() if order.exists() else []
            if words and words[0] == vm:
                attack: Callable[[], None] = getattr(self, words[1])
                with self._turn:
                    attack()
                order.with_name("done").write_text(vm)
                return
            time.sleep(POLL)


def lie(shim: socket.socket, guest: socket.socket, order: Path, vm: str) -> None:
    """Runs until either end is closed."""
    liar = Liar(shim, guest)
    ended = threading.Event()

    def carry(work: Callable[[], None]) -> None:
        try:
            work()
        except OSError:
            pass
        finally:
            ended.set()

    for work in (liar.to_guest, liar.to_shim):
        threading.Thread(target=carry, args=(work,), daemon=True).start()
    threading.Thread(target=liar.wait, args=(order, vm), daemon=True).start()
    ended.wait()


def install(folder: Path) -> Path:
    """A copy with all that it needs; the path for `vm.qemu`."""
    project = Path(__file__).resolve().parents[2]
    for package in ("hostlib", "vmm/agent"):
        shutil.copytree(
            project / package, folder / "lib" / package, ignore=shutil.ignore_patterns("tests")
        )
    os.mkfifo(folder / "done")
    return Path(shutil.copy(__file__, folder / "qemu"))


def main() -> None:
    line = " ".join(sys.argv)
    agent = re.search(r"socket,id=agent,fd=(\d+)", line)
    vm = re.search(r"/vms/([0-9a-z]+)/", line)
    if agent is not None and vm is not None and "-incoming" in sys.argv:
        number = int(agent[1])
        near, far = socket.socketpair()
        if os.fork() == 0:
            # Twice: QEMU does not wait for children that it knows nothing of.
            if os.fork():
                os._exit(0)
            os.setsid()
            shim = socket.socket(fileno=os.dup(number))
            shim.setblocking(True)
            # QEMU's other descriptors, held here, would outlive it.
            keep = (shim.fileno(), near.fileno())
            for descriptor in map(int, os.listdir("/proc/self/fd")):
                if descriptor not in keep:
                    try:
                        os.close(descriptor)
                    except OSError:
                        # The listing's own.
                        pass
            lie(shim, near, Path(sys.argv[0]).parent / "attack", vm[1])
            os._exit(0)
        os.wait()
        os.dup2(far.fileno(), number, inheritable=True)
        near.close()
        far.close()
    os.execv(QEMU, [QEMU, *sys.argv[1:]])


if __name__ == "__main__":
    main()
