"""What a restore means to containers that run: generation, hooks, connections. On real QEMU."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Final

import pytest

from hostlib.errors import FailedPrecondition, InvalidArgument, Unavailable
from vmm.tests.conftest import Peer
from vmm.tests.containers import Guest, until

GENERATION: Final = {
    "destination": "/run/thaw/generation",
    "type": "bind",
    "source": "/run/thaw/identity/generation",
    "options": ["bind", "rprivate", "ro", "nosuid", "nodev", "noexec"],
}


def network(address: str) -> dict[str, Any]:
    return {
        "mac": "02:00:00:00:00:01",
        "addresses": [f"{address}/16"],
        "routes": [{"dst": "0.0.0.0/0", "gateway": "10.88.0.1"}],
    }


async def test_containers_see_each_generation(busybox: Guest) -> None:
    first, second = str(uuid.uuid4()), str(uuid.uuid4())
    await busybox.restore(generation=first)
    container = await busybox.run(mounts=[GENERATION], root={"readonly": True})
    path = "/run/thaw/generation"
    assert await container.sh(f"cat {path}") == first
    inode = await container.sh(f"stat -c %i {path}")
    code, said = await container.exec(f"echo x > {path}")
    assert code != 0
    assert "Read-only" in said
    await busybox.restore(generation=second)
    assert await container.sh(f"cat {path}") == second
    assert await container.sh(f"stat -c %i {path}") == inode
    with pytest.raises(InvalidArgument, match="generation"):
        await busybox.restore(generation="x")
    assert (await busybox.restore())["steps"][-1]["step"] == "generation"
    assert await container.sh(f"cat {path}") not in (first, second)


def hook(phase: str, name: str, script: str, mode: str = "755") -> str:
    path = f"/etc/thaw/hooks.d/{phase}/{name}"
    return (
        f"mkdir -p {path.rpartition('/')[0]} && printf '#!/bin/sh\\n%s\\n' '{script}' >{path} && "
        f"chmod {mode} {path};"
    )


async def test_hooks_run_in_order_as_the_containers_own_user(busybox: Guest) -> None:
    container = await busybox.run(process={"user": {"uid": 1000, "gid": 1000}})
    root = {"user": {"uid": 0, "gid": 0}}
    await container.sh("mkdir -m 777 -p /log", **root)
    await container.sh(
        hook("after-restore", "20-second", "echo second >>/log/hooks")
        + hook("after-restore", "10-first", "id -u >>/log/hooks")
        + hook("after-restore", "README", "echo never >>/log/hooks", "644")
        + hook("before-snapshot", "only", "echo before >>/log/hooks"),
        **root,
    )
    other = await busybox.run()
    answer = await busybox.restore()
    assert [(one["hook"], one["exit_code"]) for one in answer["hooks"]] == [
        ("10-first", 0),
        ("20-second", 0),
    ]
    assert {one["container"] for one in answer["hooks"]} == {container.id}
    answer = await busybox.vm.agent.request("hooks.run", {"phase": "before-snapshot"})
    assert [one["hook"] for one in answer["hooks"]] == ["only"]
    assert (await container.sh("cat /log/hooks")).split() == ["1000", "second", "before"]
    await other.delete()
    await container.delete()
    assert await busybox.vm.agent.request("hooks.run", {"phase": "after-restore"}) == {}


@pytest.mark.parametrize(
    ("script", "told"),
    [
        (hook("after-restore", "bad", "exit 3"), "bad ended with 3"),
        (hook("after-restore", "bad", "kill -9 $PPID"), "were killed"),
        ("".join(hook("after-restore", str(n), "true") for n in range(17)), "more than 16"),
        (
            "mkdir -p /etc/thaw/hooks.d/after-restore/sub; touch /etc/thaw/hooks.d/after-restore/f",
            "",
        ),
    ],
)
async def test_a_hook_that_fails_fails_the_restore(busybox: Guest, script: str, told: str) -> None:
    container = await busybox.run()
    await container.sh(script)
    if told:
        with pytest.raises(FailedPrecondition, match=f"{container.id[:12]}: .*({told})"):
            await busybox.restore()
    else:
        assert (await busybox.restore())["hooks"] == []


async def test_hooks_that_take_too_long_are_killed(busybox: Guest) -> None:
    container = await busybox.run()
    await container.sh(hook("before-snapshot", "slow", "echo $$ >/pid; sleep 600"))
    run = {"phase": "before-snapshot", "timeout_ns": 8_000_000_000}
    under_way = asyncio.create_task(busybox.vm.agent.request("hooks.run", run))

    async def has_begun() -> bool:
        return (await container.exec("cat /pid"))[0] == 0

    await until(has_begun)
    with pytest.raises(FailedPrecondition, match="being run"):
        await busybox.vm.agent.request("hooks.run", run)
    with pytest.raises(FailedPrecondition, match="too long"):
        await under_way
    # A zombie at the most: the container's init reaps nobody.
    assert await container.sh("cat /proc/$(cat /pid)/cmdline 2>/dev/null | wc -c") == "0"
    with pytest.raises(InvalidArgument, match="timeout_ns"):
        await busybox.vm.agent.request("hooks.run", run | {"timeout_ns": 10**12})


async def test_connections_end_with_the_identity_and_listeners_stay(busybox: Guest) -> None:
    await busybox.restore(network=network("10.88.0.2"))
    # Servers that accept and say nothing; one client to the pod's own address, one on loopback.
    server = await busybox.run("nc -ll -p 7000 -e sleep 600")

    async def in_state(state: str) -> list[str]:
        lines = (await server.sh("cat /proc/net/tcp /proc/net/tcp6")).splitlines()
        return [line for line in lines if f" {state} " in line]

    async def listens() -> bool:
        return bool(await in_state("0A"))

    await until(listens)
    own = await busybox.run("exec wget -O - http://10.88.0.2:7000/")
    local = await busybox.run("exec wget -O - http://127.0.0.1:7000/")

    async def both_are_connected() -> bool:
        return len(await in_state("01")) == 4

    await until(both_are_connected)
    await busybox.restore(network=network("10.88.0.3"))
    assert await busybox.ended(own.id) != 0
    assert "connection abort" in await own.output()
    left = await in_state("01")
    assert len(left) == 2
    assert all("0100007F" in line for line in left)
    await busybox.vm.agent.request("network.probe", {"address": "10.88.0.3", "port": 7000})
    with pytest.raises(Unavailable):
        await busybox.vm.agent.request("network.probe", {"address": "10.88.0.3", "port": 7001})
    await local.delete()
    await server.delete()


async def test_a_peer_hears_nothing_of_a_connection_that_ended(busybox: Guest, peer: Peer) -> None:
    """It may be connected to the original still, under the same address and ports."""
    loop = asyncio.get_running_loop()
    await busybox.restore(network=network("10.88.0.2"))
    client = await busybox.run("exec wget -O - http://10.88.0.1:7000/")
    connection, (address, _) = await asyncio.wait_for(loop.sock_accept(peer.server), 60)
    with connection:
        connection.setblocking(False)
        assert address == "10.88.0.2"
        assert await loop.sock_recv(connection, 4096)
        # The original's address again, too: the peer is another's all the same.
        await busybox.restore(network=network("10.88.0.2"))
        assert await busybox.ended(client.id) != 0
        assert "connection abort" in await client.output()
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(loop.sock_recv(connection, 1), 1)
    again = await busybox.run("exec wget -O - http://10.88.0.1:7000/")
    connection, _ = await asyncio.wait_for(loop.sock_accept(peer.server), 30)
    connection.close()
    await again.delete()
