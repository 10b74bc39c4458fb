from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest

from hostlib import failpoint, linux
from hostlib.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    Internal,
    InvalidArgument,
    NotFound,
    ResourceExhausted,
    ThawError,
)
from shim import records, streams
from shim.layers import Layer
from shim.plan import Plan
from shim.pod import Pod
from shim.records import ContainerMetadata, ContainerRecord, PodMetadata, PodRecord, VMRecord
from shim.server import Answer
from shim.tests.fakes import FakeVM
from vmm.microvm import MicroVM
from vmm.restore import STEPS

POD = "a" * 64
ID = "b" * 64


def layers(*names: str) -> list[Layer]:
    return [Layer(name, Path("/layers") / name) for name in names]


@dataclass
class Bench:
    pod: Pod
    vm: FakeVM
    folder: Path
    events: list[dict[str, Any]] = field(default_factory=list)

    async def bind(self) -> list[str]:
        record = PodRecord(POD, PodMetadata("p", "u", "n"), 1)
        steps, _ = await self.pod.bind(record, {"mac": "x"}, {"hostname": "p"})
        return steps

    async def create(self, container: str = ID, *names: str, **changes: Any) -> dict[str, int]:
        record = ContainerRecord(container, POD, ContainerMetadata("c"), 1, **changes)
        return await self.pod.create_container(record, Plan({}, layers(*(names or ("base",)))))

    async def run(self, container: str = ID, **changes: Any) -> None:
        await self.create(container, **changes)
        await self.pod.container(container).start()

    async def exec_sync(self, container: str, process: dict[str, Any], timeout: float) -> Answer:
        found = self.pod.running(container)
        return await self.pod.execs.run(self.pod.vm, found.id, process, timeout)

    def end(self, code: int = 0, container: str = ID, **more: Any) -> None:
        for stream in self.vm.agent.streams:
            stream.feed(b"")
        self.vm.agent.emit(event="container.exit", id=container, exit_code=code, **more)

    def on_disk(self) -> records.VMFolder:
        return records.read_vm_folder(self.folder)

    async def until_exited(self, container: str = ID) -> ContainerRecord:
        found = self.pod.container(container)
        await asyncio.wait_for(found.exited.wait(), 60)
        return found.record


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm()


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    ram = os.memfd_create("ram", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    linux.seal(ram)
    vm = FakeVM()
    events: list[dict[str, Any]] = []
    shape = {"vcpus": 1, "memory_mib": 256}
    record = VMRecord("abcd1234", 1, 2, shape=shape, state="pooled")
    pod = Pod(cast("MicroVM", vm), record, tmp_path, ram, 3, events.append)
    yield Bench(pod, vm, tmp_path, events)
    await pod.stop()
    await pod.close()
    os.close(ram)


async def test_bind_takes_the_eight_steps_in_order(bench: Bench) -> None:
    assert await bench.bind() == list(STEPS)
    assert bench.vm.running
    found = bench.on_disk()
    assert found.pod is not None
    assert found.vm is not None
    assert (found.pod.state, found.vm.state) == ("ready", "running")
    (asked,) = bench.vm.agent.asked("restore")
    assert len(asked["entropy"]) > 64
    assert asked["network"] == {"mac": "x"}


@pytest.mark.parametrize("step", STEPS)
async def test_a_step_that_fails_ends_the_vm_and_the_pod(bench: Bench, step: str) -> None:
    failpoint.arm(f"restore.{step}=error(no {step})")
    with pytest.raises(Internal, match=f"no {step}"):
        await bench.bind()
    assert bench.vm.exited.done()
    found = bench.on_disk()
    assert found.pod is not None
    assert found.pod.state == "notready"
    assert f"no {step}" in found.pod.reason
    assert [event["event"] for event in bench.events] == ["pod.stopped"]


async def test_what_a_mute_vm_does_is_told_with_its_end(bench: Bench) -> None:
    bench.vm.agent.answers["restore"] = DeadlineExceeded("the agent did not answer")
    with pytest.raises(DeadlineExceeded, match=r"did not answer; it looks unwell"):
        await bench.bind()
    assert "it looks unwell" in bench.pod.reason


@pytest.mark.parametrize("step", ["reseed", "clock", "network", "identity", "generation"])
async def test_a_step_that_the_guest_does_not_confirm_fails_closed(bench: Bench, step: str) -> None:
    names = ["reseed", "clock", "network", "identity", "generation"]
    names.remove(step)
    bench.vm.agent.answers["restore"] = {"steps": [{"step": name, "ns": 1} for name in names]}
    with pytest.raises(Internal, match=f"did not confirm the restore step {step}"):
        await bench.bind()
    assert bench.vm.exited.done()


async def test_a_vm_is_bound_once(bench: Bench) -> None:
    await bench.bind()
    with pytest.raises(FailedPrecondition, match="bound to pod"):
        await bench.bind()
    assert not bench.vm.exited.done()


async def test_ram_that_is_not_sealed_is_refused(bench: Bench) -> None:
    bench.pod._ram = os.memfd_create("open")
    try:
        with pytest.raises(FailedPrecondition, match="unchanged snapshot"):
            await bench.bind()
    finally:
        os.close(bench.pod._ram)


async def test_a_container_lives_and_its_end_is_recorded(bench: Bench, tmp_path: Path) -> None:
    log = tmp_path / "c.log"
    await bench.bind()
    await bench.run(log_path=str(log))
    assert bench.on_disk().containers[0].state == "running"
    bench.vm.agent.streams[0].feed(b"hello\n", b"partial")
    bench.end(3)
    record = await bench.until_exited()
    assert (record.state, record.exit_code, record.reason) == ("exited", 3, "Error")
    assert record.finished_at >= record.started_at > 0
    assert bench.on_disk().containers == (record,)
    lines = log.read_text().splitlines()
    assert [line.split(" ", 1)[1] for line in lines] == ["stdout F hello", "stdout P partial"]
    assert bench.events[-1]["container"]["exit_code"] == 3


@pytest.mark.parametrize(
    ("code", "oom", "reason"),
    [(0, False, "Completed"), (1, False, "Error"), (137, True, "OOMKilled")],
)
async def test_reasons(bench: Bench, code: int, oom: bool, reason: str) -> None:
    await bench.bind()
    await bench.run()
    bench.end(code, oom_killed=oom)
    assert (await bench.until_exited()).reason == reason


async def test_an_exit_code_that_the_guest_made_up_is_255(bench: Bench) -> None:
    await bench.bind()
    await bench.run()
    bench.end(cast("int", "zero"))
    assert (await bench.until_exited()).exit_code == 255


async def test_a_command_that_does_not_exist(bench: Bench) -> None:
    await bench.bind()
    await bench.create()
    bench.vm.agent.answers["container.start"] = NotFound('exec: "/bin/nope": no such file')
    with pytest.raises(NotFound, match="/bin/nope"):
        await bench.pod.container(ID).start()
    record = await bench.until_exited()
    assert (record.exit_code, record.reason) == (128, "StartError")
    assert "/bin/nope" in record.message


async def test_the_steps_of_a_create_are_timed(bench: Bench) -> None:
    await bench.bind()
    timings = await bench.create()
    assert list(timings) == ["record", "layers", "shares", "guest"]
    assert all(took >= 0 for took in timings.values())


async def test_a_container_starts_once(bench: Bench) -> None:
    await bench.bind()
    await bench.run()
    with pytest.raises(FailedPrecondition, match="running, not created"):
        await bench.pod.container(ID).start()


async def test_a_log_that_cannot_be_written_fails_the_start(bench: Bench) -> None:
    await bench.bind()
    await bench.create(log_path="/nonexistent/c.log")
    with pytest.raises(FailedPrecondition, match="log file"):
        await bench.pod.container(ID).start()
    record = await bench.until_exited()
    assert (record.exit_code, record.reason) == (128, "StartError")
    assert "log file" in record.message
    assert bench.on_disk().containers == (record,)
    assert not bench.vm.agent.asked("container.start")


async def test_a_guest_that_does_not_answer_a_start_is_told_to_end_it(bench: Bench) -> None:
    await bench.bind()
    await bench.create()
    bench.vm.agent.answers["container.start"] = DeadlineExceeded("the agent did not answer")
    with pytest.raises(DeadlineExceeded):
        await bench.pod.container(ID).start()
    record = await bench.until_exited()
    assert (record.exit_code, record.reason) == (128, "StartError")
    assert bench.on_disk().containers == (record,)
    async with asyncio.timeout(60):
        while not bench.vm.agent.asked("container.kill"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    # It began after all.
    bench.end(137)
    await asyncio.sleep(0.05)
    assert bench.pod.container(ID).record == record


async def test_stop_signals_then_kills(bench: Bench) -> None:
    await bench.bind()
    await bench.run()

    def kill(params: dict[str, Any]) -> dict[str, Any]:
        if params["signal"] == 9:
            bench.end(137)
        return {}

    bench.vm.agent.answers["container.kill"] = kill
    await bench.pod.container(ID).stop(15, 0.05)
    asked = [(p["signal"], p["all"]) for p in bench.vm.agent.asked("container.kill")]
    assert asked == [(15, False), (9, True)]
    assert bench.pod.container(ID).record.exit_code == 137
    await bench.pod.container(ID).stop(15, 1)
    assert len(bench.vm.agent.asked("container.kill")) == 2


async def test_a_stop_signal_waits_for_ears(bench: Bench) -> None:
    await bench.bind()
    await bench.run()
    heard = iter([False, False, True])

    def kill(_params: dict[str, Any]) -> dict[str, Any]:
        answer = next(heard)
        if answer:
            bench.end(0)
        return {"heard": answer}

    bench.vm.agent.answers["container.kill"] = kill
    await bench.pod.container(ID).stop(15, 10)
    assert [p["signal"] for p in bench.vm.agent.asked("container.kill")] == [15, 15, 15]
    assert bench.pod.container(ID).record.exit_code == 0


async def test_a_container_that_never_hears_is_killed_after_its_grace(bench: Bench) -> None:
    await bench.bind()
    await bench.run()

    def kill(params: dict[str, Any]) -> dict[str, Any]:
        if params["signal"] == 9:
            bench.end(137)
        return {"heard": False}

    bench.vm.agent.answers["container.kill"] = kill
    await bench.pod.container(ID).stop(15, 1)
    asked = [p["signal"] for p in bench.vm.agent.asked("container.kill")]
    assert asked.count(15) > 1
    assert asked[-1] == 9
    assert asked.count(9) == 1


async def test_layers_are_shared_and_slots_given_back(bench: Bench) -> None:
    await bench.bind()
    other = "c" * 64
    await bench.create(ID, "base", "one")
    await bench.create(other, "base", "two")
    assert len(bench.vm.slots) == 3
    await bench.pod.remove_container(ID)
    assert {str(path) for path in bench.vm.slots.values()} == {"/layers/base", "/layers/two"}
    await bench.pod.remove_container(other)
    await bench.pod.remove_container(other)
    assert bench.vm.slots == {}
    assert bench.pod.layers.in_use == 0
    assert bench.on_disk().containers == ()


async def test_more_layers_than_slots(bench: Bench) -> None:
    await bench.bind()
    with pytest.raises(ResourceExhausted, match="4 more layers"):
        await bench.create(ID, "a", "b", "c", "d")
    assert bench.vm.slots == {}
    assert bench.on_disk().containers == ()


@pytest.mark.parametrize("point", ["container.create", "layer.attach", "layer.mount"])
async def test_a_failed_create_leaves_nothing(bench: Bench, point: str) -> None:
    await bench.bind()
    failpoint.arm(f"{point}=1*error")
    with pytest.raises(Internal):
        await bench.create()
    assert bench.vm.slots == {}
    assert bench.on_disk().containers == ()
    await bench.create()


async def test_a_create_that_the_agent_refuses_leaves_nothing(bench: Bench) -> None:
    await bench.bind()
    bench.vm.agent.answers["container.create"] = InvalidArgument("unknown mount type")
    with pytest.raises(InvalidArgument, match="unknown mount type"):
        await bench.create()
    assert bench.vm.slots == {}
    assert bench.pod.containers == {}
    assert bench.vm.agent.asked("container.delete")


async def test_ids_are_checked(bench: Bench) -> None:
    with pytest.raises(FailedPrecondition, match="not running"):
        await bench.create()
    await bench.bind()
    await bench.create()
    with pytest.raises(AlreadyExists):
        await bench.create()
    with pytest.raises(NotFound):
        bench.pod.container("d" * 64)


async def test_pod_stop_kills_and_records(bench: Bench) -> None:
    await bench.bind()
    await bench.run()
    await bench.pod.stop()
    await bench.pod.stop()
    found = bench.on_disk()
    assert found.pod is not None
    assert found.pod.state == "notready"
    assert found.containers[0].exit_code == 137
    assert [event["event"] for event in bench.events] == ["container.exited", "pod.stopped"]


async def test_the_vm_dies(bench: Bench) -> None:
    await bench.bind()
    await bench.run()
    bench.vm.die("QEMU was killed by signal 9")
    record = await bench.until_exited()
    assert (record.exit_code, record.reason) == (255, "Error")
    assert "signal 9" in record.message
    await bench.pod.stop()
    await bench.pod._over("later", 0)
    assert "signal 9" in bench.pod.reason
    with pytest.raises(FailedPrecondition):
        await bench.exec_sync(ID, {}, 1)
    await bench.pod.remove_container(ID)


async def test_exec_returns_output_and_code(bench: Bench) -> None:
    await bench.bind()
    await bench.run()
    agent = bench.vm.agent

    def exec_(params: dict[str, Any]) -> dict[str, Any]:
        out, err = agent.streams[-2:]
        out.feed(b"out", b"put", b"")
        err.feed(b"oops", b"")
        agent.emit(event="process.exit", exec="e1", exit_code=7)
        return {"exec": "e1", "pid": 5}

    agent.answers["process.exec"] = exec_
    answer = await bench.exec_sync(ID, {"args": ["x"]}, 5)
    assert answer.result == {"exit_code": 7, "stdout_bytes": 6}
    assert answer.body == b"outputoops"


async def test_exec_that_takes_too_long_is_killed(bench: Bench) -> None:
    await bench.bind()
    await bench.run()
    agent = bench.vm.agent
    agent.answers["process.exec"] = {"exec": "e1", "pid": 5}

    def kill(params: dict[str, Any]) -> dict[str, Any]:
        assert params == {"exec": "e1", "signal": 9, "group": True}
        agent.emit(event="process.exit", exec="e1", exit_code=137)
        return {}

    agent.answers["process.kill"] = kill
    with pytest.raises(DeadlineExceeded, match="timed out after"):
        await bench.exec_sync(ID, {"args": ["x"]}, 0.05)
    assert agent.asked("process.kill")


@pytest.mark.parametrize("ends", ["timed out", "cancelled"])
async def test_exec_that_a_slow_guest_starts_too_late_is_killed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr("shim.exec.KILL_WAIT", 0.05)
    await bench.bind()
    await bench.run()
    agent = bench.vm.agent
    agent.answers["process.exec"] = {"exec": "e1", "pid": 5}
    asked, answers = asyncio.Event(), asyncio.Event()
    request = agent.request

    async def slow(method: str, *more: Any, **options: Any) -> dict[str, Any]:
        answer = await request(method, *more, **options)
        if method == "process.exec":
            asked.set()
            await answers.wait()
        return answer

    monkeypatch.setattr(agent, "request", slow)
    timeout = 0.05 if ends == "timed out" else 0
    call = asyncio.create_task(bench.exec_sync(ID, {"args": ["x"]}, timeout))
    await asked.wait()
    if ends == "cancelled":
        call.cancel()
    with pytest.raises((DeadlineExceeded, asyncio.CancelledError)):
        await call
    assert not agent.asked("process.kill")
    answers.set()
    async with asyncio.timeout(60):
        while not agent.asked("process.kill"):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    assert agent.asked("process.kill") == [{"exec": "e1", "signal": 9, "group": True}]


async def test_exec_does_not_wait_for_a_child_that_holds_the_output(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "DRAIN_TIMEOUT", 0.05)
    await bench.bind()
    await bench.run()
    agent = bench.vm.agent

    def exec_(params: dict[str, Any]) -> dict[str, Any]:
        agent.streams[-2].feed(b"said")
        agent.emit(event="process.exit", exec="e1", exit_code=0)
        return {"exec": "e1", "pid": 5}

    agent.answers["process.exec"] = exec_
    assert (await bench.exec_sync(ID, {"args": ["x"]}, 0)).body == b"said"
    assert agent.streams[-2].was_reset


async def test_exec_output_is_capped(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "EXEC_CAP", 10)
    await bench.bind()
    await bench.run()
    agent = bench.vm.agent

    def exec_(params: dict[str, Any]) -> dict[str, Any]:
        agent.streams[-2].feed(b"123456", b"789012", b"3", b"")
        agent.streams[-1].feed(b"")
        agent.emit(event="process.exit", exec="e1", exit_code=0)
        return {"exec": "e1", "pid": 5}

    agent.answers["process.exec"] = exec_
    assert (await bench.exec_sync(ID, {"args": ["x"]}, 5)).body == b"1234567890"


async def test_an_exec_needs_a_running_container(bench: Bench) -> None:
    await bench.bind()
    await bench.create()
    with pytest.raises(ThawError, match="created, not running"):
        await bench.exec_sync(ID, {}, 1)
