"""The pool on a node: gives memory back when that is short, and grows with bursts of pods."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cri.api import thaw_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.waiting import until
from e2e.tests.test_command import thaw

TOTAL_KB = 8 * 1024 * 1024


def set_available(proc: Path, percent: int) -> None:
    """The host has so much of its memory to spare, as the daemon reads it."""
    partial = proc / "new"
    partial.write_text(f"MemTotal:  {TOTAL_KB} kB\nMemAvailable:  {TOTAL_KB * percent // 100} kB\n")
    partial.rename(proc / "meminfo")


def pool(daemon: Daemon) -> thaw_pb2.PoolShape:
    return daemon.client.pool().shapes[0]


def test_no_vm_waits_while_memory_is_short(
    make_daemon: Callable[..., Daemon], tmp_path: Path
) -> None:
    set_available(tmp_path, 90)
    daemon = make_daemon(
        settings={"pool": {"size": 2, "relief_seconds": 0.5}},
        environment={"THAW_PROC": str(tmp_path)},
    ).start()
    until("two VMs wait", lambda: pool(daemon).ready == 2, 240)
    set_available(tmp_path, 4)
    until("none waits", lambda: not daemon.records() and not daemon.qemus(), 120)
    found = pool(daemon)
    assert (found.ready, found.size) == (0, 0)
    assert "pool.min_available_percent" in found.pressure
    doctor = thaw(daemon, "doctor")
    assert "no VM waits" in doctor.stdout
    assert "pool.min_available_percent" in doctor.stdout
    status = json.loads(daemon.client.status(verbose=True).info["pool"])
    assert status["pressure"] == found.pressure
    daemon.client.pull_image(SHELL)
    pod = Pod.run(daemon)
    pod.start(SHELL, SLEEP)
    assert pool(daemon).ready == 0
    set_available(tmp_path, 90)
    until("two VMs wait again", lambda: pool(daemon).ready == 2, 240)
    assert pool(daemon).pressure == ""
    assert "no VM waits" not in thaw(daemon, "doctor").stdout


def test_the_pool_grows_with_a_burst(make_daemon: Callable[..., Daemon]) -> None:
    daemon = make_daemon(settings={"pool": {"size": 1, "max_size": 3}}).start()
    until("a VM waits", lambda: pool(daemon).ready == 1, 240)
    with ThreadPoolExecutor(5) as threads:
        list(threads.map(lambda _: Pod.run(daemon), range(5)))
    until("three VMs wait", lambda: pool(daemon).ready == 3, 240)
    found = pool(daemon)
    assert (found.size, found.max_size) == (3, 3)
