"""Clients that never read stop their own streams and nobody else's, and cost bounded memory."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from websockets.exceptions import ConnectionClosed

from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.streams import attach_url, channels, exec_url, forward_url, run
from e2e.harness.waiting import until

OTHERS: Final = 20
"""Execs at once beside the clients that do not read. A runtime that waited for the readers would
never answer them; the writers are held up, so they take no time of the guest's processor, and the
summary of the run says what the execs took."""
MORE_MIB: Final = 16.0
"""What an exec, an attachment and a forwarded connection that nobody reads may hold together, in
thawd and in the shim each: the shim keeps 4 MiB for who is attached, and 256 KiB of credit else."""

WRITER: Final = (
    "line=$(head -c 64000 /dev/zero | tr '\\0' x); n=0;"
    "while :; do echo $line; n=$((n+1)); echo $n >/progress{0}; done"
)
"""Says how many lines it got rid of."""


def memory(pid: int) -> float:
    """MiB that a process holds by itself."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Private_Dirty:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"process {pid} does not tell its memory")


def latency(box: Container) -> float:
    """Median seconds of `OTHERS` execs at once, each from its URL to its exit code."""

    def one(number: int) -> float:
        begun = time.monotonic()
        assert run(box, f"echo {number}") == (0, f"{number}\n".encode())
        return time.monotonic() - begun

    with ThreadPoolExecutor(OTHERS) as pool:
        return statistics.median(pool.map(one, range(OTHERS)))


def held_up(box: Container, name: str) -> None:
    """Wait until a writer gets rid of nothing more."""
    seen: list[str] = []

    def still() -> bool:
        seen.append(box.sh(f"cat /progress{name} 2>/dev/null || true"))
        return len(seen) > 10 and seen[-1] != "" and len(set(seen[-10:])) == 1

    until(f"the writer {name} is held up", still, 60)


def test_execs_go_on_beside_clients_that_never_read(
    daemon: Daemon, record_property: Callable[[str, object], None]
) -> None:
    assert daemon.process is not None
    here, there = Pod.run(daemon).start(SHELL, SLEEP), Pod.run(daemon).start(SHELL, SLEEP)
    server = ["nc", "-ll", "-p", "7000", "-e", "/bin/sh", "-c", WRITER.format("tcp")]
    forwarded = here.pod.start(SHELL, server, name="server")
    burst = "read a; yes $(seq -s , 1 2000 | head -c 7999) | head -n 1500; exec sleep 1000000"
    chatty = here.pod.start(SHELL, ["/bin/sh", "-c", burst], name="chatty", stdin=True)
    pids = {"thawd": daemon.process.pid, "shim": daemon.records()[here.pod.vm]["shim_pid"]}
    for box in (here, there):
        latency(box)
    record_property("seconds of an exec", latency(here))
    latency(there)
    held = {name: memory(pid) for name, pid in pids.items()}

    urls = [exec_url(here, WRITER.format("exec")), forward_url(here.pod, 7000)]
    urls.append(attach_url(chatty, stdin=True, stderr=False))
    with contextlib.ExitStack() as stack:
        # The library reads one message ahead; then TCP's buffers fill.
        deaf = [stack.enter_context(channels(url, max_queue=1)) for url in urls]
        deaf[2].send(0, b"go\n")
        held_up(here, "exec")
        held_up(forwarded, "tcp")
        until("the burst is logged", lambda: chatty.output().count("\n") == 1500, 60)
        assert len(chatty.output()) == 1500 * 8000
        for name, pid in pids.items():
            assert memory(pid) < held[name] + MORE_MIB, name
        record_property("seconds of an exec beside clients that never read", latency(here))
        latency(there)
        for name, pid in pids.items():
            assert memory(pid) < held[name] + MORE_MIB, name

        # Who reads again has missed nothing, and the writers go on.
        progress = here.sh("cat /progressexec")
        while deaf[0].size(1) < 64001 * (int(progress) + 1):
            deaf[0].step()
        assert set(deaf[0].said(1)) == set(b"x\n")
        # But an attached one was dropped: its container waits for nobody.
        with contextlib.suppress(ConnectionClosed, TimeoutError):
            while True:
                deaf[2].step(10)
        assert deaf[2].size(1) < 1500 * 8000
        for client in deaf:
            client.vanish()
