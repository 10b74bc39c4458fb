"""Two pods from one snapshot share nothing that a clone must not share."""

from __future__ import annotations

import socket
import time

from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from e2e.harness.waiting import until

CLOCK_SECONDS = 0.001
"""How far a guest's clock may be off."""

CLOCK_READINGS = 200
"""Each one only says that the guest's clock was read between the question and the answer; together
they leave an interval for its offset that is as short as the shortest."""

CLOCK_PORT = 4123
CLOCK_SERVER = f"""
import socket, time
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("", {CLOCK_PORT}))
while True:
    asked, peer = server.recvfrom(16)
    server.sendto(asked + b" " + repr(time.time()).encode(), peer)
"""


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


def _ask(asker: socket.socket, number: int) -> float | None:
    """The guest's clock; None where it does not answer soon. Late answers to others are dropped."""
    try:
        asker.send(b"%d" % number)
        while True:
            asked, _, told = asker.recv(64).partition(b" ")
            if int(asked) == number:
                return float(told)
    except OSError:
        return None


def test_the_clock_is_right_however_old_the_snapshot(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    pod.start(WEBAPP, ["/usr/bin/python3", "-c", CLOCK_SERVER])
    least, most = -float("inf"), float("inf")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(1)
        asker.connect((pod.ip, CLOCK_PORT))
        until("the clock server answers", lambda: _ask(asker, 0), 60)
        asker.settimeout(60)
        for number in range(1, CLOCK_READINGS + 1):
            before = time.time()
            inside = _ask(asker, number)
            after = time.time()
            assert inside is not None
            least, most = max(least, inside - after), min(most, inside - before)
    assert least <= CLOCK_SECONDS, f"the guest's clock is at least {least:.4f} s ahead"
    assert most >= -CLOCK_SECONDS, f"the guest's clock is at least {-most:.4f} s behind"


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
