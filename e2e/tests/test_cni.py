"""Pods on CNI networks: Debian's bridge and portmap plugins, plugins that fail, and crashes."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cri.api import v1_pb2
from demo.images import PAGE
from e2e.harness import traffic
from e2e.harness.daemon import Daemon
from e2e.harness.outside import Outside, reach, sh, subnet
from e2e.harness.pods import Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP, WEBAPP
from e2e.harness.registry import free_port
from e2e.harness.waiting import until
from hostlib import errors
from hostlib.process import ENVIRONMENT

FAILING = """#!/bin/sh
echo "$CNI_COMMAND $CNI_CONTAINERID" >>{log}
[ "$CNI_COMMAND" = DEL ] && exit 0
echo '{{"cniVersion": "1.0.0", "code": 117,
       "msg": "no port left on the switch", "details": "rack 7"}}'
exit 1
"""


@dataclass
class Cni:
    """A folder with one configuration, and where its plugins keep addresses. Bridge and subnet are
    its own, since other tests may run beside."""

    folder: Path
    plugins: list[dict[str, Any]] = field(default_factory=list)
    bridge: str = field(default_factory=lambda: f"thawe{secrets.token_hex(4)}")
    subnet: str = field(default_factory=subnet)

    @property
    def bins(self) -> Path:
        return self.folder / "bin"

    def add(self, plugin: dict[str, Any]) -> None:
        self.plugins.append(plugin)
        (self.folder / "net.d" / "10-test.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "thaw-e2e", "plugins": self.plugins})
        )

    @property
    def settings(self) -> dict[str, Any]:
        return {
            "network": {
                "cni_conf_dir": str(self.folder / "net.d"),
                "cni_bin_dirs": [str(self.bins), "/opt/cni/bin", "/usr/lib/cni"],
            }
        }

    def held(self) -> list[str]:
        """The addresses that the IPAM plugin believes in use."""
        files = (file.name for file in (self.folder / "ipam").rglob("10.*"))
        return [name for name in files if self.covers(name)]

    def covers(self, ip: str) -> bool:
        return ipaddress.ip_address(ip) in ipaddress.ip_network(self.subnet)

    def left(self, daemon: Daemon) -> list[str]:
        """All that is left of pods on this network."""
        cache = [path.name for path in (daemon.state / "cni" / "cache").glob("*.json")]
        links = json.loads(sh("ip", "-json", "link", "show"))
        ports = [link["ifname"] for link in links if link.get("master") == self.bridge]
        return self.held() + cache + ports


@pytest.fixture
def cni(tmp_path: Path) -> Iterator[Cni]:
    """A network of Debian's bridge plugin; the bridge goes with the test."""
    made = Cni(tmp_path)
    for name in ("net.d", "bin"):
        (tmp_path / name).mkdir()
    made.add(
        {
            "type": "bridge",
            "bridge": made.bridge,
            "isGateway": True,
            "ipMasq": False,
            "ipam": {
                "type": "host-local",
                "dataDir": str(tmp_path / "ipam"),
                "ranges": [[{"subnet": made.subnet}]],
                "routes": [{"dst": "0.0.0.0/0"}],
            },
        }
    )
    yield made
    _quietly("ip", "link", "delete", made.bridge)


def _quietly(*argv: str) -> None:
    subprocess.run(argv, capture_output=True, check=False, env=dict(ENVIRONMENT))


@pytest.fixture
def no_iptables_left() -> Iterator[None]:
    """portmap leaves its top chains for the next pod: they go with the test, unless the host had a
    table of that kind before."""
    before = set(sh("nft", "list", "tables").splitlines())
    yield
    for line in set(sh("nft", "list", "tables").splitlines()) - before:
        if line.split()[-1] in ("nat", "filter", "mangle", "raw"):
            _quietly("nft", "delete", *line.split())


def test_pods_reach_each_other(make_daemon: Callable[..., Daemon], cni: Cni) -> None:
    daemon = make_daemon(settings=cni.settings).start()
    for image in (SHELL, NGINX):
        daemon.client.pull_image(image)
    server, other = Pod.run(daemon), Pod.run(daemon)
    assert cni.covers(server.ip)
    server.start(NGINX)
    assert server.get().text == PAGE
    peer = other.start(SHELL, SLEEP)
    assert peer.sh(f"wget -qO- http://{server.ip}/") == PAGE.strip()
    # The daemon and a shim die: the pod that is removed then is still taken off its network.
    daemon.kill()
    os.kill(daemon.records()[server.vm]["shim_pid"], signal.SIGKILL)
    daemon.start()
    assert server.state == v1_pb2.SANDBOX_NOTREADY
    assert peer.sh("echo up") == "up"
    for pod in (server, other):
        pod.remove()
    until("nothing is left", lambda: not cni.left(daemon))


@pytest.mark.parametrize("point", ["network.attach.link", "sandbox.bind"])
def test_a_crash_between_add_and_the_pod_is_followed_by_del(
    make_daemon: Callable[..., Daemon], cni: Cni, point: str
) -> None:
    daemon = make_daemon(settings=cni.settings).start()
    daemon.arm(f"{point}=kill")
    with pytest.raises(errors.ThawError):
        Pod.run(daemon)
    daemon.await_end()
    assert cni.held()
    daemon.arm("")
    daemon.start()
    assert not daemon.client.pods()
    until("nothing is left", lambda: not cni.left(daemon))


@pytest.mark.usefixtures("no_iptables_left")
def test_host_ports_by_portmap(
    make_daemon: Callable[..., Daemon], cni: Cni, outside: Outside
) -> None:
    cni.add({"type": "portmap", "capabilities": {"portMappings": True}, "snat": True})
    daemon = make_daemon(settings=cni.settings).start()
    daemon.client.pull_image(WEBAPP)
    ports = {"tcp": free_port(), "udp": free_port()}
    kinds = {"tcp": v1_pb2.TCP, "udp": v1_pb2.UDP}
    pod = Pod.run(
        daemon,
        port_mappings=[
            v1_pb2.PortMapping(protocol=kinds[kind], container_port=7000, host_port=port)
            for kind, port in ports.items()
        ],
    )
    pod.start(WEBAPP, ["/usr/bin/python3", "-c", traffic.SOURCE, "serve", "7000"])
    for kind, port in ports.items():
        assert reach(kind, pod.ip, 7000).endswith(" hello")
        assert outside.probe(kind, outside.gateway, port) == f"{outside.address} hello"
        assert traffic.probe(kind, outside.gateway, port).endswith(" hello")
    assert traffic.probe("tcp", "127.0.0.1", ports["tcp"]).endswith(" hello")
    pod.remove()
    until("nothing is left", lambda: not cni.left(daemon))
    assert pod.id not in sh("nft", "list", "ruleset")
    for kind, port in ports.items():
        assert not outside.reaches(kind, outside.gateway, port)


def test_a_plugin_that_fails_fails_the_pod_with_its_message(
    make_daemon: Callable[..., Daemon], cni: Cni, tmp_path: Path
) -> None:
    calls = tmp_path / "calls"
    plugin = cni.bins / "switch"
    plugin.write_text(FAILING.format(log=calls))
    plugin.chmod(0o755)
    cni.add({"type": "switch"})
    daemon = make_daemon(settings=cni.settings).start()
    with pytest.raises(errors.Unavailable, match="switch") as caught:
        Pod.run(daemon)
    for part in ("no port left on the switch", "rack 7", "ADD"):
        assert part in caught.value.message
    # Both plugins are asked to take back what they may have done, the failed one first.
    assert [line.split()[0] for line in calls.read_text().splitlines()] == ["ADD", "DEL"]
    assert not daemon.client.pods()
    assert not daemon.bound_vms()
    until("nothing is left", lambda: not cni.left(daemon))


def test_a_plugin_that_is_missing_is_said_by_status_and_by_the_pod(
    make_daemon: Callable[..., Daemon], cni: Cni
) -> None:
    cni.add({"type": "no-such-plugin"})
    daemon = make_daemon(settings=cni.settings).start()
    network = next(
        condition
        for condition in daemon.client.status().status.conditions
        if condition.type == "NetworkReady"
    )
    assert not network.status
    assert "no-such-plugin" in network.message
    with pytest.raises(errors.FailedPrecondition, match="no-such-plugin") as caught:
        Pod.run(daemon)
    assert caught.value.hint
    until("nothing is left", lambda: not cni.left(daemon))
