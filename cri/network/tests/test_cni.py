"""CNI with Debian's own plugins."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cri.network import cni_config
from cri.network.api import Attachment, Dns, HostPort, NetworkConfig, PodIdentity
from cri.network.cni import CniNetwork, plugin_error
from cri.network.create import create
from cri.network.tests.conftest import HERE, Machine, Server, echo, sh, trace
from hostlib import failpoint
from hostlib.errors import FailedPrecondition, ResourceExhausted, Unavailable
from hostlib.process import Result

POD = PodIdentity("c" * 64, "web", "default", "uid-1")
BRIDGE = {
    "type": "bridge",
    "bridge": "cni0",
    "isGateway": True,
    "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "10.77.0.0/29"}]],
        "routes": [{"dst": "0.0.0.0/0"}],
    },
}
LIST = {"cniVersion": "1.0.0", "name": "podnet", "plugins": [BRIDGE]}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}


@pytest.fixture
def config(tmp_path: Path) -> NetworkConfig:
    folder = tmp_path / "net.d"
    folder.mkdir()
    (folder / "05-broken.conf").write_text("{")
    (folder / "10-pod.conflist").write_text(json.dumps(LIST))
    return NetworkConfig(cni_conf_dir=folder)


async def attach(network: CniNetwork, vm: Machine, pod: PodIdentity = POD) -> Attachment:
    return await network.attach(vm.id, vm.netns, pod)


async def test_add_traffic_check_and_del(
    config: NetworkConfig,
    host: None,
    machine: Callable[[str], Machine],
    serve: Callable[..., Server],
    tmp_path: Path,
) -> None:
    network = CniNetwork(config, tmp_path / "state")
    await network.start()
    assert network.ready() == (True, "", "")
    one = machine("vm000001")
    held = await attach(network, one)
    assert held.guest["addresses"] == [f"{held.ips[0]}/29"]
    assert {"dst": "0.0.0.0/0", "gateway": "10.77.0.1"} in held.guest["routes"]
    assert list((tmp_path / "state/cni/host-local/podnet").glob("10.77.*"))
    one.configure(held.guest)
    serve(one.guest, 80)
    assert await echo(HERE, held.ips[0], 80, b"x" * 1_000_000) == b"x" * 1_000_000
    await network.check(one.netns, POD)
    opaque = json.loads(json.dumps(held.opaque))
    await network.detach(one.id, one.netns, POD, opaque)
    await network.detach(one.id, one.netns, POD, opaque)
    assert not list((tmp_path / "state/cni/host-local/podnet").glob("10.77.*"))
    assert not list((tmp_path / "state/cni/cache").iterdir())
    assert "eth0" not in sh("ip", "-o", "link", netns=one.netns)


@pytest.mark.parametrize(
    "point", ["network.attach.address", "network.attach.link", "network.attach.done"]
)
async def test_a_failed_step_leaves_nothing(
    config: NetworkConfig,
    host: None,
    machine: Callable[[str], Machine],
    tmp_path: Path,
    point: str,
) -> None:
    network = CniNetwork(config, tmp_path / "state")
    await network.start()
    one = machine("vm000001")
    failpoint.arm(f"{point}=1*error")
    with pytest.raises(failpoint.Injected):
        await attach(network, one)
    assert "veth" not in trace()[0]
    assert not list((tmp_path / "state/cni").glob("host-local/podnet/10.77.*"))
    assert not list((tmp_path / "state/cni/cache").iterdir())


async def test_a_plugin_that_fails_to_detach_is_asked_again(
    config: NetworkConfig, host: None, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    """Every other is asked all the same; the record of the attachment stays until all have."""
    network = CniNetwork(config, tmp_path / "state")
    await network.start()
    one = machine("vm000001")
    held = await attach(network, one)
    failpoint.arm("network.detach.plugin=1*error")
    with pytest.raises(failpoint.Injected):
        await network.detach(one.id, one.netns, POD, held.opaque)
    assert list((tmp_path / "state/cni/cache").iterdir())
    await network.detach(one.id, one.netns, POD, held.opaque)
    assert "veth" not in trace()[0]
    assert not list((tmp_path / "state/cni").glob("host-local/podnet/10.77.*"))
    assert not list((tmp_path / "state/cni/cache").iterdir())


async def test_reconcile_frees_a_pod_whose_namespace_is_gone(
    config: NetworkConfig, host: None, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    network = CniNetwork(config, tmp_path / "state")
    await network.start()
    one = machine("vm000001")
    await attach(network, one)
    one.close()
    again = CniNetwork(config, tmp_path / "state")
    await again.start()
    await again.reconcile({})
    assert not list((tmp_path / "state/cni/host-local/podnet").glob("10.77.*"))
    assert not list((tmp_path / "state/cni/cache").iterdir())


async def test_reconcile_takes_the_interface_from_a_vm_that_lives_on(
    config: NetworkConfig, host: None, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    network = CniNetwork(config, tmp_path / "state")
    await network.start()
    one = machine("vm000001")
    await attach(network, one)
    again = CniNetwork(config, tmp_path / "state")
    await again.start()
    await again.reconcile({one.id: {}})
    assert "eth0" not in sh("ip", "-o", "link", netns=one.netns)
    await attach(again, one)


async def test_a_plugin_that_is_missing_leaves_nothing_to_undo(
    config: NetworkConfig, host: None, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    path = config.cni_conf_dir / "10-pod.conflist"
    path.write_text(json.dumps({**LIST, "plugins": [BRIDGE, {"type": "no-such-plugin"}]}))
    network = CniNetwork(config, tmp_path / "state")
    await network.start()
    with pytest.raises(FailedPrecondition, match="no-such-plugin"):
        await attach(network, machine("vm000001"))
    assert not list((tmp_path / "state/cni/cache").iterdir())
    assert "cni0" not in trace()[0]


async def test_a_full_range_is_resource_exhausted(
    config: NetworkConfig, host: None, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    network = CniNetwork(config, tmp_path / "state")
    await network.start()
    for number in range(5):
        await attach(network, machine(f"vm00000{number}"), PodIdentity(f"{number}" * 64))
    with pytest.raises(ResourceExhausted):
        await attach(network, machine("vm000009"))


async def test_the_choice_follows_the_configuration(
    config: NetworkConfig, host: None, machine: Callable[[str], Machine], tmp_path: Path
) -> None:
    text = (config.cni_conf_dir / "10-pod.conflist").read_text()
    (config.cni_conf_dir / "10-pod.conflist").unlink()
    network = create(config, "abc123", tmp_path / "state", tmp_path)
    await network.start()
    one, two = machine("vm000001"), machine("vm000002")
    await network.prepare(one.id, one.netns)
    built_in = await network.attach(two.id, two.netns, PodIdentity("d" * 64))
    (config.cni_conf_dir / "10-pod.conflist").write_text(text)
    held = await network.attach(one.id, one.netns, POD)
    assert held.opaque["kind"] == "cni"
    assert built_in.opaque["kind"] == "builtin"
    await network.detach(one.id, one.netns, POD, held.opaque)
    await network.detach(two.id, two.netns, PodIdentity("d" * 64), built_in.opaque)
    await network.close()
    assert "abc123" not in " ".join(trace())


async def test_portmap_is_told_the_ports(config: NetworkConfig, tmp_path: Path) -> None:
    path = config.cni_conf_dir / "10-pod.conflist"
    path.write_text(json.dumps({**LIST, "plugins": [BRIDGE, PORTMAP]}))
    network = cni_config.load(config.cni_conf_dir)[0]
    assert network is not None
    offered = cni_config.capabilities(
        [HostPort("tcp", 80, 8080)],
        Dns(("1.1.1.1",)),
        {"kubernetes.io/ingress-bandwidth": "10M"},
    )
    assert offered["bandwidth"]["ingressRate"] == 10_000_000
    sent = cni_config.request(network, network.plugins[1], offered, tmp_path, {"ips": []})
    assert sent["runtimeConfig"] == {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    }
    assert sent["prevResult"] == {"ips": []}
    assert "capabilities" not in sent


def test_errors_of_plugins() -> None:
    told = plugin_error("x", Result(1, b'{"code": 11, "msg": "busy"}', b""))
    assert isinstance(told, Unavailable)
    assert "busy" in str(told)
    assert "later" in str(told)
    assert "boom" in str(plugin_error("x", Result(2, b"", b"boom")))
