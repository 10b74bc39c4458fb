"""The daemon's own life: locks, the socket, sd_notify, SIGTERM; with fakes for VMs and images."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from cri import main
from cri.api import v1_pb2 as v1
from cri.api import v1_pb2_grpc
from cri.config import Config
from cri.config import Pool as PoolConfig
from cri.tests.fakes import FakeImages, FakeNetwork, FakeZygote
from hostlib.errors import FailedPrecondition


class Client:
    async def start(self) -> None: ...
    async def stop(self) -> None: ...


@pytest.fixture
def zygote(monkeypatch: pytest.MonkeyPatch) -> FakeZygote:
    zygote = FakeZygote()
    monkeypatch.setattr(main, "Images", lambda *_, **__: FakeImages())
    monkeypatch.setattr(main, "ZygoteClient", lambda **_: Client())
    monkeypatch.setattr(main, "Shims", lambda *_: zygote)
    monkeypatch.setattr(main, "create_network", lambda *_: FakeNetwork())
    return zygote


def stub(path: Path) -> tuple[grpc.aio.Channel, Any]:
    channel = grpc.aio.insecure_channel(f"unix:{path}")
    # The generated module has no types.
    return channel, getattr(v1_pb2_grpc, "RuntimeServiceStub")(channel)  # noqa: B009


def test_what_is_imported_is_not_collected_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    walked: list[int] = []

    async def serve(_config: Config) -> None:
        walked.append(len(gc.get_objects()))

    monkeypatch.setattr(main, "serve", serve)
    monkeypatch.setattr("cri.main.logs.setup", lambda *_, **__: None)
    before = len(gc.get_objects())
    try:
        main.main(["--root", str(tmp_path / "root"), "--state", str(tmp_path / "state")])
    finally:
        gc.unfreeze()
    assert walked[0] < before / 10


async def test_a_life(tmp_path: Path, zygote: FakeZygote, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(
        root=tmp_path / "root",
        state=tmp_path / "state",
        listen=f"unix://{tmp_path}/s/t.sock",
        pool=PoolConfig(size=2),
    )
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "notify"))
        told.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        running = asyncio.create_task(main.serve(config))
        async with asyncio.timeout(60):
            assert await asyncio.get_running_loop().sock_recv(told, 64) == b"READY=1"
    assert config.socket_path.stat().st_mode & 0o077 == 0
    with pytest.raises(FailedPrecondition, match="another thawd"):
        await main.serve(config)
    channel, runtime = stub(config.socket_path)
    sandbox = v1.PodSandboxConfig(metadata=v1.PodSandboxMetadata(name="web"))
    pod = (await runtime.RunPodSandbox(v1.RunPodSandboxRequest(config=sandbox))).pod_sandbox_id
    async with asyncio.timeout(60):
        while len(zygote.shims) < 3:  # noqa: ASYNC110 (one pod, and a pool of two)
            await asyncio.sleep(0.01)
    await channel.close(None)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(running, 60)
    assert not config.socket_path.exists()
    shut = [each for each in zygote.shims.values() if ("shutdown",) in each.calls]
    bound = [each for each in zygote.shims.values() if each.pod is not None]
    assert len(shut) == 2
    assert [each.pod.id for each in bound if each.pod] == [pod]
    assert bound[0] not in shut


def test_the_soft_limit_of_open_files_is_raised() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, before[1]))
    try:
        main.raise_open_files()
        wanted = before[1]
        if wanted == resource.RLIM_INFINITY or wanted > main.MAX_DESCRIPTORS:
            wanted = main.MAX_DESCRIPTORS
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (wanted, before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_bad_configuration_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[pool]\nsiz = 1\n")
    with pytest.raises(SystemExit) as caught:
        main.main(["--config", str(file)])
    assert caught.value.code == 1
    told = capsys.readouterr().err
    assert f"thawd: {file}:2: unknown key pool.siz" in told
    assert "hint: did you mean size?" in told
