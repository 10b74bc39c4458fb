import asyncio
import threading

import pytest

from hostlib.tasks import SingleFlight, Tasks, in_thread


async def test_callers_share_one_flight() -> None:
    flight: SingleFlight[int] = SingleFlight()
    calls = 0

    async def work() -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(0.01)
        return calls

    assert await asyncio.gather(*(flight.run("k", work) for _ in range(5))) == [1] * 5
    assert "k" not in flight
    assert await flight.run("k", work) == 2


async def test_a_flight_goes_on_while_one_caller_waits() -> None:
    flight: SingleFlight[str] = SingleFlight()
    ended = asyncio.Event()

    async def work() -> str:
        await ended.wait()
        return "done"

    first = asyncio.create_task(flight.run("k", work))
    second = asyncio.create_task(flight.run("k", work))
    await asyncio.sleep(0)
    first.cancel()
    await asyncio.wait([first])
    ended.set()
    assert await second == "done"


async def test_the_last_caller_to_leave_cancels_the_flight() -> None:
    flight: SingleFlight[None] = SingleFlight()
    cancelled = asyncio.Event()

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            raise

    caller = asyncio.create_task(flight.run("k", work))
    await asyncio.sleep(0.01)
    caller.cancel()
    await asyncio.wait([caller])
    await asyncio.wait_for(cancelled.wait(), 60)
    assert "k" not in flight


async def test_an_error_reaches_every_caller() -> None:
    flight: SingleFlight[None] = SingleFlight()

    async def work() -> None:
        await asyncio.sleep(0)
        raise ValueError("broken")

    results = await asyncio.gather(
        flight.run("k", work), flight.run("k", work), return_exceptions=True
    )
    assert [str(result) for result in results] == ["broken", "broken"]


async def test_close_ends_every_task() -> None:
    tasks = Tasks()
    tasks.start(asyncio.sleep(60), "sleeper")
    await tasks.close()
    assert len(tasks) == 0


async def test_a_cancelled_caller_waits_for_its_thread() -> None:
    started, finish, ended = threading.Event(), threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        finish.wait(60)
        ended.set()

    caller = asyncio.create_task(in_thread(work))
    assert await asyncio.to_thread(started.wait, 60)
    caller.cancel()
    await asyncio.sleep(0.01)
    assert not caller.done()
    finish.set()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert ended.is_set()
