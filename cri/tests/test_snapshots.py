from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from cri.snapshots import Snapshots
from cri.tests.fakes import FakeZygote
from cri.vms import Wire
from hostlib import linux, records
from hostlib.errors import ResourceExhausted


def sealed() -> int:
    ram = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    linux.seal(ram)
    return ram


async def test_callers_share_one_bake(tmp_path: Path) -> None:
    zygote = FakeZygote()
    snapshots = Snapshots(tmp_path, zygote)
    seen: list[Wire] = []
    one, two = await asyncio.gather(
        snapshots.ensure("2x2048", seen.append), snapshots.ensure("2x2048")
    )
    assert one is two
    assert zygote.bakes == 1
    assert seen == [{"phase": "boot", "fraction": 0.5}]
    assert records.read(tmp_path / "bake.json", "bake", 1)["phase"] == "done"
    await snapshots.close()


async def test_a_bake_that_failed_is_told_and_tried_again(tmp_path: Path) -> None:
    zygote = FakeZygote()
    zygote.fail_bake = ResourceExhausted("disk full", hint="make room")
    snapshots = Snapshots(tmp_path, zygote)
    with pytest.raises(ResourceExhausted):
        await snapshots.ensure("2x2048")
    assert snapshots.state("2x2048").error == "disk full (hint: make room)"
    zygote.fail_bake = None
    assert (await snapshots.ensure("2x2048")).key == "key"
    assert snapshots.state("2x2048").error == ""
    await snapshots.close()


@pytest.mark.parametrize("valid", [True, False])
async def test_ram_of_an_adopted_shim_is_checked(
    tmp_path: Path, valid: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    zygote = FakeZygote()

    async def verify(snapshot: Path, key: str, ram: int) -> bool:
        return valid

    monkeypatch.setattr(zygote, "verify", verify)
    snapshots = Snapshots(tmp_path, zygote)
    ram = sealed()
    snapshots.offer("key", ram)
    assert linux.is_sealed((await snapshots.ensure("2x2048")).ram) is valid
    await snapshots.close()


async def test_ram_that_can_be_written_is_refused(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path, FakeZygote())
    ram = os.memfd_create("ram", os.MFD_CLOEXEC)
    snapshots.offer("key", ram)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(ram)
    await snapshots.close()
