"""Real traffic: host ports on the built-in network, and pods on a CNI network."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from cri.api import v1_pb2
from demo.images import PAGE
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP
from e2e.harness.registry import free_port
from e2e.harness.waiting import until
from hostlib import errors

CNI_BRIDGE = "thawe2e0"


def _get(url: str) -> str:
    def ask() -> str | None:
        try:
            return httpx.get(url, trust_env=False, timeout=5).text
        except httpx.TransportError:
            return None

    return until(f"{url} answers", ask)


def test_a_host_port_leads_to_the_pod_until_it_is_removed(daemon: Daemon) -> None:
    port = free_port()
    mapping = {"container_port": 80, "host_port": port}
    pod = Pod.run(daemon, port_mappings=[mapping])
    pod.start(NGINX)
    assert _get(f"http://127.0.0.1:{port}/") == PAGE
    pod.remove()
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{port}/", trust_env=False, timeout=2)


def test_addresses_are_not_given_twice_and_come_back(make_daemon: Callable[..., Daemon]) -> None:
    # Five addresses for pods: the network's, the bridge's and the broadcast's are none.
    daemon = make_daemon(settings={"network": {"subnet": "10.252.0.0/29"}, "pool": {"size": 0}})
    daemon.start()
    pods = [Pod.run(daemon) for _ in range(5)]
    assert len({pod.ip for pod in pods}) == 5
    with pytest.raises(errors.ResourceExhausted):
        Pod.run(daemon, "one-too-many")
    pods[0].remove()
    assert Pod.run(daemon, "in-its-place").state == v1_pb2.SANDBOX_READY


@pytest.fixture
def cni_folder(tmp_path: Path) -> Iterator[Path]:
    """A CNI configuration of Debian's bridge plugin, whose bridge goes with the test."""
    folder = tmp_path / "net.d"
    folder.mkdir()
    plugin = {
        "type": "bridge",
        "bridge": CNI_BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "ipam": {
            "type": "host-local",
            "dataDir": str(tmp_path / "ipam"),
            "ranges": [[{"subnet": "10.251.0.0/24"}]],
            "routes": [{"dst": "0.0.0.0/0"}],
        },
    }
    (folder / "10-test.conflist").write_text(
        json.dumps({"cniVersion": "1.0.0", "name": "thaw-e2e", "plugins": [plugin]})
    )
    yield folder
    subprocess.run(["ip", "link", "delete", CNI_BRIDGE], capture_output=True, check=False)


def test_pods_on_a_cni_network_reach_each_other(
    make_daemon: Callable[..., Daemon], cni_folder: Path
) -> None:
    daemon = make_daemon(settings={"network": {"cni_conf_dir": str(cni_folder)}}).start()
    for image in (SHELL, NGINX):
        daemon.client.pull_image(image)
    server, other = Pod.run(daemon), Pod.run(daemon)
    assert server.ip.startswith("10.251.0.")
    server.start(NGINX)
    assert server.get().text == PAGE
    peer = other.start(SHELL, SLEEP)
    assert peer.sh(f"wget -qO- http://{server.ip}/") == PAGE.strip()
    for pod in (server, other):
        pod.remove()
    leases = [file.name for file in (cni_folder.parent / "ipam").rglob("10.251.*")]
    assert leases == []
