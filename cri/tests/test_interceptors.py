from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from cri.api import v1_pb2
from cri.interceptors import Boundary, status_of
from hostlib.errors import Internal, NotFound, ThawError, Unavailable


@pytest.mark.parametrize("cls", [*ThawError.__subclasses__(), ThawError])
def test_every_error_has_its_code(cls: type[ThawError]) -> None:
    code, text = status_of(cls("it failed", hint="mend it"))
    assert code.name == cls.code
    assert text == "it failed (hint: mend it)"


def test_a_defect_is_internal() -> None:
    assert status_of(KeyError("x")) == (grpc.StatusCode.INTERNAL, "internal error: KeyError: 'x'")


class Context:
    async def abort(self, code: grpc.StatusCode, text: str) -> None:
        self.code, self.text = code, text


async def test_errors_reach_the_client_with_hint() -> None:
    async def handler(_: Any) -> Any:
        raise NotFound("no pod", hint="list them")

    context = Context()
    with pytest.raises(NotFound):
        await Boundary().unary("StopContainer", handler)(v1_pb2.VersionRequest(), context)
    assert (context.code, context.text) == (
        grpc.StatusCode.NOT_FOUND,
        "no pod (hint: list them)",
    )


async def test_a_change_is_carried_to_its_end() -> None:
    started, done = asyncio.Event(), asyncio.Event()

    async def handler(_: Any) -> Any:
        started.set()
        await asyncio.sleep(0.05)
        done.set()

    boundary = Boundary()
    request = v1_pb2.VersionRequest()
    call = asyncio.ensure_future(boundary.unary("RunPodSandbox", handler)(request, Context()))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await boundary.drain(5)
    assert done.is_set()


@pytest.mark.parametrize("error", [Unavailable("gone"), Internal("broken"), KeyError("defect")])
async def test_a_failure_without_client_is_logged(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    started = asyncio.Event()

    async def handler(_: Any) -> Any:
        started.set()
        await asyncio.sleep(0.02)
        raise error

    boundary = Boundary()
    request = v1_pb2.VersionRequest()
    call = asyncio.ensure_future(boundary.unary("StopPodSandbox", handler)(request, Context()))
    await started.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await boundary.drain(5)
    assert "client gone" in caplog.text


async def test_a_read_ends_with_its_client() -> None:
    ended = asyncio.Event()

    async def handler(_: Any) -> Any:
        try:
            await asyncio.sleep(60)
        finally:
            ended.set()

    request = v1_pb2.VersionRequest()
    call = asyncio.ensure_future(Boundary().unary("Status", handler)(request, Context()))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert ended.is_set()
