"""`thaw` on terminals and pipes, with real pods: exec, attach, run, logs, port-forward."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cri.api import v1_pb2
from demo.images import PAGE
from e2e.harness.daemon import PROJECT, Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP
from e2e.harness.terminal import Terminal
from e2e.harness.waiting import until
from hostlib.process import ENVIRONMENT

THAW = str(PROJECT / ".venv" / "bin" / "thaw")
ENV = {**ENVIRONMENT, "TERM": "xterm"}


def argv(daemon: Daemon, *arguments: str) -> list[str]:
    return [THAW, "--address", daemon.address, *arguments]


def thaw(daemon: Daemon, *arguments: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        argv(daemon, *arguments),
        input=given,
        capture_output=True,
        check=False,
        timeout=180,
        env=ENV,
    )


@contextlib.contextmanager
def running(daemon: Daemon, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """The command, killed in the end if it still runs."""
    process = subprocess.Popen(
        argv(daemon, *arguments),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=ENV,
        bufsize=0,
    )
    with process:
        try:
            yield process
        finally:
            process.kill()


def rest(process: subprocess.Popen[bytes]) -> tuple[int, bytes, bytes]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


@pytest.fixture
def shell(daemon: Daemon) -> Container:
    return Pod.run(daemon).start(SHELL, SLEEP)


def test_exec_streams_with_its_exit_code(daemon: Daemon, shell: Container) -> None:
    script = "echo up; while [ ! -e /tmp/go ]; do sleep .1; done; echo gone"
    with running(daemon, "exec", shell.id[:12], "sh", "-c", script) as process:
        # It comes while the command runs.
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        shell.sh("touch /tmp/go")
        code, out, _ = rest(process)
        assert (code, out) == (0, b"gone\n")
    done = thaw(daemon, "exec", shell.id, "sh", "-c", "echo out; echo err >&2; exit 44")
    assert (done.returncode, done.stdout, done.stderr) == (44, b"out\n", b"err\n")
    done = thaw(daemon, "exec", shell.id, "sh", "-c", "kill -TERM $$")
    assert done.returncode == 128 + signal.SIGTERM


def test_stdin_has_an_end(daemon: Daemon, shell: Container) -> None:
    payload = os.urandom(8 * 1024 * 1024)
    done = thaw(daemon, "exec", "-i", shell.id, "cat", given=payload)
    assert (done.returncode, done.stderr) == (0, b"")
    assert hashlib.sha256(done.stdout).digest() == hashlib.sha256(payload).digest()


@pytest.mark.parametrize(
    ("program", "code", "says"),
    [
        ("nonsense", 127, b"executable file not found in $PATH"),
        ("/no/such", 127, b"no such file or directory"),
        ("/etc", 126, b"is a directory"),
    ],
)
def test_a_command_that_cannot_be_run(
    daemon: Daemon, shell: Container, program: str, code: int, says: bytes
) -> None:
    for options in ((), ("-i",), ("--timeout", "20")):
        done = thaw(daemon, "exec", *options, shell.id, program)
        assert done.returncode == code, done
        assert done.stderr.startswith(b"error: exec")
        assert says in done.stderr
    done = thaw(daemon, "run", SHELL, program)
    assert done.returncode == code, done
    assert says in done.stderr


def test_a_terminal_has_the_size_of_ours_and_follows_it(daemon: Daemon, shell: Container) -> None:
    with Terminal(argv(daemon, "exec", "-it", shell.id, "sh"), ENV, width=91, height=31) as tty:
        tty.type("stty size; echo size $((1+1))\n")
        tty.see("31 91\r\n")
        tty.see("size 2")
        assert not tty.restored
        tty.resize(101, 41)
        tty.type(
            "while [ \"$(stty size)\" != '41 101' ]; do sleep .1; done; echo resized $((1+1))\n"
        )
        tty.see("resized 2")
        # Ctrl-C is for the command there, not for us.
        # Not what the container itself runs.
        tty.type("sleep 7654321\n")
        until("it sleeps", lambda: "sleep 7654321" in shell.sh("ps"))
        tty.type("\x03")
        # What is typed before the prompt may still be read by who is about to die.
        tty.see("^C")
        tty.see("# ")
        tty.type("echo alive $((1+1)); exit 5\n")
        tty.see("alive 2")
        assert tty.end() == 5
        assert tty.restored


def test_the_terminal_is_restored_when_thawd_is_killed(
    make_daemon: Callable[..., Daemon],
) -> None:
    daemon = make_daemon().start()
    daemon.client.pull_image(SHELL)
    container = Pod.run(daemon).start(SHELL, SLEEP)
    with Terminal(argv(daemon, "exec", "-it", container.id, "sh"), ENV) as tty:
        tty.type("echo up $((1+1))\n")
        tty.see("up 2")
        assert not tty.restored
        daemon.kill()
        tty.see("error: the connection to the streaming server was lost")
        assert (tty.end(), tty.restored) == (1, True)
    daemon.start()
    assert thaw(daemon, "exec", container.id, "echo", "again").stdout == b"again\n"


def test_attach_talks_to_a_container_and_ends_with_it(daemon: Daemon) -> None:
    script = "while read line; do echo got $line; echo err >&2; done; exit 6"
    container = Pod.run(daemon).start(SHELL, ["/bin/sh", "-c", script], stdin=True, stdin_once=True)
    done = thaw(daemon, "attach", container.id[:12], given=b"one\ntwo\n")
    assert (done.returncode, done.stdout) == (6, b"got one\ngot two\n")
    assert done.stderr == b"err\nerr\n"
    done = thaw(daemon, "attach", container.id)
    assert done.returncode == 1
    assert b"has ended" in done.stderr


def test_detaching_from_a_terminal_leaves_the_container(daemon: Daemon) -> None:
    container = Pod.run(daemon).start(SHELL, ["/bin/sh"], stdin=True, tty=True)
    for word in ("one", "two"):
        with Terminal(argv(daemon, "attach", container.id), ENV, width=93, height=33) as tty:
            # Twice: what was typed before we were there is not lost.
            tty.type(f"stty size; echo {word} $((1+1))\n")
            tty.see("33 93")
            tty.see(f"{word} 2")
            tty.type("\x10\x11")
            assert tty.end() == 0
            assert tty.restored
    assert container.status().state == v1_pb2.CONTAINER_RUNNING
    with Terminal(argv(daemon, "attach", container.id), ENV) as tty:
        tty.type("exit 8\n")
        assert tty.end() == 8


def test_run_in_a_terminal(daemon: Daemon) -> None:
    with Terminal(argv(daemon, "run", "-it", SHELL, "sh"), ENV, width=95, height=35) as tty:
        # The prompt, which comes once, at the start, is not missed.
        tty.see("# ")
        tty.type("stty size; exit 7\n")
        tty.see("35 95")
        assert tty.end() == 7
        assert tty.restored
    assert not daemon.client.pods()
    done = thaw(daemon, "run", "-i", SHELL, "sh", "-c", "cat; exit 3", given=b"piped")
    assert (done.returncode, done.stdout) == (3, b"piped")
    assert not daemon.client.pods()
    done = thaw(daemon, "run", "-t", SHELL, "sh", "-c", "tty; exit 4")
    assert done.returncode == 4
    assert done.stdout.startswith(b"/dev/")
    assert not daemon.client.pods()


def test_a_terminal_run_that_is_detached_goes_on(daemon: Daemon) -> None:
    with Terminal(argv(daemon, "run", "-it", SHELL, "sh"), ENV) as tty:
        tty.see("# ")
        tty.type("\x10\x11")
        tty.see("detached")
        assert tty.end() == 0
    (container,) = daemon.client.containers()
    assert container.state == v1_pb2.CONTAINER_RUNNING
    with Terminal(argv(daemon, "attach", container.id), ENV) as tty:
        tty.type("exit 9\n")
        assert tty.end() == 9


def goes_on(container: Container) -> bool:
    ended = container.status().state == v1_pb2.CONTAINER_EXITED
    return ended or container.log_file.stat().st_size > 0


def test_logs_follow_over_rotations_to_the_end(daemon: Daemon) -> None:
    script = (
        "for part in 1 2 3; do seq 1 20000 | sed s/^/$part-/; read x; done;"
        "head -c 100000 /dev/zero | tr '\\0' x; exit 1"
    )
    container = Pod.run(daemon).start(SHELL, ["/bin/sh", "-c", script], stdin=True)
    with running(daemon, "logs", "-f", container.id[:12]) as follower:
        seen = bytearray()
        for part in (1, 2, 3):
            assert follower.stdout is not None
            while not seen.endswith(b"%d-20000\n" % part):
                seen += os.read(follower.stdout.fileno(), 1 << 16)
            os.rename(container.log_file, f"{container.log_file}.{part}")
            daemon.client.runtime(
                "ReopenContainerLog",
                v1_pb2.ReopenContainerLogRequest(container_id=container.id),
                v1_pb2.ReopenContainerLogResponse,
            )
            with running(daemon, "attach", container.id) as typist:
                assert typist.stdin is not None
                typist.stdin.write(b"go on\n")
                typist.stdin.flush()
                until("it goes on", lambda: goes_on(container))
        code, out, err = rest(follower)
        seen += out
    assert (code, err) == (0, b"")
    lines = b"".join(b"%d-%d\n" % (part, n) for part in (1, 2, 3) for n in range(1, 20001))
    assert bytes(seen) == lines + b"x" * 100_000
    done = thaw(daemon, "logs", "--tail", "1", container.id)
    assert done.stdout == b"x" * 100_000
    assert thaw(daemon, "logs", "--since", "1h", container.id).stdout == done.stdout
    assert thaw(daemon, "logs", "--since", "2100-01-01T00:00:00Z", container.id).stdout == b""


@contextlib.contextmanager
def forwarding(
    daemon: Daemon, pod: Pod, *ports: str
) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with running(daemon, "port-forward", pod.id[:12], *ports) as process:
        assert process.stdout is not None
        match = re.fullmatch(
            rb"Forwarding from 127\.0\.0\.1:([0-9]+) -> [0-9]+\n", process.stdout.readline()
        )
        assert match
        yield process, int(match[1])


def test_port_forward(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    pod.start(NGINX)
    pod.get()
    with forwarding(daemon, pod, ":80") as (process, port):
        for host in ("127.0.0.1", "[::1]"):
            url = f"http://{host}:{port}"
            with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
                assert all(client.get("/").text == PAGE for _ in range(20))
        process.send_signal(signal.SIGINT)
        code, _, err = rest(process)
        assert (code, err) == (128 + signal.SIGINT, b"")
    with forwarding(daemon, pod, ":81") as (process, port):
        with pytest.raises(httpx.TransportError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=60)
        assert process.stderr is not None
        said = process.stderr.readline().decode()
        assert said.startswith(f"error: port {port} -> 81: ")
        assert "refused" in said
        assert process.poll() is None


def test_port_forward_to_nothing(daemon: Daemon, tmp_path: Path) -> None:
    done = thaw(daemon, "port-forward", "0" * 64, "80")
    assert done.returncode == 1
    assert done.stderr.startswith(b"error: ")
