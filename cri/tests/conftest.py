"""Fixtures of the daemon's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc.aio
import pytest

from cri.api import thaw_pb2_grpc, v1_pb2_grpc
from cri.server import Server
from cri.tests.client import Client, stub
from cri.tests.fakes import make_world


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[Client]:
    world = make_world(tmp_path)
    server = Server(world.daemon, tmp_path / "thawd.sock")
    await server.start()
    channel = grpc.aio.insecure_channel(f"unix:{tmp_path}/thawd.sock")
    yield Client(
        world,
        stub(v1_pb2_grpc, "RuntimeService", channel),
        stub(v1_pb2_grpc, "ImageService", channel),
        stub(thaw_pb2_grpc, "Thaw", channel),
        tmp_path / "logs",
    )
    await channel.close(None)
    await server.stop(0.1)
    await world.daemon.close()
