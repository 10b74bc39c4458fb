"""Two pods from one snapshot share nothing that a clone must not share."""

from __future__ import annotations

import time

from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP

CLOCK_SECONDS = 1.0
"""How far a guest's clock may be off as it is read through ExecSync, under emulation."""


def _identity(container: Container) -> dict[str, str]:
    return {
        "random": container.sh("head -c 32 /dev/urandom | sha256sum"),
        "uuid": container.sh("cat /proc/sys/kernel/random/uuid"),
        "boot_id": container.sh("cat /proc/sys/kernel/random/boot_id"),
        "machine_id": container.sh("cat /etc/machine-id"),
        "hostname": container.sh("hostname"),
        "mac": container.sh("cat /sys/class/net/eth0/address"),
        "ip": container.sh("ip -4 -o addr show eth0 | tr -s ' ' | cut -d ' ' -f 4"),
    }


def test_two_pods_from_one_snapshot_differ_in_all_that_identifies_them(daemon: Daemon) -> None:
    pods = [Pod.run(daemon), Pod.run(daemon)]
    first, second = (_identity(pod.start(SHELL, SLEEP)) for pod in pods)
    keys = {daemon.records()[pod.vm]["snapshot_key"] for pod in pods}
    assert len(keys) == 1
    for name, value in first.items():
        assert value, name
        assert value != second[name], name


def test_the_clock_is_right_however_old_the_snapshot(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    container = pod.start(SHELL, SLEEP)
    before = time.time()
    inside = float(container.sh("date +%s"))
    after = time.time()
    assert before - 1 - CLOCK_SECONDS <= inside <= after + CLOCK_SECONDS


def test_hosts_and_resolv_conf_are_the_pods_own(daemon: Daemon) -> None:
    pod = Pod.run(
        daemon,
        hostname="own-name",
        dns_config={"servers": ["192.0.2.53"], "searches": ["e2e.test"]},
    )
    container = pod.start(SHELL, SLEEP)
    assert f"{pod.ip}\town-name" in container.sh("cat /etc/hosts").replace(" ", "\t")
    text = container.sh("cat /etc/resolv.conf")
    assert "nameserver 192.0.2.53" in text
    assert "search e2e.test" in text
