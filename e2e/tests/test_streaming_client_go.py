"""Exec, attach, cp and port-forward by Kubernetes' own client library, e2e/tools/stream-client."""

from __future__ import annotations

import hashlib
import os
import random
from pathlib import Path

import pytest

from cri.api import v1_pb2
from demo.images import PAGE
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP, WEBAPP
from e2e.harness.streams import (
    LIMIT,
    attach_url,
    connections,
    exec_url,
    finish,
    forward_url,
    go,
    listening,
    start,
    write_script,
)
from e2e.harness.waiting import until

TRANSPORTS = ["spdy", "websocket", "fallback"]
COPY_MIB = int(os.environ.get("THAW_E2E_COPY_MIB", "200"))
"""Size of the tree that is copied in and out."""
ECHO = (
    "/usr/bin/python3",
    "-c",
    """import socketserver

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)

# busybox's nc has a backlog of one connection.
socketserver.ThreadingTCPServer.request_queue_size = 128
socketserver.ThreadingTCPServer(("", 7000), Echo).serve_forever()
""",
)


@pytest.fixture
def box(daemon: Daemon) -> Container:
    return Pod.run(daemon).start(SHELL, SLEEP)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_exec(box: Container, transport: str, tmp_path: Path) -> None:
    data = random.Random(1).randbytes(3_000_000)
    source = tmp_path / "stdin"
    source.write_bytes(data)
    url = exec_url(box, "cat; echo bad >&2; exit 7", stdin=True)
    done = go("exec", url, "-transport", transport, "-stdin", str(source))
    assert (done["code"], done["error"], done["stderr"]["text"]) == (7, "", "bad\n")
    assert done["stdout"]["bytes"] == len(data)
    assert done["stdout"]["sha256"] == hashlib.sha256(data).hexdigest()

    done = go("exec", exec_url(box, ["/bin/true"]), "-transport", transport)
    assert (done["code"], done["error"]) == (0, "")
    done = go("exec", exec_url(box, ["/no/such/program"]), "-transport", transport)
    assert done["code"] == -1
    assert "/no/such/program" in done["error"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_terminal_and_its_size(box: Container, transport: str, tmp_path: Path) -> None:
    script = write_script(
        tmp_path,
        {"size": [132, 43]},
        {"expect": "on\r\n", "size": [97, 31], "send": "\n"},
        {"expect": "31 97\r\n", "send": "typed\n"},
        {"expect": "typed\r\nheard typed\r\n", "send": "\x03"},
    )
    command = (
        "echo on; read a;"
        "while [ $(stty size | cut -d ' ' -f 2) != 97 ]; do :; done; stty size;"
        "read a; echo heard $a; exec sleep 1000"
    ).replace("stty", "busybox stty")
    url = exec_url(box, command, stdin=True, tty=True)
    flags = ["-transport", transport, "-tty", "-script", script, "-limit", "240s"]
    done = go("exec", url, *flags)
    assert done["talk"] == "", done
    # Ctrl-C.
    assert done["code"] == 130
    assert done["stderr"]["bytes"] == 0


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_attach(daemon: Daemon, transport: str, tmp_path: Path) -> None:
    command = [
        "/bin/sh",
        "-c",
        "read a; echo $a; read a; echo got $a; echo bad >&2; cat; echo over",
    ]
    container = Pod.run(daemon).start(SHELL, command, stdin=True, stdin_once=True)
    # Who is heard is attached.
    script = write_script(tmp_path, {"send": "here\n"})
    url = attach_url(container, stdin=True)
    watcher = start("exec", url, "-transport", transport, "-script", script)
    until("the watcher is heard", lambda: container.output() == "here\n", LIMIT)
    script = write_script(
        tmp_path,
        {"send": "first\n"},
        {"expect": "got first\n", "send": "second\n"},
        {"expect": "second\n", "end": True},
    )
    url = attach_url(container, stdin=True)
    done = go("exec", url, "-transport", transport, "-script", script)
    assert (done["code"], done["error"], done["talk"]) == (0, "", "")
    assert done["stdout"]["text"] == "got first\nsecond\nover\n"
    assert done["stderr"]["text"] == "bad\n"
    assert container.wait().exit_code == 0
    seen = finish(watcher)
    whole = "here\ngot first\nsecond\nover\n"
    assert (seen["code"], seen["error"], seen["stdout"]["text"]) == (0, "", whole)
    assert container.output() == whole


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_who_has_no_more_to_say_is_let_go(daemon: Daemon, transport: str, tmp_path: Path) -> None:
    """Of a container that reads on, since its input is not for one client alone."""
    container = Pod.run(daemon).start(SHELL, ["/bin/cat"], stdin=True)
    for word in ("one\n", "two\n"):
        script = write_script(tmp_path, {"send": word}, {"expect": word, "end": True})
        done = go(
            "exec", attach_url(container, stdin=True), "-transport", transport, "-script", script
        )
        assert (done["code"], done["error"], done["talk"]) == (0, "", "")
        assert done["stdout"]["text"] == word
    assert container.status().state == v1_pb2.CONTAINER_RUNNING
    until("both are in the log", lambda: container.output() == "one\ntwo\n")


def plant(folder: Path, mebibytes: int) -> None:
    """A tree of big, small and empty files with bytes that nothing compresses."""
    seed = random.Random(7)
    big = mebibytes * 1024 * 1024 * 9 // 10 // 4
    for number in range(4):
        place = folder / f"big{number}"
        place.mkdir(parents=True)
        (place / "data").write_bytes(seed.randbytes(big))
    left = mebibytes * 1024 * 1024 - 4 * big
    for number in range(200):
        place = folder / "small" / str(number % 10)
        place.mkdir(parents=True, exist_ok=True)
        (place / f"file {number}").write_bytes(seed.randbytes(left // 200))
    (folder / "empty").write_bytes(b"")


def sums(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_a_tree_is_copied_in_and_out(box: Container, transport: str, tmp_path: Path) -> None:
    source, copy = tmp_path / "source", tmp_path / "copy"
    # The larger one once: the transport makes little difference to a tree.
    plant(source, COPY_MIB if transport == "spdy" else max(COPY_MIB // 8, 1))
    copy.mkdir()
    box.sh("mkdir /copy")
    url = exec_url(box, ["tar", "-xf", "-", "-C", "/copy"], stdin=True)
    done = go("upload", url, "-transport", transport, "-dir", str(source))
    assert (done["code"], done["error"], done["stderr"]["text"]) == (0, "", "")
    url = exec_url(box, ["tar", "-cf", "-", "-C", "/copy", "."])
    done = go("download", url, "-transport", transport, "-dir", str(copy))
    assert (done["code"], done["error"], done["stderr"]["text"]) == (0, "", "")
    wanted = sums(source)
    assert len(wanted) == 205
    assert sums(copy) == wanted


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_port_forward_of_http_with_keep_alive(daemon: Daemon, transport: str) -> None:
    pod = Pod.run(daemon)
    pod.start(NGINX)
    pod.get()
    done = go("forward", forward_url(pod), "-transport", transport, "-port", "80", "-http", "30")
    assert done["work"]["failures"] == []
    assert done["work"]["bodies"] == [PAGE] * 30
    assert done["work"]["reused"] == 29
    assert done["errors"] == ""


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_port_forward_of_a_raw_echo(daemon: Daemon, transport: str) -> None:
    pod = Pod.run(daemon)
    server = pod.start(WEBAPP, ECHO)
    listening(server, 7000)
    flags = ["-transport", transport, "-port", "7000"]
    done = go("forward", forward_url(pod), *flags, "-echo", "100", "-size", "100000")
    assert done["work"] == {"equal": 100, "failures": None}, done
    until("the guest has no connection left", lambda: connections(server) == 0)

    # Half-closed: what is sent before the end comes back after it.
    done = go("forward", forward_url(pod), *flags, "-text", "half-closed")
    assert done["work"] == {"heard": "half-closed"}
    assert done["errors"] == ""

    refused = go(
        "forward", forward_url(pod), "-transport", transport, "-port", "7001", "-text", "x"
    )
    assert "An error occurred forwarding" in refused["errors"]
    assert "connection refused" in refused["errors"]
