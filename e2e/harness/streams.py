"""Clients of the URLs that Exec, Attach and PortForward return: Kubernetes' own, in Go
(`e2e/tools/stream-client`), and one of WebSocket channels for what that one never does."""

from __future__ import annotations

import base64
import contextlib
import json
import socket
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from cri.api import v1_pb2
from e2e.harness.daemon import PROJECT
from e2e.harness.pods import Container, Pod
from e2e.harness.waiting import until
from hostlib.process import ENVIRONMENT

PROGRAM: Final = PROJECT / ".build" / "bin" / "stream-client"
LIMIT: Final = 60.0
"""Seconds for one answer of a client, however busy the machine."""

TABLES: Final = "/proc/net/tcp /proc/net/tcp6"

STDIN, STDOUT, STDERR, ERROR, RESIZE, CLOSE = 0, 1, 2, 3, 4, 255
"""The channels of exec and attach; the last is v5's, which ends another."""
V4: Final = "v4.channel.k8s.io"
V5: Final = "v5.channel.k8s.io"


def exec_url(
    container: Container,
    script: str | Sequence[str],
    *,
    stdin: bool = False,
    stdout: bool = True,
    stderr: bool = True,
    tty: bool = False,
) -> str:
    """A URL that runs a command, or a shell script, once."""
    argv = ["/bin/sh", "-c", script] if isinstance(script, str) else list(script)
    request = v1_pb2.ExecRequest(
        container_id=container.id,
        cmd=argv,
        tty=tty,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr and not tty,
    )
    return container.pod.daemon.client.runtime("Exec", request, v1_pb2.ExecResponse).url


def attach_url(
    container: Container, *, stdin: bool = False, stderr: bool = True, tty: bool = False
) -> str:
    request = v1_pb2.AttachRequest(
        container_id=container.id, stdin=stdin, tty=tty, stdout=True, stderr=stderr and not tty
    )
    return container.pod.daemon.client.runtime("Attach", request, v1_pb2.AttachResponse).url


def forward_url(pod: Pod, *ports: int) -> str:
    request = v1_pb2.PortForwardRequest(pod_sandbox_id=pod.id, port=list(ports))
    return pod.daemon.client.runtime("PortForward", request, v1_pb2.PortForwardResponse).url


def start(command: str, url: str, *flags: str, trust: Path | None = None) -> subprocess.Popen[str]:
    """The Go client, started; `finish` gives what it printed. `trust` is the authority of a server
    with TLS."""
    subprocess.run([str(PROJECT / "tools" / "clients.sh")], check=True)
    return subprocess.Popen(
        [str(PROGRAM), command, "-url", url, *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**ENVIRONMENT, **({"SSL_CERT_FILE": str(trust)} if trust else {})},
    )


def finish(process: subprocess.Popen[str], timeout: float = 280) -> dict[str, Any]:
    """What the Go client says about how it went."""
    try:
        out, err = process.communicate(timeout=timeout)
    except BaseException:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == 0, err
    found: dict[str, Any] = json.loads(out)
    return found


def go(command: str, url: str, *flags: str, trust: Path | None = None) -> dict[str, Any]:
    """The Go client, run to its end."""
    return finish(start(command, url, *flags, trust=trust))


class Channels:
    """Kubernetes' channels on one WebSocket."""

    def __init__(self, connection: ClientConnection, *, text: bool = False) -> None:
        self.socket = connection
        self._text = text
        self.received: dict[int, bytearray] = {}
        self.messages: list[tuple[int, bytes]] = []
        """All that came, also the empty ones, in order."""

    def send(self, channel: int, data: bytes = b"") -> None:
        if self._text:
            self.socket.send(f"{channel}{base64.b64encode(data).decode()}")
        else:
            self.socket.send(bytes([channel]) + data)

    def step(self, timeout: float = LIMIT) -> tuple[int, bytes]:
        """The next message. Raises `ConnectionClosed`, `TimeoutError`."""
        message = self.socket.recv(timeout)
        if isinstance(message, str):
            assert self._text, message
            channel, data = int(message[0]), base64.b64decode(message[1:], validate=True)
        else:
            assert not self._text, message
            channel, data = message[0], message[1:]
        self.messages.append((channel, data))
        self.received.setdefault(channel, bytearray()).extend(data)
        return channel, data

    def until(self, channel: int, text: bytes) -> bytes:
        """All that came on the channel, once `text` is in it."""
        while text not in self.received.get(channel, b""):
            self.step()
        return bytes(self.received[channel])

    def rest(self) -> None:
        """Reads until the server has closed."""
        with contextlib.suppress(ConnectionClosed):
            while True:
                self.step()

    def said(self, channel: int) -> bytes:
        return bytes(self.received.get(channel, b""))

    def size(self, channel: int) -> int:
        """How many bytes came on a channel."""
        return len(self.received.get(channel, b""))

    @property
    def status(self) -> dict[str, Any]:
        """The status of a command that has ended; {} while there is none."""
        text = self.said(ERROR)
        found: dict[str, Any] = json.loads(text) if text else {}
        return found

    @property
    def code(self) -> int:
        """The exit code that the status tells."""
        status = self.status
        if status["status"] == "Success":
            return 0
        causes = status["details"]["causes"]
        return int(next(each["message"] for each in causes if each["reason"] == "ExitCode"))

    @property
    def close_code(self) -> int | None:
        return self.socket.close_code

    def vanish(self) -> None:
        """End as a client that is killed: the socket is closed, with nothing said before."""
        with contextlib.suppress(OSError):
            self.socket.socket.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def channels(url: str, protocol: str = V4, *, max_queue: int | None = 16) -> Iterator[Channels]:
    """A WebSocket with a subprotocol ("": none is named) to a URL that CRI returned."""
    with connect(
        url.replace("http://", "ws://", 1),
        subprotocols=[protocol] if protocol else None,  # type: ignore[list-item]
        open_timeout=LIMIT,
        close_timeout=5,
        max_size=None,
        max_queue=max_queue,
        ping_interval=None,
        proxy=None,
        compression=None,
    ) as found:
        yield Channels(found, text="base64" in protocol)


def run(container: Container, script: str | Sequence[str]) -> tuple[int, bytes]:
    """Run a command by WebSocket; its exit code and its stdout."""
    with channels(exec_url(container, script)) as client:
        client.rest()
        return client.code, client.said(STDOUT)


def listening(container: Container, port: int) -> None:
    """Wait until something in the pod listens on a TCP port."""
    mark = f":{port:04X}"
    until(f"port {port} listens", lambda: mark in container.sh(f"cat {TABLES}"))


def connections(container: Container) -> int:
    """The ends of established TCP connections in the pod."""
    return int(container.sh(f"cat {TABLES} | grep -c ' 01 ' || true"))


def write_script(folder: Path, *steps: dict[str, Any]) -> str:
    """A dialogue for the Go client's `-script`; its path."""
    with tempfile.NamedTemporaryFile("w", dir=folder, suffix=".json", delete=False) as file:
        json.dump(steps, file)
    return file.name
