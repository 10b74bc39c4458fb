"""exec, attach and port-forward as the real crictl does them, by SPDY and by WebSocket."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from demo.images import PAGE
from e2e.harness.crictl import Crictl
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP, WEBAPP
from e2e.harness.terminal import Terminal
from e2e.harness.waiting import until

both = pytest.mark.parametrize("transport", ["spdy", "websocket"])


@pytest.fixture
def shell(daemon: Daemon) -> Container:
    return Pod.run(daemon).start(SHELL, SLEEP)


def processes(container: Container, word: str) -> list[str]:
    """The processes of a container whose command line has the word."""
    found = container.sh(
        "for p in /proc/[0-9]*; do tr '\\0' ' ' <$p/cmdline 2>/dev/null; echo; done"
    )
    return [line for line in found.splitlines() if word in line and "/proc/" not in line]


@both
def test_output_errors_and_exit_code(crictl: Crictl, shell: Container, transport: str) -> None:
    script = "echo out; echo err >&2; exit 3"
    done = crictl.run(*("exec", "-r", transport, shell.id, "/bin/sh", "-c", script), check=False)
    assert done.stdout == "out\n"
    assert done.stderr.startswith("err\n")
    assert done.returncode == 3 or "exit code 3" in done.stderr
    assert crictl.out("exec", "-r", transport, shell.id, "echo", "fine") == "fine"


@both
def test_a_large_input_comes_back_whole(
    crictl: Crictl, shell: Container, transport: str, tmp_path: Path
) -> None:
    payload = tmp_path / "payload"
    payload.write_bytes(os.urandom(16 * 1024 * 1024))
    with payload.open("rb") as source:
        done = subprocess.run(
            crictl.argv("exec", "-i", "-r", transport, shell.id, "cat"),
            stdin=source,
            capture_output=True,
            check=True,
            timeout=180,
            env=crictl.environment,
        )
    digests = [hashlib.sha256(data).hexdigest() for data in (payload.read_bytes(), done.stdout)]
    assert digests[0] == digests[1]


@both
def test_a_terminal(crictl: Crictl, shell: Container, transport: str) -> None:
    argv = crictl.argv("exec", "-it", "-r", transport, shell.id, "/bin/sh")
    with Terminal(argv, crictl.environment, width=100, height=30) as terminal:
        # Written so that the echo of the command does not look like its output.
        terminal.type("echo on a $((1+1))-way line; tty; echo $TERM\n")
        terminal.see("on a 2-way line\r\n")
        terminal.see("/dev/pts/")
        terminal.see("xterm")
        terminal.type("stty size\n")
        terminal.see("30 100")
        terminal.resize(132, 50)
        terminal.type("while [ \"$(stty size)\" != '50 132' ]; do :; done; echo re''sized\n")
        terminal.see("resized")
        # An interrupt goes to the guest's terminal, not to crictl.
        terminal.type("echo re''ady; cat\n")
        terminal.see("ready")
        terminal.type("twice\n")
        terminal.see("twice\r\ntwice\r\n")
        terminal.type("\x03")
        terminal.see("^C")
        # What is typed before the prompt may still be read by who is about to die.
        terminal.see("# ")
        terminal.type("echo still he''re\n")
        terminal.see("still here")
        terminal.type("exit 0\n")
        assert terminal.end() == 0
        assert terminal.restored


@both
def test_commands_that_cannot_be_run_are_told_at_once(
    crictl: Crictl, shell: Container, transport: str
) -> None:
    for command, words in (
        ("nosuch", 'exec: "nosuch": executable file not found in $PATH'),
        ("/etc/passwd", "permission denied"),
    ):
        done = crictl.run("exec", "-r", transport, shell.id, command, check=False)
        assert done.returncode != 0
        assert words in done.stderr.replace("\\", ""), done.stderr


@both
def test_a_client_that_is_killed_ends_the_commands_streams(
    crictl: Crictl, shell: Container, transport: str
) -> None:
    script = "while echo marked-loop; do :; done"
    argv = ("exec", "-r", transport, shell.id, "/bin/sh", "-c", script)
    with crictl.running(*argv) as client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"marked-loop\n"
        assert processes(shell, "marked-loop")
    until("the command has ended", lambda: not processes(shell, "marked-loop"))


@both
def test_attach(crictl: Crictl, daemon: Daemon, transport: str) -> None:
    pod = Pod.run(daemon)
    script = "while read line; do echo said $line; test $line = last && exit 5; done"
    container = pod.start(SHELL, ["/bin/sh", "-c", script], stdin=True)
    argv = ("attach", "-i", "-r", transport, container.id)
    with contextlib.ExitStack() as stack:
        running = [crictl.running(*argv, stdin=subprocess.PIPE) for _ in range(2)]
        clients = [stack.enter_context(each) for each in running]
        # Both are attached once both hear of what one says.
        for number, client in enumerate(clients):
            assert client.stdin is not None
            client.stdin.write(b"client %d\n" % number)
            client.stdin.flush()
            wanted = b"said client %d\n" % number
            assert client.stdout is not None
            while client.stdout.readline() != wanted:
                pass
        first, second = clients
        assert first.stdin is not None
        assert first.stdout is not None
        assert second.stdout is not None
        first.stdin.write(b"last\n")
        first.stdin.flush()
        assert b"said last\n" in second.stdout.read()
        assert first.stdout.read().endswith(b"said last\n")
        for client in clients:
            assert client.wait(60) == 0
    assert container.wait().exit_code == 5
    until("all is in the log", lambda: container.output().endswith("said last\n"))
    done = crictl.run("attach", "-r", transport, container.id, check=False)
    assert "has ended" in done.stderr


@contextlib.contextmanager
def forwarding(
    crictl: Crictl, pod: Pod, port: int, transport: str
) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """A local port that crictl forwards, and crictl."""
    with crictl.running("port-forward", "-r", transport, pod.id, f"0:{port}") as client:
        assert client.stdout is not None
        line = client.stdout.readline().decode()
        match = re.search(r"127\.0\.0\.1:(\d+) ->", line)
        assert match, line
        yield int(match.group(1)), client


@both
def test_port_forward(crictl: Crictl, daemon: Daemon, transport: str) -> None:
    pod = Pod.run(daemon)
    web = pod.start(NGINX)
    until("nginx listens", lambda: ":0050 " in web.sh("cat /proc/net/tcp"))
    with forwarding(crictl, pod, 80, transport) as (port, _):
        url = f"http://127.0.0.1:{port}"
        with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
            for _ in range(5):
                assert client.get("/").text == PAGE
        answers: list[str] = []

        def ask() -> None:
            answer = httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=60)
            answers.append(answer.text)

        threads = [threading.Thread(target=ask) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert answers == [PAGE] * 30
    # Nothing of it stays in the guest.
    until(
        "the guest's connections are closed",
        lambda: not re.search(r":0050 0100007F:\w+ 01 ", web.sh("cat /proc/net/tcp")),
    )


ECHO = """
import socketserver

class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        while data := self.request.recv(65536):
            self.request.sendall(data)

class Server(socketserver.ThreadingTCPServer):
    request_queue_size = 128
    daemon_threads = True

Server(("127.0.0.1", 7000), Echo).serve_forever()
"""


@both
def test_a_hundred_connections_at_once_each_half_closed(
    crictl: Crictl, daemon: Daemon, transport: str
) -> None:
    pod = Pod.run(daemon)
    server = pod.start(WEBAPP, ["/usr/bin/python3", "-c", ECHO])
    # It listens on the pod's own localhost alone: no other way leads there.
    until("it listens", lambda: "0100007F:1B58 " in server.sh("cat /proc/net/tcp"))
    with forwarding(crictl, pod, 7000, transport) as (port, _), contextlib.ExitStack() as stack:
        address = ("127.0.0.1", port)
        connections = [
            stack.enter_context(socket.create_connection(address, timeout=120)) for _ in range(100)
        ]
        for number, connection in enumerate(connections):
            connection.sendall(b"connection %d" % number)
        for number, connection in enumerate(connections):
            wanted = b"connection %d" % number
            assert connection.recv(len(wanted), socket.MSG_WAITALL) == wanted
        for connection in connections:
            connection.sendall(b"the end")
            connection.shutdown(socket.SHUT_WR)
        for connection in connections:
            assert connection.recv(64, socket.MSG_WAITALL) == b"the end"


@both
def test_a_large_transfer_through_a_port(crictl: Crictl, daemon: Daemon, transport: str) -> None:
    pod = Pod.run(daemon)
    server = pod.start(WEBAPP, ["/usr/bin/python3", "-c", ECHO])
    until("it listens", lambda: "0100007F:1B58 " in server.sh("cat /proc/net/tcp"))
    payload = os.urandom(16 * 1024 * 1024)
    with (
        forwarding(crictl, pod, 7000, transport) as (port, _),
        socket.create_connection(("127.0.0.1", port), timeout=120) as connection,
    ):

        def send() -> None:
            connection.sendall(payload)
            connection.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = bytearray()
        while data := connection.recv(65536):
            received += data
        sender.join()
        assert hashlib.sha256(received).digest() == hashlib.sha256(payload).digest()


@both
def test_a_refused_port_is_told_in_kubectls_words(
    crictl: Crictl, shell: Container, transport: str
) -> None:
    with (
        forwarding(crictl, shell.pod, 81, transport) as (port, client),
        socket.create_connection(("127.0.0.1", port), timeout=60) as connection,
    ):
        assert connection.recv(1) == b""
        assert client.stderr is not None
        text = b""
        while b"error forwarding port 81 to pod " + shell.pod.id.encode() not in text:
            line = client.stderr.readline()
            assert line, text
            text += line
        assert b"an error occurred forwarding" in text


def test_the_daemons_death_ends_clients_and_nothing_else(durable: Daemon) -> None:
    crictl = Crictl(durable)
    pod = Pod.run(durable)
    script = "i=0; while sleep 0.05; do i=$((i+1)); echo tick $i; done"
    container = pod.start(SHELL, ["/bin/sh", "-c", script])
    argv = ("exec", "-i", container.id, "cat")
    with crictl.running(*argv, stdin=subprocess.PIPE) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        client.stdin.write(b"hello\n")
        client.stdin.flush()
        assert client.stdout.readline() == b"hello\n"
        durable.kill()
        client.communicate(timeout=60)
    durable.start()
    # The command's input has ended with the daemon, and the command with it.
    until("cat has ended", lambda: not processes(container, "cat"))
    before = len(container.output())
    until("the log goes on", lambda: len(container.output()) > before)
    assert crictl.out("exec", container.id, "echo", "again") == "again"


def test_status_names_the_streaming_address(crictl: Crictl, daemon: Daemon) -> None:
    found = json.loads(crictl.out("info"))
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+", found["config"]["streaming"])
