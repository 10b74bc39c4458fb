"""The microVM on real QEMU, kernel and agent."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import dataclasses
import os
import re
import secrets
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from hostlib import failpoint, linux
from hostlib.errors import DataLoss, FailedPrecondition, InvalidArgument, NotFound
from vmm import ram, sparse
from vmm import snapshot as snapshots_module
from vmm.accel import Accelerator
from vmm.bake import bake
from vmm.guest import GuestImage
from vmm.microvm import MicroVM, State, VmDied
from vmm.qemu.argv import SCRATCH_SLOT
from vmm.rehearse import process, spec
from vmm.shape import MachineShape
from vmm.snapshot import Inputs, Snapshot
from vmm.tests.conftest import Peer

Restore = Callable[[], Awaitable[MicroVM]]


@pytest.fixture
async def vm(restore: Restore) -> MicroVM:
    made = await restore()
    await made.resume()
    await made.connect()
    return made


def sparse_digest(path: Path) -> str:
    with open(path, "rb") as source:
        return sparse.digest(source.fileno(), path.stat().st_size)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_a_restored_vm_is_paused_then_answers(restore: Restore) -> None:
    vm = await restore()
    assert vm.state is State.PAUSED
    with pytest.raises(FailedPrecondition):
        await vm.connect()
    await vm.resume()
    await vm.resume()
    await vm.connect()
    assert (await vm.agent.request("ping"))["realtime_ns"] > 0
    await vm.pause()
    assert vm.state is State.PAUSED
    await vm.resume()
    assert (await vm.agent.request("ping"))["realtime_ns"] > 0
    with pytest.raises(FailedPrecondition):
        await vm.connect()


async def test_a_restored_vm_is_silent_on_the_network(
    restore: Callable[[int], Awaitable[MicroVM]], peer: Peer
) -> None:
    """What it sent to all would wake every guest of the host."""
    vm = await restore(peer.tap)
    await vm.resume()
    await vm.connect()
    await vm.agent.request("ping")
    sent = []
    with contextlib.suppress(BlockingIOError):
        while True:
            frame, (_name, _protocol, kind, *_) = peer.frames.recvfrom(2048)
            # The host's own, on its side of the TAP, are no matter.
            if kind != socket.PACKET_OUTGOING:
                sent.append(frame.hex())
    assert sent == []


async def test_kill_is_idempotent_and_leaves_nothing(restore: Restore) -> None:
    before = descriptors()
    vm = await restore()
    await vm.resume()
    await vm.connect()
    pid = vm.pid
    await vm.kill()
    await vm.kill()
    assert vm.state is State.STOPPED
    assert linux.start_time(pid) is None
    assert vm.agent.closed.done()
    assert descriptors() == before
    with pytest.raises(VmDied):
        await vm.resume()


async def test_a_killed_qemu_is_reported_with_its_reason(vm: MicroVM) -> None:
    os.kill(vm.pid, signal.SIGKILL)
    reason = await vm.exited
    assert "SIGKILL" in reason.text
    assert vm.state is State.STOPPED
    with pytest.raises(VmDied, match="SIGKILL"):
        await vm.attach(0, Path("/dev/null"))
    await vm.agent.closed


async def test_what_is_seen_of_a_guest_that_does_not_answer(vm: MicroVM) -> None:
    seen = await vm.symptoms()
    assert re.match(r"QEMU's threads: \S+ [RS] [0-9.]+ s, ", seen), seen
    assert re.search(r"; 0 bytes .* not taken; its monitor: running RIP=[0-9a-f]+ HLT=[01]$", seen)
    await vm.pause()
    assert "; its monitor: paused RIP=" in await vm.symptoms()
    os.kill(vm.pid, signal.SIGSTOP)
    pinging = asyncio.create_task(vm.agent.request("ping"))
    await asyncio.sleep(0)
    seen = await vm.symptoms()
    os.kill(vm.pid, signal.SIGCONT)
    assert re.search(r"; [1-9]\d* bytes .* not taken; its monitor does not answer$", seen), seen
    await vm.resume()
    await pinging


async def test_qemu_cannot_write_the_ram_that_others_map(
    vm: MicroVM, ram_fd: int, snapshot: Snapshot
) -> None:
    await ram.verify_fd(ram_fd, snapshot)
    with pytest.raises(PermissionError):
        os.pwrite(ram_fd, b"x", 0)
    await vm.agent.request("ping")
    await ram.verify_fd(ram_fd, snapshot)


async def test_a_foreign_ram_descriptor_is_refused(snapshot: Snapshot) -> None:
    descriptor = ram.create("foreign")
    try:
        with pytest.raises(FailedPrecondition):
            await ram.verify_fd(descriptor, snapshot)
        os.ftruncate(descriptor, snapshot.ram_size)
        linux.seal(descriptor)
        with pytest.raises(DataLoss):
            await ram.verify_fd(descriptor, snapshot)
    finally:
        os.close(descriptor)


async def test_slots_are_filled_once_and_of_their_kind(vm: MicroVM, guest: GuestImage) -> None:
    with pytest.raises(InvalidArgument):
        await vm.attach(12, guest.rehearsal)
    with pytest.raises(InvalidArgument):
        await vm.attach(0, guest.rehearsal, read_only=False)
    with pytest.raises(InvalidArgument):
        await vm.attach(14, guest.rehearsal)
    with pytest.raises(FailedPrecondition):
        await vm.attach(0, Path("/nonexistent"))
    await vm.attach(3, guest.rehearsal)
    with pytest.raises(FailedPrecondition):
        await vm.attach(3, guest.rehearsal)
    await vm.detach(3)
    await vm.detach(3)
    descriptor = os.open(guest.rehearsal, os.O_RDONLY)
    try:
        await vm.attach(3, descriptor)
    finally:
        os.close(descriptor)
    await vm.detach(3)


async def test_a_device_that_is_no_image_leaves_the_slot_free(
    vm: MicroVM, guest: GuestImage, tmp_path: Path
) -> None:
    with pytest.raises(FailedPrecondition):
        await vm.attach(0, tmp_path / "absent")
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(Exception, match="blockdev-add"):
            await vm.attach(0, folder)
    finally:
        os.close(folder)
    await vm.attach(0, guest.rehearsal)
    await vm.detach(0)


async def test_a_container_runs_on_an_attached_layer(vm: MicroVM, guest: GuestImage) -> None:
    events: asyncio.Queue[dict[str, object]] = asyncio.Queue()
    vm.agent.on_event(events.put_nowait)
    await vm.attach(5, guest.rehearsal)
    await vm.agent.request("layer.mount", {"slot": 5, "layer": "base"})
    out, err = vm.agent.open_stream(), vm.agent.open_stream()
    container = secrets.token_hex(32)
    await vm.agent.request(
        "container.create",
        {
            "id": container,
            "spec": spec("/bin/echo", "hello from the guest"),
            "layers": ["base"],
            "streams": {"stdin": 0, "stdout": out.id, "stderr": err.id},
        },
    )
    await vm.agent.request("container.start", {"id": container})
    said = b""
    while piece := await out.read():
        said += piece
    assert said == b"hello from the guest\n"
    event = await events.get()
    assert (event["event"], event["id"], event["exit_code"]) == ("container.exit", container, 0)
    await vm.agent.request("container.delete", {"id": container})
    with pytest.raises(NotFound):
        await vm.agent.request("container.start", {"id": container})
    await vm.agent.request("layer.unmount", {"layer": "base"})
    await vm.detach(5)


async def test_a_rehearsal_leaves_the_guest_as_it_was(vm: MicroVM, guest: GuestImage) -> None:
    await vm.rehearse(guest.rehearsal)
    before = await vm.agent.request("state")
    await vm.rehearse(guest.rehearsal)
    assert await vm.agent.request("state") == before


async def test_two_vms_of_one_snapshot_confirm_their_restore_steps(
    restore: Restore, guest: GuestImage
) -> None:
    assert process("/bin/true")["args"] == ["/bin/true"]
    answers = []
    for vm in [await restore(), await restore()]:
        await vm.resume()
        await vm.connect()
        now = time.time_ns()
        entropy = base64.b64encode(secrets.token_bytes(64)).decode()
        answer = await vm.agent.request("restore", {"entropy": entropy, "realtime_ns": now})
        names = [step["step"] for step in answer["steps"]]
        assert names == ["reseed", "clock", "generation"]
        answers.append(vm.agent.nonce)
    assert answers[0] != answers[1]


async def test_the_share_mounts(vm: MicroVM) -> None:
    await vm.agent.request("share.mount")
    await vm.agent.request("share.unmount")


async def test_a_scratch_disk_is_mounted_since_the_bake_and_the_vms_own(
    restore: Restore, guest: GuestImage, snapshot: Snapshot, tmp_path: Path
) -> None:
    vms = [await restore(), await restore()]
    disks = [tmp_path / f"scratch{number}" for number in range(2)]
    baked = sparse_digest(snapshot.scratch)
    assert [sparse_digest(disk) for disk in disks] == [baked] * 2
    await vms[0].resume()
    await vms[0].connect()
    mounts = (await vms[0].agent.request("state"))["mounts"]
    assert any("/run/thaw/scratch ext4" in line for line in mounts), mounts
    # Of the same slot it is there already.
    await vms[0].agent.request("scratch.mount", {"slot": SCRATCH_SLOT})
    await vms[0].rehearse(guest.rehearsal)
    await vms[0].agent.request("sync")
    assert sparse_digest(disks[0]) != baked
    assert [sparse_digest(disks[1]), sparse_digest(snapshot.scratch)] == [baked] * 2


async def test_a_second_bake_finds_the_first(
    guest: GuestImage, snapshot: Snapshot, accelerator: Accelerator, qemu: str
) -> None:
    steps: list[str] = []
    again = await bake(
        guest,
        snapshot.shape,
        snapshots=snapshot.folder.parent,
        accel=accelerator,
        qemu=qemu,
        progress=lambda step, share: steps.append(step),
    )
    assert again == snapshot
    assert steps == ["found", "baked"]


@pytest.fixture
def copied(snapshot: Snapshot, tmp_path: Path) -> Path:
    folder = tmp_path / snapshot.key
    folder.mkdir()
    for source in snapshot.folder.iterdir():
        # As sparse as it is: its scratch disk has 10 GiB.
        sparse.clone(source, folder / source.name)
    return folder


def flip(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        byte = file.read(1)[0]
        file.seek(place)
        file.write(bytes([byte ^ 0xFF]))


async def test_damage_is_refused(copied: Path) -> None:
    whole = await snapshots_module.load(copied)
    flip(copied / "ram", 0x100000)
    with pytest.raises(DataLoss):
        await ram.load(whole)
    flip(copied / "ram", 0x100000)
    flip(copied / "devices", 1000)
    with pytest.raises(DataLoss):
        await snapshots_module.load(copied)
    flip(copied / "devices", 1000)
    os.truncate(copied / "ram", whole.ram_size - 4096)
    with pytest.raises(DataLoss):
        await snapshots_module.load(copied)
    os.truncate(copied / "ram", whole.ram_size)
    record = copied / "snapshot.json"
    record.write_text(record.read_text().replace('"vcpus":1', '"vcpus":2'))
    with pytest.raises(DataLoss, match="own key"):
        await snapshots_module.load(copied)
    record.unlink()
    with pytest.raises(FailedPrecondition):
        await snapshots_module.load(copied)


async def test_a_mismatch_is_refused(
    snapshot: Snapshot, ram_fd: int, accelerator: Accelerator, qemu: str, tmp_path: Path
) -> None:
    other = dataclasses.replace(snapshot.inputs, qemu_digest="0" * 64)
    assert other.key != snapshot.key
    with pytest.raises(FailedPrecondition, match="qemu_digest"):
        await snapshots_module.load(snapshot.folder, other)
    for inputs in (
        other,
        dataclasses.replace(snapshot.inputs, machine=("-machine", "pc")),
        dataclasses.replace(snapshot.inputs, format=0),
    ):
        foreign = dataclasses.replace(snapshot, inputs=inputs)
        with pytest.raises(FailedPrecondition, match="baked with another"):
            await MicroVM.restore(
                foreign, ram_fd=ram_fd, tap_fd=None, share=tmp_path, accel=accelerator, qemu=qemu
            )


async def test_damaged_device_state_ends_in_an_error(
    copied: Path,
    snapshot: Snapshot,
    ram_fd: int,
    accelerator: Accelerator,
    qemu: str,
    tmp_path: Path,
) -> None:
    before = descriptors()
    damaged = dataclasses.replace(snapshot, folder=copied)
    os.truncate(copied / "devices", snapshot.devices_size // 2)
    with pytest.raises(DataLoss):
        await MicroVM.restore(
            damaged, ram_fd=ram_fd, tap_fd=None, share=tmp_path, accel=accelerator, qemu=qemu
        )
    assert descriptors() == before


@pytest.mark.parametrize("point", ["vm.start", "vm.incoming"])
async def test_a_failed_restore_leaves_nothing(restore: Restore, point: str) -> None:
    before = descriptors()
    failpoint.arm(f"{point}=error")
    try:
        with pytest.raises(failpoint.Injected):
            await restore()
    finally:
        failpoint.disarm()
    assert descriptors() == before


@pytest.mark.parametrize("point", ["bake.begin", "bake.save", "bake.publish"])
async def test_a_failed_bake_publishes_nothing(
    guest: GuestImage, accelerator: Accelerator, qemu: str, tmp_path: Path, point: str
) -> None:
    failpoint.arm(f"{point}=error")
    try:
        with pytest.raises(failpoint.Injected):
            await bake(
                guest,
                MachineShape(1, 256),
                snapshots=tmp_path / "snapshots",
                accel=accelerator,
                qemu=qemu,
                progress=lambda step, share: None,
            )
    finally:
        failpoint.disarm()
    left = tmp_path / "snapshots"
    assert not left.exists() or not list(left.iterdir())


async def test_qemu_missing_or_too_old(
    guest: GuestImage, accelerator: Accelerator, tmp_path: Path
) -> None:
    old = tmp_path / "qemu"
    old.write_text("#!/bin/sh\necho 'QEMU emulator version 5.2.0'\n")
    old.chmod(0o755)
    for path, told in ((old, "too old"), (tmp_path / "absent", "not there")):
        with pytest.raises(FailedPrecondition, match=told) as caught:
            await MicroVM.boot(
                guest,
                MachineShape(1, 256),
                accel=accelerator,
                qemu=str(path),
                share=tmp_path,
            )
        assert caught.value.hint


async def test_the_key_holds_every_input(snapshot: Snapshot) -> None:
    inputs = snapshot.inputs
    changed = [
        dataclasses.replace(inputs, qemu_version="x"),
        dataclasses.replace(inputs, qemu_digest="x"),
        dataclasses.replace(inputs, accel="x"),
        dataclasses.replace(inputs, shape=MachineShape(2, 512)),
        dataclasses.replace(inputs, machine=(*inputs.machine, "-x")),
        dataclasses.replace(inputs, kernel="x"),
        dataclasses.replace(inputs, initramfs="x"),
        dataclasses.replace(inputs, agent="x"),
        dataclasses.replace(inputs, scratch="x"),
        dataclasses.replace(inputs, channel="vsock"),
        dataclasses.replace(inputs, format=inputs.format + 1),
    ]
    assert len(changed) == len(dataclasses.fields(Inputs))
    assert len({inputs.key, *(other.key for other in changed)}) == len(changed) + 1
    assert all(len(inputs.differences(other)) in (1, 2) for other in changed)
    assert Inputs.from_record(inputs.to_record()) == inputs
