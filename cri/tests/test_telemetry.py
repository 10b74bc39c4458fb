"""The daemon's own metrics, and the server that shows them."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import AsyncIterator

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from cri.api import v1_pb2 as v1
from cri.config import Config
from cri.telemetry.config import Metrics
from cri.telemetry.server import MAX_CONNECTIONS, MetricsServer
from cri.telemetry.telemetry import Telemetry
from cri.tests.client import Client
from hostlib.config import BadValue
from hostlib.errors import FailedPrecondition, ResourceExhausted


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def samples(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (each.name, tuple(sorted(each.labels.items()))): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
    }


async def test_what_the_daemon_did_is_counted(client: Client) -> None:
    pod = await client.run()
    await client.create(pod)
    client.world.network.fail = ResourceExhausted("no address is left")
    with pytest.raises(Exception, match="no address"):
        await client.run("other")
    client.world.network.fail = None
    client.world.zygote.fail_spawn = ResourceExhausted("no memory")
    with pytest.raises(Exception, match="no memory"):
        await client.run("third")
    await client.runtime.ListContainers(v1.ListContainersRequest())
    await client.world.daemon.lose(client.world.daemon.index.pods.find(pod), "it died")
    client.world.images.received_bytes = 1234
    found = samples(client.world.daemon.telemetry.text().decode())

    def of(name: str, **labels: str) -> float:
        return found[name, tuple(sorted(labels.items()))]

    assert of("thawd_rpc_duration_seconds_count", method="RunPodSandbox") == 3
    assert of("thawd_rpc_duration_seconds_count", method="ListContainers") == 1
    assert of("thawd_rpc_failures_total", method="RunPodSandbox", reason="RESOURCE_EXHAUSTED") == 2
    assert of("thawd_pool_takes_total", result="miss") == 3
    assert of("thawd_pool_takes_total", result="hit") == 0
    assert of("thawd_vm_restore_duration_seconds_count", use="pod") == 2
    assert of("thawd_vm_restore_failures_total", use="pod", reason="RESOURCE_EXHAUSTED") == 1
    assert of("thawd_pods_lost_total", reason="shim") == 1
    assert of("thawd_pods", state="notready") == 1
    assert of("thawd_containers", state="exited") == 1
    assert of("thawd_image_received_bytes_total") == 1234
    assert of("thawd_images") == 1
    assert of("thawd_pool_ready") == 0
    assert of("process_resident_memory_bytes") > 0


@pytest.fixture
async def served() -> AsyncIterator[tuple[MetricsServer, str]]:
    port = free_port()
    server = MetricsServer(f"127.0.0.1:{port}", Telemetry("1.2").text, timeout=5.0)
    await server.start()
    yield server, f"http://127.0.0.1:{port}"
    await server.stop()


async def test_the_page(served: tuple[MetricsServer, str]) -> None:
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        found = await http.get(served[1] + "/metrics?x=1")
        assert found.status_code == 200
        assert found.headers["content-type"].startswith("text/plain; version=0.0.4")
        assert "process_start_time_seconds" in found.text
        head = await http.head(served[1] + "/metrics")
        assert (head.status_code, head.content) == (200, b"")
        assert (await http.get(served[1] + "/")).status_code == 404
        assert (await http.post(served[1] + "/metrics", content=b"x" * 99999)).status_code == 405


async def test_bad_requests(served: tuple[MetricsServer, str]) -> None:
    port = int(served[1].rpartition(":")[2])
    for sent, expected in ((b"nonsense\r\n\r\n", b"400"), (b"GET /" + b"x" * 70000, b"431")):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(sent)
        async with asyncio.timeout(60):
            answer = await reader.read(12)
        assert answer == b"HTTP/1.1 " + expected
        writer.close()
        await writer.wait_closed()


async def test_clients_that_say_nothing_end_and_are_bounded(
    served: tuple[MetricsServer, str],
) -> None:
    port = int(served[1].rpartition(":")[2])
    loop = asyncio.get_running_loop()
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.socket()) for _ in range(MAX_CONNECTIONS + 4)]
        async with asyncio.timeout(60):
            for each in idle:
                each.setblocking(False)
                await loop.sock_connect(each, ("127.0.0.1", port))
            for each in idle:
                with contextlib.suppress(ConnectionResetError):
                    assert await loop.sock_recv(each, 1) == b""
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        assert (await http.get(served[1] + "/metrics")).status_code == 200


async def test_the_page_is_made_off_the_loop_and_once_for_many() -> None:
    made = 0
    go = threading.Event()

    def render() -> bytes:
        nonlocal made
        made += 1
        assert go.wait(60)
        return b"x 1\n"

    port = free_port()
    server = MetricsServer(f"127.0.0.1:{port}", render)
    await server.start()
    async with httpx.AsyncClient(trust_env=False, timeout=60) as http:
        url = f"http://127.0.0.1:{port}/metrics"
        asked = [asyncio.create_task(http.get(url)) for _ in range(5)]
        # The loop goes on meanwhile.
        await asyncio.sleep(0.3)
        go.set()
        assert [(await each).text for each in asked] == ["x 1\n"] * 5
    assert made == 1
    await server.stop()


async def test_an_address_in_use_stops_the_start(served: tuple[MetricsServer, str]) -> None:
    second = MetricsServer(served[1].removeprefix("http://"), lambda: b"")
    with pytest.raises(FailedPrecondition, match="metrics cannot be served"):
        await second.start()


@pytest.mark.parametrize(
    "bad", ["9464", "localhost:9464", "127.0.0.1:0", "127.0.0.1:65536", "::1:9464", "[::1]"]
)
def test_bad_addresses_are_refused(bad: str) -> None:
    with pytest.raises(BadValue):
        Metrics(listen=bad).validate()


def test_it_is_off_by_default() -> None:
    assert Config().metrics.listen == ""
    Metrics(listen="[::1]:9464").validate()
