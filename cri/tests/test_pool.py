from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cri.pool import Pool
from cri.pool_size import Limits
from cri.pressure import Reading, Thresholds
from cri.tests.fakes import FakeShim
from cri.vms import Vm
from hostlib.errors import Unavailable


class Maker:
    def __init__(self) -> None:
        self.made: list[str] = []
        self.killed: list[str] = []
        self.failures = 0

    async def spawn(self, shape: str) -> Vm:
        await asyncio.sleep(0)
        if self.failures:
            self.failures -= 1
            raise Unavailable("no memory")
        self.made.append(shape)
        name = f"{len(self.made):08d}"
        shim = FakeShim(name, lambda _vm, _event: None)
        return Vm(name, Path("/vms") / name, Path("/netns") / name, shape, "key", shim)

    async def kill(self, vm: Vm) -> None:
        self.killed.append(vm.id)


def make(maker: Maker, size: int, **more: Any) -> Pool:
    memory = more.pop("memory", lambda: None)
    limits = Limits(size, **more)
    return Pool(
        "2x2048",
        limits,
        refill=maker.spawn,
        spawn=maker.spawn,
        kill=maker.kill,
        memory=memory,
        first_delay=0.01,
        look=0.01,
    )


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (the pool has no event for a test)
            await asyncio.sleep(0.005)


async def test_fills_and_refills() -> None:
    maker = Maker()
    pool = make(maker, 2)
    pool.start()
    await until(lambda: len(pool) == 2)
    vm = await pool.take("2x2048")
    assert vm.id == "00000001"
    await until(lambda: len(pool) == 2)
    await pool.close()
    assert sorted(maker.killed) == ["00000002", "00000003"]


async def test_empty_or_another_shape_restores_on_the_spot() -> None:
    maker = Maker()
    pool = make(maker, 0)
    pool.start()
    assert (await pool.take("2x2048")).shape == "2x2048"
    assert (await pool.take("4x4096")).shape == "4x4096"
    await pool.close()


async def test_refilling_gives_way_to_pods_that_start() -> None:
    maker = Maker()
    pool = make(maker, 1)
    pool.start()
    await until(lambda: len(pool) == 1)
    with pool.giving_way(), pool.giving_way():
        await pool.take("2x2048")
        for _ in range(20):
            await asyncio.sleep(0.01)
            assert len(pool) == 0
    await until(lambda: len(pool) == 1)
    await pool.close()


async def test_a_pool_half_full_leaves_a_pod_its_first_moments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cri.pool.UNHURRIED", 60)
    monkeypatch.setattr("cri.pool.PATIENCE", 60)
    maker = Maker()
    pool = make(maker, 4)
    pool.start()
    await until(lambda: len(pool) == 4)
    for left in (3, 2):
        await pool.take("2x2048")
        await asyncio.sleep(0.2)
        assert len(pool) == left
    await pool.take("2x2048")
    await until(lambda: len(pool) > 1)
    await pool.close()


async def test_pods_that_find_it_empty_wait_their_turn() -> None:
    maker = Maker()
    under_way, most = 0, 0

    async def spawn(shape: str) -> Vm:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.001)
        under_way -= 1
        return await maker.spawn(shape)

    limits = Limits(0, on_the_spot=3)
    pool = Pool("1x2048", limits, refill=maker.spawn, spawn=spawn, kill=maker.kill)
    vms = await asyncio.gather(*(pool.take("1x2048") for _ in range(20)))
    assert len({vm.id for vm in vms}) == 20
    assert most == 3
    await pool.close()


async def test_memory_limits_the_size() -> None:
    maker = Maker()
    pool = make(maker, 10, max_memory_mib=200, reserve_mib=64)
    assert pool.size == 3
    await pool.close()


async def test_grows_to_the_largest_burst_within_its_bounds() -> None:
    maker = Maker()
    pool = make(maker, 1, max_size=4)
    pool.start()
    await until(lambda: len(pool) == 1)
    await asyncio.gather(*(pool.take("2x2048") for _ in range(3)))
    # Another shape's pods say nothing of this one's.
    await asyncio.gather(*(pool.take("4x4096") for _ in range(9)))
    assert pool.size == 3
    await until(lambda: len(pool) == 3)
    await asyncio.gather(*(pool.take("2x2048") for _ in range(20)))
    await until(lambda: len(pool) == 4)
    assert pool.size == 4
    await pool.close()


async def test_shrinks_when_fewer_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    maker = Maker()
    pool = make(maker, 1, max_size=8)
    wanted = 6
    monkeypatch.setattr(pool._sizes, "wanted", lambda _now: wanted)
    pool.start()
    await until(lambda: len(pool) == 6)
    wanted = 2
    await until(lambda: len(maker.killed) == 4)
    assert len(pool) == 2
    # What waits is none of those that were killed.
    assert not {vm.id for vm in pool._ready} & set(maker.killed)
    await pool.close()


async def test_holds_nothing_while_memory_is_short() -> None:
    maker = Maker()
    short = Reading(10_000, 100)
    readings = [Reading(10_000, 9_000)]
    pool = make(maker, 3, memory=lambda: readings[-1], pressure=Thresholds(relief_seconds=0.1))
    pool.start()
    await until(lambda: len(pool) == 3)
    readings.append(short)
    await until(lambda: len(pool) == 0 and len(maker.killed) == 3)
    assert "100 MiB" in pool.pressure
    assert pool.size == 0
    # A pod has its VM restored all the same, and none is made to wait.
    vm = await pool.take("2x2048")
    assert vm.id not in maker.killed
    assert not pool.adopt(await maker.spawn("2x2048"))
    assert len(pool) == 0
    readings.append(Reading(10_000, 9_000))
    await until(lambda: len(pool) == 3)
    assert pool.pressure == ""
    await pool.close()


async def test_comes_back_as_on_a_fresh_node_when_memory_was_short() -> None:
    maker = Maker()
    readings = [Reading(10_000, 9_000)]
    more = {"max_size": 6, "pressure": Thresholds(relief_seconds=0.0)}
    pool = make(maker, 2, memory=lambda: readings[-1], **more)
    pool.start()
    for _ in range(6):
        await pool.take("2x2048")
    await until(lambda: pool.size > 2)
    readings.append(Reading(10_000, 100))
    await until(lambda: bool(pool.pressure) and len(pool) == 0)
    for _ in range(6):
        await pool.take("2x2048")
    readings.append(Reading(10_000, 9_000))
    await until(lambda: len(pool) == 2)
    assert pool.size == 2
    await pool.close()


async def test_a_vm_that_is_ready_too_late_for_short_memory_ends() -> None:
    maker = Maker()
    hold = asyncio.Event()
    readings = [Reading(10_000, 9_000)]

    async def refill(shape: str) -> Vm:
        await hold.wait()
        return await maker.spawn(shape)

    pool = make(maker, 1, memory=lambda: readings[-1])
    pool._refill = refill
    pool.start()
    await until(lambda: pool.starting == 1)
    readings.append(Reading(10_000, 100))
    await until(lambda: bool(pool.pressure))
    hold.set()
    await until(lambda: len(maker.killed) == 1 and len(pool) == 0)
    await pool.close()


async def test_a_vm_that_is_being_killed_is_killed_by_close() -> None:
    maker = Maker()
    killing = asyncio.Event()

    async def kill(vm: Vm) -> None:
        if not killing.is_set():
            killing.set()
            await asyncio.sleep(3600)
        await maker.kill(vm)

    readings = [Reading(10_000, 9_000)]
    pool = make(maker, 1, memory=lambda: readings[-1])
    pool._kill = kill
    pool.start()
    await until(lambda: len(pool) == 1)
    readings.append(Reading(10_000, 100))
    await killing.wait()
    await pool.close()
    assert maker.killed == ["00000001"]


async def test_without_refilling_it_is_looked_after_all_the_same() -> None:
    maker = Maker()
    pool = make(maker, 2, memory=lambda: Reading(10_000, 100))
    assert pool.adopt(await maker.spawn("2x2048"))
    pool.start(refill=False)
    await until(lambda: maker.killed == ["00000001"])
    assert len(maker.made) == 1
    await pool.close()


async def test_a_vm_that_dies_is_replaced() -> None:
    maker = Maker()
    pool = make(maker, 1)
    pool.start()
    await until(lambda: len(pool) == 1)
    first = await pool.take("2x2048")
    await until(lambda: len(pool) == 1)
    waiting = pool._ready[0]
    assert waiting.shim is not None
    await waiting.shim.close()
    await until(lambda: waiting.id in maker.killed and len(pool) == 1)
    assert first.id not in maker.killed
    await pool.close()


async def test_failures_are_told_and_tried_again() -> None:
    maker = Maker()
    maker.failures = 2
    pool = make(maker, 1)
    pool.start()
    await until(lambda: "no memory" in pool.error)
    await until(lambda: len(pool) == 1)
    assert pool.error == ""
    await pool.close()


async def test_adopt_until_full() -> None:
    maker = Maker()
    pool = make(maker, 1)
    assert pool.adopt(await maker.spawn("2x2048"))
    assert not pool.adopt(await maker.spawn("2x2048"))
    await pool.close()
