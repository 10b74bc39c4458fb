"""The pod's user namespace, as the agent makes and keeps it. On real QEMU."""

from __future__ import annotations

from typing import Any

import pytest

from hostlib.errors import FailedPrecondition, Internal, InvalidArgument
from vmm.rehearse import NETWORK
from vmm.tests.containers import Guest, capabilities


def mappings(outside: int = 5000, size: int = 70000, inside: int = 0) -> dict[str, Any]:
    line = [{"containerID": inside, "hostID": outside, "size": size}]
    return {"uidMappings": line, "gidMappings": line}


def spaces(pid: str = "") -> dict[str, Any]:
    kinds = [{"type": kind} for kind in ("mount", "cgroup")]
    user = {"type": "user", "path": "pod"}
    return {"namespaces": [*kinds, user, {"type": "pid", "path": pid}]}


async def test_it_is_made_once(busybox: Guest) -> None:
    network = NETWORK | {"addresses": ["10.88.0.2/16"], "sysctls": {"net.core.somaxconn": "77"}}
    await busybox.restore(user_namespace=mappings(), network=network)
    await busybox.restore(user_namespace=mappings(), network=network)
    with pytest.raises(FailedPrecondition, match="another user namespace"):
        await busybox.restore(user_namespace=mappings(5001))
    made = await busybox.run(linux=spaces())
    assert (await made.sh("cat /proc/self/uid_map")).split() == ["0", "5000", "70000"]
    assert await made.sh("cat /proc/sys/net/core/somaxconn; stat -c %u /bin /dev/null") == (
        "77\n0\n0"
    )
    # The agent is in the pod's network.
    await made.exec("nc -l -p 7001 > /tmp/said & echo")
    state = await busybox.vm.agent.request("state")
    assert any("10.88.0.2/16" in line for line in state["addresses"])
    with pytest.raises(FailedPrecondition, match="the pod has one"):
        await busybox.create("true")
    await made.delete()


async def test_mappings_that_are_none(busybox: Guest) -> None:
    for wrong, says in (
        (mappings(inside=1), "no id 0"),
        (mappings(size=0), "no range"),
        (mappings(outside=2**32 - 1), "no range"),
        (mappings() | {"gidMappings": []}, "0 lines"),
        (
            mappings() | {"uidMappings": mappings()["uidMappings"] * 2},
            "uid_map",
        ),
    ):
        with pytest.raises(InvalidArgument, match=says):
            await busybox.restore(user_namespace=wrong)
    with pytest.raises(FailedPrecondition, match="the pod has none"):
        await busybox.create("true", linux=spaces())
    # What failed left the guest as it was.
    assert (await (await busybox.run()).sh("cat /proc/self/uid_map")).split()[1] == "0"


async def test_inits_that_end_early(busybox: Guest) -> None:
    """The agent forks what prepares an init, and a sibling of it is the init: whichever of them
    ends, and whenever, the container does."""
    await busybox.restore(user_namespace=mappings())
    wrong = {"destination": "/x", "type": "bind", "source": "/run/thaw/share/none"}
    for _ in range(5):
        with pytest.raises(Exception, match="open source"):
            await busybox.create("true", linux=spaces(), mounts=[wrong])
        # Refused by the sibling.
        with pytest.raises(InvalidArgument, match="is not a directory"):
            await busybox.create(
                "true",
                linux=spaces(),
                mounts=[{"destination": "/bin/sh", "type": "tmpfs", "source": "tmpfs"}],
            )
        with pytest.raises(InvalidArgument, match="70000 is not mapped"):
            await busybox.create("true", linux=spaces(), process={"user": {"uid": 70000}})
        limited = spaces() | {"resources": {"pids": {"limit": 1}}}
        made = await busybox.run("exit 7", linux=limited)
        assert await busybox.ended(made.id) == 7
        await made.delete()
        created = await busybox.create("true", linux=spaces("pod"))
        await created.delete()
    told = await busybox.vm.agent.request("container.list")
    assert told == {"containers": []}
    processes = (await busybox.vm.agent.request("state"))["processes"]
    assert sorted(line.split()[1] for line in processes) == ["pause", "thaw-agent"] or (
        len(processes) == 2
    ), processes


async def test_rights_inside(busybox: Guest) -> None:
    await busybox.restore(user_namespace=mappings())
    rights = {"capabilities": capabilities("CAP_SYS_ADMIN", "CAP_MKNOD", "CAP_DAC_OVERRIDE")}
    made = await busybox.run(linux=spaces(), process=rights | {"noNewPrivileges": False})
    for refused in (
        "mknod /dev/x b 8 0",
        "echo 1 > /proc/sys/vm/drop_caches",
        "mount -t ext4 /dev/null /etc",
    ):
        code, _ = await made.exec(refused, **rights)
        assert code != 0, refused
    await made.sh("mkdir /a && mount -t tmpfs x /a && mount -t proc x /a", **rights)
    assert await made.sh("echo 1 > /dev/null; stat -c %u /a/self/uid_map", **rights) == "0"
    with pytest.raises((InvalidArgument, Internal)):
        await busybox.create(
            "true",
            linux=spaces(),
            mounts=[{"destination": "/y", "type": "ext4", "source": "/dev/sda"}],
        )
    await made.delete()
