"""Every byte that a container says is in its log once, and comes once to each attached client."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable
from pathlib import Path

from cli import logfile
from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL
from e2e.harness.streams import (
    CLOSE,
    STDIN,
    STDOUT,
    V5,
    attach_url,
    channels,
    finish,
    start,
    write_script,
)
from e2e.harness.waiting import until

LINE = 16 * 1024
"""What the kubelet reads of a line at a time."""


def logged(files: Iterable[Path], stream: str = "stdout") -> bytes:
    return b"".join(
        line.content for file in files for line in logfile.read(str(file)) if line.stream == stream
    )


def reopen(container: Container) -> None:
    container.pod.daemon.client.runtime(
        "ReopenContainerLog",
        v1_pb2.ReopenContainerLogRequest(container_id=container.id),
        v1_pb2.ReopenContainerLogResponse,
    )


def test_long_lines_and_binary_without_a_final_newline(daemon: Daemon) -> None:
    seed = random.Random(3)
    data = b"".join(
        [
            b"x" * (LINE - 1) + b"\n",
            b"y" * LINE + b"\n",
            b"z" * (5 * LINE + 1) + b"\n",
            b"\n\n\r\n\0\n",
            seed.randbytes(1_000_000),
            b"\n",
            bytes(range(256)) * 10,
            b"\xe2\x82",
        ]
    )
    container = Pod.run(daemon).start(SHELL, ["/bin/cat"], stdin=True, stdin_once=True)
    with (
        channels(attach_url(container), V5) as watcher,
        channels(attach_url(container, stdin=True), V5) as client,
    ):
        for at in range(0, len(data), 30_000):
            client.send(STDIN, data[at : at + 30_000])
            # Who only writes would be dropped as one that does not read.
            while client.size(STDOUT) < at - 500_000:
                client.step()
        client.send(CLOSE, bytes([STDIN]))
        client.rest()
        watcher.rest()
        assert client.said(STDOUT) == data
        assert watcher.said(STDOUT) == data
    assert container.wait().exit_code == 0
    until("all of it is logged", lambda: logged([container.log_file]) == data)
    lines = container.log_file.read_bytes().split(b"\n")
    assert max(len(line) for line in lines) < LINE + 64
    assert lines[-1] == b""
    assert b" stdout P " in lines[-2]


def test_a_burst_of_10_mb_amid_rotations(daemon: Daemon, tmp_path: Path) -> None:
    last = 1_400_000
    numbers = "".join(f"{n}\n" for n in range(1, last + 1)).encode()
    text = b"here\n" + numbers
    assert len(text) > 10_000_000
    command = ["/bin/sh", "-c", f"read a; echo $a; read a; seq 1 {last}; printf end"]
    container = Pod.run(daemon).start(SHELL, command, stdin=True)
    with channels(attach_url(container)) as other:
        # Both stand before the first number is said: who is heard is attached.
        other.step()
        script = write_script(tmp_path, {"send": "here\n"})
        url = attach_url(container, stdin=True)
        watcher = start("exec", url, "-transport", "spdy", "-script", script)
        other.until(STDOUT, b"here\n")
        script = write_script(tmp_path, {"send": "go\n"})
        client = start("exec", attach_url(container, stdin=True), "-script", script)
        files: list[Path] = []
        while other.size(STDOUT) < len(text):
            other.step()
            # Renamed as the kubelet does it, at the first byte and then every few megabytes.
            if other.size(STDOUT) > len(files) * 3_000_000:
                files.append(container.log_file.with_suffix(f".log.{len(files)}"))
                container.log_file.rename(files[-1])
                reopen(container)
        other.rest()
        assert other.said(STDOUT) == text + b"end"
    assert len(files) == 4
    for process, wanted in ((watcher, text + b"end"), (client, numbers + b"end")):
        done = finish(process)
        assert (done["code"], done["error"], done["talk"]) == (0, "", "")
        assert done["stdout"]["sha256"] == hashlib.sha256(wanted).hexdigest()
    assert container.wait().exit_code == 0
    assert all(file.stat().st_size for file in files)
    until("all is logged", lambda: logged([*files, container.log_file]) == text + b"end")


def test_what_is_said_last_is_not_lost(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    # As much as a pipe holds: it is still there when the process has ended.
    script = "read a; head -c 60000 /dev/zero | tr '\\0' x; printf bad >&2; exit 3"
    for number in range(4):
        container = pod.start(SHELL, ["/bin/sh", "-c", script], name=f"c{number}", stdin=True)
        with channels(attach_url(container, stdin=True)) as client:
            client.send(STDIN, b"\n")
            client.rest()
            assert client.said(STDOUT) == b"x" * 60_000
            assert client.close_code == 1000
        assert container.wait().exit_code == 3
        assert logged([container.log_file]) == b"x" * 60_000
        assert logged([container.log_file], "stderr") == b"bad"
