"""Streams through CRI's URLs, by the client library of Kubernetes (`e2e/tools/stream-client`)."""

from __future__ import annotations

import json
import subprocess
from typing import Any, Final

from bench import images
from bench.node import Node
from bench.pods import Pod
from bench.session import Session
from cri.api import v1_pb2
from e2e.harness.refs import SLEEP
from e2e.harness.streams import PROGRAM
from hostlib.errors import Internal
from hostlib.process import ENVIRONMENT

LIMIT: Final = 120.0
KEYS: Final = 100
_PORT: Final = 80
_PAGES: Final = "/var/www/html"
_FILES: Final = {"large": 30, "small": 1}
"""Names and MiB of what is fetched through a forwarded port."""


def measure(session: Session) -> None:
    """Rows stream_*."""
    pods = {node.name: _pod(node) for node in session.nodes}
    for _ in session.rounds(5, 2, 60):
        for node in session.nodes:
            pod, shell, lines = pods[node.name]
            session.quiet(node)
            add = session.figures.add
            add("stream_true", node.name, _exec(node, shell, "/bin/true")["seconds"] * 1000, "ms")
            told = _exec(node, lines, "/bin/cat", "/lines")
            size = told["stdout"]["bytes"]
            if size != images.LINE_COUNT * images.LINE_BYTES:
                raise Internal(f"exec gave {size} bytes of the file")
            add("stream_exec_rate", node.name, size / 1e6 / told["seconds"], "MB/s")
            add("stream_forward_rate", node.name, _fetch(node, pod, "large", 1), "MB/s")
            add("stream_forward50_rate", node.name, _fetch(node, pod, "small", 50), "MB/s")
            for took in _type(node, shell):
                add("stream_echo", node.name, took, "ms")
    for pod, _, _ in pods.values():
        pod.remove()


def _pod(node: Node) -> tuple[Pod, str, str]:
    """A pod of nginx with files of two sizes, and its containers: of nginx, and of many lines."""
    pod = Pod.run(node)
    web = pod.start(images.WEB, ())
    lines = pod.start(images.LINES, SLEEP, name="lines")
    for name, size in _FILES.items():
        make = ["/bin/dd", "if=/dev/zero", f"of={_PAGES}/{name}", "bs=1M", f"count={size}"]
        if (answer := node.client.exec_sync(web, make)).exit_code:
            raise Internal(f"dd failed: {answer.stderr!r}")
    return pod, web, lines


def _exec_url(node: Node, container: str, *command: str, terminal: bool = False) -> str:
    request = v1_pb2.ExecRequest(
        container_id=container, cmd=command, stdout=True, stdin=terminal, tty=terminal
    )
    return node.client.runtime("Exec", request, v1_pb2.ExecResponse).url


def _exec(node: Node, container: str, *command: str) -> dict[str, Any]:
    url = _exec_url(node, container, *command)
    told = _client(node, "exec", "-url", url, "-no-stderr")
    if told["code"] != 0:
        raise Internal(f"exec of {command[0]} failed: {told['error']}")
    return told


def _type(node: Node, container: str) -> list[float]:
    url = _exec_url(node, container, "/bin/cat", terminal=True)
    # The first keys find everything cold.
    return [float(took) for took in _client(node, "type", "-url", url, "-keys", str(KEYS))["ms"]][
        10:
    ]


def _fetch(node: Node, pod: Pod, name: str, connections: int) -> float:
    """MB/s of so many GETs at once through one forwarded port."""
    request = v1_pb2.PortForwardRequest(pod_sandbox_id=pod.id, port=[_PORT])
    url = node.client.runtime("PortForward", request, v1_pb2.PortForwardResponse).url
    text = f"GET /{name} HTTP/1.0\r\n\r\n"
    told = _client(
        node, "forward", "-url", url, "-port", str(_PORT), "-drain", str(connections), "-text", text
    )
    work = told.get("work") or {}
    if told.get("error") or work.get("failures") or told.get("errors"):
        raise Internal(f"port-forward failed: {told}")
    if work["bytes"] < connections * _FILES[name] * 1024 * 1024:
        raise Internal(f"port-forward gave {work['bytes']} bytes")
    return float(work["bytes"] / 1e6 / work["seconds"])


def _client(node: Node, *arguments: str) -> dict[str, Any]:
    argv = ["nsenter", f"--net={node.netns}", str(PROGRAM), *arguments]
    done = subprocess.run(
        argv, capture_output=True, text=True, check=False, env=dict(ENVIRONMENT), timeout=LIMIT
    )
    if done.returncode != 0:
        raise Internal(f"stream-client failed: {done.stderr}", hint="tools/clients.sh builds it")
    told: dict[str, Any] = json.loads(done.stdout)
    return told
