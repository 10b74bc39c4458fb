"""Small parts of the daemon: signals, shapes, identity, locks, traces, processes, the socket."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from cri import identity, locks, processes, shapes, signals
from cri.api import v1_pb2 as v1
from cri.server import claim
from cri.service.container_create import log_path
from cri.trace import KEPT, Traces
from hostlib import linux
from hostlib.errors import FailedPrecondition, InvalidArgument, ResourceExhausted


@pytest.mark.parametrize(
    ("text", "number"),
    [("", 15), ("SIGTERM", 15), ("kill", 9), ("3", 3), ("SIGRTMIN+3", 37), ("RTMAX-1", 63)],
)
def test_signals(text: str, number: int) -> None:
    assert signals.number(text) == number


@pytest.mark.parametrize("text", ["SIGNONE", "0", "99", "RTMIN+40"])
def test_signals_that_do_not_exist(text: str) -> None:
    with pytest.raises(InvalidArgument):
        signals.number(text)


def test_every_signal_of_cri_has_a_number() -> None:
    for value in v1.Signal.values():
        name = signals.of_request(value)
        assert 0 < signals.number(name) <= 64
        if name and value != v1.SIGNAL_SIGCLD:
            assert v1.Signal.Value(signals.to_response(name)) == value


def test_shapes() -> None:
    ladder = ("1x512", "2x2048", "4x4096")
    assert shapes.pick(0, 0, ladder, "2x2048") == "2x2048"
    assert shapes.pick(1, 100, ladder, "2x2048") == "2x2048"
    assert shapes.pick(0, 2000, ladder, "2x2048") == "4x4096"
    with pytest.raises(ResourceExhausted, match="no shape holds 8 CPUs"):
        shapes.pick(8, 0, ladder, "2x2048")


def test_what_a_pod_asks_for() -> None:
    config = v1.PodSandboxConfig()
    config.linux.resources.cpu_period, config.linux.resources.cpu_quota = 100000, 150000
    config.linux.resources.memory_limit_in_bytes = 100 * 2**20
    config.linux.overhead.memory_limit_in_bytes = 2**20 + 1
    assert shapes.wanted(config) == (1.5, 102)


def test_identities_differ() -> None:
    one = identity.identity("web", ["10.0.0.2"], "")
    two = identity.identity("web", ["10.0.0.2"], "")
    assert "10.0.0.2\tweb" in one["hosts"]
    assert one["machine_id"] != two["machine_id"]
    assert one["boot_id"] != two["boot_id"]
    assert len(one["machine_id"]) == 32


def test_resolv_conf() -> None:
    dns = v1.DNSConfig(servers=["1.1.1.1"], searches=["a.b"], options=["ndots:5"])
    text = identity.resolv_conf(dns, ())
    assert text == "search a.b\nnameserver 1.1.1.1\noptions ndots:5\n"
    assert identity.resolv_conf(v1.DNSConfig(), ("9.9.9.9",)) == "nameserver 9.9.9.9\n"


def test_hostname() -> None:
    config = v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="web"))
    assert identity.hostname(config) == "web"
    config.hostname = "a b"
    with pytest.raises(InvalidArgument):
        identity.hostname(config)


def test_log_path() -> None:
    assert log_path("/logs", "a/0.log") == "/logs/a/0.log"
    assert log_path("", "x") == log_path("/logs", "") == ""
    with pytest.raises(InvalidArgument):
        log_path("/logs", "../x")


def test_locks(tmp_path: Path) -> None:
    held = locks.lock(tmp_path / "root", "root")
    with pytest.raises(FailedPrecondition, match=f"pid {os.getpid()}"):
        locks.lock(tmp_path / "root", "root")
    os.close(held)
    os.close(locks.lock(tmp_path / "root", "root"))


def test_a_stale_socket_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "s" / "sock"
    claim(path)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    claim(path)
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as live:
        live.bind(str(path))
        live.listen()
        with pytest.raises(FailedPrecondition, match="another process"):
            claim(path)
    path.unlink()
    path.touch()
    with pytest.raises(FailedPrecondition, match="no socket"):
        claim(path)


def test_traces_are_bounded() -> None:
    traces = Traces()
    for number in range(KEPT + 5):
        traces.begin(f"{number:04d}", "web", "default")
    found = traces.find("")
    assert len(found) == KEPT
    assert found[0].pod_id == f"{KEPT + 4:04d}"
    with pytest.raises(ZeroDivisionError), found[0].step("bad"):
        raise ZeroDivisionError("oops")
    assert found[0].steps[0].error == "oops"


async def test_ensure_dead() -> None:
    process = await asyncio.create_subprocess_exec("sleep", "60")
    start = linux.start_time(process.pid)
    assert start is not None
    assert processes.alive(process.pid, start)
    assert not processes.alive(process.pid, start + 1)
    await processes.ensure_dead(process.pid, start + 1, grace=0)
    assert process.returncode is None
    await processes.ensure_dead(process.pid, start, grace=0.01)
    assert await process.wait() == -9
