"""Show where the start of a pod spent its time: each step in the daemon, the shim and the guest."""

from __future__ import annotations

import argparse

from cli import show
from cli.client import Client
from hostlib.errors import NotFound

HELP = "show the steps of a pod's start"
_WIDTH = 40


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pod", nargs="?", default="", help="id or prefix (default: the last start)")
    parser.add_argument("--json", action="store_true", help="print as JSON")


def bar(offset: float, duration: float, total: float) -> str:
    """A step's place in the whole, as characters; at least one."""
    begin = min(int(_WIDTH * offset / total), _WIDTH - 1)
    length = max(1, round(_WIDTH * duration / total))
    return (" " * begin + "#" * min(length, _WIDTH - begin)).ljust(_WIDTH)


def run(arguments: argparse.Namespace) -> int:
    with Client(arguments.address) as client:
        traces = client.traces(arguments.pod)
    if not traces:
        raise NotFound(
            f"no start of pod {arguments.pod or '(any)'} is remembered",
            hint="the daemon keeps its last 256 starts, until it restarts",
        )
    last = max(traces, key=lambda trace: trace.started_at)
    if arguments.json:
        print(show.as_json([last]))
        return 0
    total = max((step.offset_ns + step.duration_ns for step in last.steps), default=1)
    rows = [
        (
            step.name,
            f"{step.offset_ns / 1e6:.1f}",
            f"{step.duration_ns / 1e6:.1f}",
            bar(step.offset_ns, step.duration_ns, total),
            step.error,
        )
        for step in sorted(last.steps, key=lambda step: (step.offset_ns, -step.duration_ns))
    ]
    print(f"pod {last.namespace}/{last.name}, {show.short(last.pod_sandbox_id)}")
    print(show.table(("STEP", "AT MS", "TOOK MS", "", "ERROR"), rows))
    return 0
