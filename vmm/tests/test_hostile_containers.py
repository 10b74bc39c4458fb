"""Containers that mean harm: the agent answers, and removes them. On real QEMU."""

from __future__ import annotations

from typing import Final

import pytest

from hostlib.errors import InvalidArgument
from vmm.tests.containers import CAPABILITIES, Container, Guest, capabilities, until

ROOT: Final = {"capabilities": capabilities(*CAPABILITIES)}


async def test_devices_open_as_the_rules_say(busybox: Guest) -> None:
    # A disk of the guest, the memory's node, and a device that every container has.
    script = (
        "mknod /dev/disk b 8 0; dd if=/dev/disk of=/dev/null count=1; mknod /dev/mem2 c 1 1;"
        "cat /dev/mem2; head -c 4 /dev/zero | wc -c; echo >/dev/full"
    )
    ruled = await busybox.run(process=ROOT)
    _, said = await ruled.exec(script, **ROOT)
    assert said.count("Operation not permitted") == 2
    assert "\n4\n" in said
    assert "No space left" in said
    free = await busybox.run(process=ROOT, linux={"resources": {}})
    assert "records out" in (await free.exec(script, **ROOT))[1]
    # The last rule wins.
    last = {"allow": False, "type": "c", "major": 1, "minor": 5, "access": "r"}
    some = await busybox.run(
        linux={"resources": {"devices": [{"allow": True, "access": "rwm"}, last]}}
    )
    assert "not permitted" in (await some.exec("head -c 4 /dev/zero"))[1]
    await some.sh("echo x >/dev/zero")
    with pytest.raises(InvalidArgument, match="access"):
        await busybox.run(linux={"resources": {"devices": [{"allow": True, "access": "x"}]}})


async def _answers(guest: Guest) -> None:
    await guest.vm.agent.request("ping", timeout=20)


async def _gone(guest: Guest, container: Container) -> None:
    listed = (await guest.vm.agent.request("container.list"))["containers"]
    assert container.id not in [one["id"] for one in listed]


async def test_what_a_container_wrote_is_removed_however_deep(busybox: Guest) -> None:
    await (await busybox.run()).delete()
    before = await busybox.vm.agent.request("state")
    container = await busybox.run()
    await container.sh(
        "p=$(seq -s / 300); for n in 1 2 3 4; do mkdir -p $p && cd $p; done; touch f;"
        "mkdir /wide && cd /wide && touch $(seq 1000)"
    )
    await container.delete()
    await _gone(busybox, container)

    async def all_is_as_before() -> bool:
        return await busybox.vm.agent.request("state") == before

    # The rest is removed by a process of its own.
    await until(all_is_as_before)
    other = await busybox.run()
    await other.delete()


async def test_a_fork_bomb_is_ended(busybox: Guest) -> None:
    bomb = await busybox.run(
        "f() { f & f & sleep 600; }; f; wait; sleep 600",
        linux={"resources": {"pids": {"limit": 300}}},
    )

    async def is_full() -> bool:
        stats = await busybox.vm.agent.request("container.stats", {"id": bomb.id}, timeout=60)
        return int(stats["pids"]) > 250

    await until(is_full)
    await _answers(busybox)
    await bomb.delete()
    await _gone(busybox, bomb)


async def test_cgroups_inside_a_container_go_with_it(busybox: Guest) -> None:
    inner = await busybox.run(
        "mount -t cgroup2 none /etc && mkdir -p /etc/a/b/c && echo 0 >/etc/a/b/c/cgroup.procs;"
        "n=/etc; while n=$n/d && mkdir $n; do true; done; exec sleep 600",
        process={"capabilities": capabilities(*CAPABILITIES, "CAP_SYS_ADMIN")},
    )

    async def has_made_them() -> bool:
        return "sleep" in await inner.sh("cat /proc/1/comm")

    await until(has_made_them)
    assert await inner.sh("ls /etc/a/b")
    await inner.delete()
    await _gone(busybox, inner)


async def test_output_without_end_and_a_deaf_init(busybox: Guest) -> None:
    loud = await busybox.run("trap '' TERM INT HUP; yes | tr -d '\\n'")
    await _answers(busybox)
    await busybox.vm.agent.request("container.kill", {"id": loud.id, "signal": 15})
    await _answers(busybox)
    assert len(await loud.streams[0].read()) > 0
    await loud.delete()
    await _gone(busybox, loud)


async def test_the_agents_children_cannot_be_looked_into(busybox: Guest) -> None:
    """A hook's parent is a child of the agent that never executes another program."""
    container = await busybox.run(process=ROOT)
    path = "/etc/thaw/hooks.d/before-snapshot/look"
    look = "for f in maps environ mem exe; do cat /proc/$PPID/$f; done >/seen 2>/said"
    await container.sh(
        f"mkdir -p {path.rpartition('/')[0]}; printf '#!/bin/sh\\n{look}\\nexit 0' >{path};"
        f"chmod 755 {path}"
    )
    await busybox.vm.agent.request("hooks.run", {"phase": "before-snapshot"})
    assert await container.sh("wc -c </seen") == "0"
    assert (await container.sh("cat /said")).count("ermission denied") == 4


async def test_links_of_an_image_lead_nowhere_else(busybox: Guest) -> None:
    identity = "/run/thaw/identity"
    bind = {"type": "bind", "source": f"{identity}/hosts", "options": ["bind", "ro"]}
    # The image's resolv.conf is a link to what is not there.
    container = await busybox.run(mounts=[bind | {"destination": "/etc/resolv.conf"}])
    assert "/stub-resolv.conf " in await container.sh("cat /proc/mounts")
    await container.delete()
    with pytest.raises(InvalidArgument, match="symbolic link"):
        await busybox.create("true", mounts=[{"destination": "/etc/resolv.conf", "type": "proc"}])
