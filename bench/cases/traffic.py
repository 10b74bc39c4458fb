"""What containers put out: log lines, and answers to HTTP requests."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Final

from bench import images
from bench.node import Node
from bench.pods import Pod
from bench.session import Session
from cri.api import v1_pb2
from e2e.harness.refs import SLEEP
from e2e.harness.waiting import until
from hostlib.errors import Internal
from hostlib.process import ENVIRONMENT

LOG_SECONDS: Final = 120.0
STALL_SECONDS: Final = 3.0
WRK: Final = ("/usr/bin/wrk", "-t1", "-c8", "--latency")

_RATE: Final = re.compile(r"^Requests/sec:\s+([0-9.]+)", re.MULTILINE)
_P50: Final = re.compile(r"^\s+50%\s+([0-9.]+)(us|ms|s)", re.MULTILINE)
_ERRORS: Final = re.compile(r"^\s+(Socket errors:.*|Non-2xx.*)$", re.MULTILINE)
_IN_MS: Final = {"us": 0.001, "ms": 1.0, "s": 1000.0}


def logs(session: Session) -> None:
    """Rows log_rate, log_lost: a container that writes lines as fast as it can."""
    for _ in session.rounds(4, 1, 60):
        for node in session.nodes:
            session.quiet(node)
            pod = Pod.run(node)
            container = pod.create(images.LINES, ["/bin/cat", "/lines"])
            log = Path(pod.config.log_directory) / "main.log"
            begun = time.perf_counter()
            node.client.start_container(container)
            _wait_for_log(node, container, log)
            took = time.perf_counter() - begun
            megabytes = images.LINE_COUNT * images.LINE_BYTES / 1e6
            session.figures.add("log_rate", node.name, megabytes / took, "MB/s")
            with log.open("rb") as lines:
                session.figures.add("log_lost", node.name, lost(lines), "lines")
            pod.remove()
            log.unlink()


def _wait_for_log(node: Node, container: str, log: Path) -> None:
    """Until the last line is there, or the container has ended and nothing comes any more."""
    last = images.line(images.LINE_COUNT - 1)
    deadline = time.monotonic() + LOG_SECONDS
    size, grown = -1, time.monotonic()
    while time.monotonic() < deadline:
        time.sleep(0.01)
        if not log.exists():
            continue
        with log.open("rb") as file:
            now = file.seek(0, 2)
            file.seek(max(0, now - 2 * images.LINE_BYTES))
            if file.read().rstrip(b"\n").endswith(last):
                return
        if now != size:
            size, grown = now, time.monotonic()
        elif time.monotonic() - grown > STALL_SECONDS:
            state = node.client.container_status(container).state
            if state == v1_pb2.CONTAINER_EXITED:
                return
    raise Internal(f"the log was not complete after {LOG_SECONDS:g} s: {size} bytes")


def lost(lines: Iterable[bytes], count: int = images.LINE_COUNT) -> int:
    """How many of the `count` lines are missing in a CRI log, or not in their place."""
    found = 0
    for number, entry in enumerate(lines):
        # RFC3339Nano, stream, F or P, content.
        parts = entry.rstrip(b"\n").split(b" ", 3)
        found += parts[1:3] == [b"stdout", b"F"] and parts[3] == images.line(number)
    return count - found


def http(session: Session) -> None:
    """Rows http_*: nginx in one pod, eight connections from the host or from another pod."""
    seconds = session.pick(2, 1)
    pods = []
    targets = []
    for node in session.nodes:
        server = Pod.up(node, images.WEB, ())
        client = Pod.run(node)
        shell = client.start(images.WEB, SLEEP)
        pods += [server, client]
        # With its port, since the image has no list of services.
        url = f"http://{server.ip}:80/index.html"
        targets.append((node, shell, url))
        until(f"{url} answers", partial(_answers, node, shell, url))
    for _ in session.rounds(4, 1, 45):
        for node, shell, url in targets:
            session.quiet(node)
            _note(session, node, "host", _from_host(node, url, seconds))
            _note(session, node, "pod", _from_pod(node, shell, url, seconds))
    for pod in pods:
        pod.remove()


def _answers(node: Node, container: str, url: str) -> bool:
    wget = ["/bin/wget", "-q", "-O", "/dev/null", url]
    return node.client.exec_sync(container, wget, 10).exit_code == 0


def _from_host(node: Node, url: str, seconds: int) -> str:
    argv = ["nsenter", f"--net={node.netns}", *WRK, f"-d{seconds}s", url]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=dict(ENVIRONMENT))
    if done.returncode != 0:
        raise Internal(f"wrk failed: {done.stderr}", hint="tools/apt.sh wrk installs it")
    return done.stdout


def _from_pod(node: Node, container: str, url: str, seconds: int) -> str:
    answer = node.client.exec_sync(container, [*WRK, f"-d{seconds}s", url], seconds + 60)
    if answer.exit_code != 0:
        raise Internal(f"wrk in the pod failed: {answer.stderr!r}")
    return answer.stdout.decode()


def parse_wrk(text: str) -> tuple[float, float]:
    """Requests per second, and the median latency in ms. Raises `Internal` if requests failed."""
    rate, p50, failed = _RATE.search(text), _P50.search(text), _ERRORS.search(text)
    if failed is not None:
        raise Internal(f"requests failed: {failed[1]}")
    if rate is None or p50 is None:
        raise Internal(f"wrk said something else: {text[:500]!r}")
    return float(rate[1]), float(p50[1]) * _IN_MS[p50[2]]


def _note(session: Session, node: Node, place: str, text: str) -> None:
    rate, p50 = parse_wrk(text)
    session.figures.add(f"http_{place}_rate", node.name, rate, "requests/s")
    session.figures.add(f"http_{place}_p50", node.name, p50)
