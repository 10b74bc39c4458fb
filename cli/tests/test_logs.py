from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import main
from cli.tests.fake_runtime import FakeRuntime, serving_runtime
from cri.api import v1_pb2
from hostlib import errors

T = b"2026-01-01T00:00:00.000000000Z"


@pytest.fixture
def runtime(tmp_path: Path) -> Iterator[FakeRuntime]:
    with serving_runtime(tmp_path) as runtime:
        yield runtime


def status(log: Path, state: v1_pb2.ContainerState) -> v1_pb2.ContainerStatusResponse:
    container = v1_pb2.ContainerStatus(id="c", state=state, log_path=str(log))
    return v1_pb2.ContainerStatusResponse(status=container)


def run(runtime: FakeRuntime, *argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main.main(["--address", runtime.address, "logs", *argv])
    return int(caught.value.code or 0)


@pytest.mark.parametrize("end", ["exited", "removed"])
def test_following_goes_on_while_the_daemon_is_away(
    runtime: FakeRuntime, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes], end: str
) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(T + b" stdout F before\n")
    asked = 0

    def answer(
        _: v1_pb2.ContainerStatusRequest,
    ) -> v1_pb2.ContainerStatusResponse | errors.ThawError:
        nonlocal asked
        asked += 1
        if asked == 1:
            return status(log, v1_pb2.CONTAINER_RUNNING)
        if asked < 4:
            return errors.Unavailable("restarting")
        with log.open("ab") as more:
            more.write(T + b" stderr P after")
            more.write(b"\n")
        if end == "removed":
            return errors.NotFound("gone")
        return status(log, v1_pb2.CONTAINER_EXITED)

    runtime.answers["ContainerStatus"] = answer
    assert run(runtime, "-f", "c") == 0
    assert asked == 4
    assert capfdbinary.readouterr() == (b"before\n", b"after")


def test_there_may_be_no_log(
    runtime: FakeRuntime, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run(runtime, "c") == 1
    assert b"has no log" in capfdbinary.readouterr().err
    runtime.answers["ContainerStatus"] = status(tmp_path / "none", v1_pb2.CONTAINER_RUNNING)
    assert run(runtime, "c") == 1
    assert b"does not exist" in capfdbinary.readouterr().err
    assert run(runtime, "--tail", "-1", "c") == 1


def test_a_closed_stdout_is_nothing(runtime: FakeRuntime, tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    log.write_bytes(T + b" stdout F lost\n" + T + b" stderr F said\n")
    runtime.answers["ContainerStatus"] = status(log, v1_pb2.CONTAINER_EXITED)
    argv = [sys.executable, "-m", "cli.main", "--address", runtime.address, "logs", "c"]
    done = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" >&-', *argv], stderr=subprocess.PIPE, check=False, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"said\n")
