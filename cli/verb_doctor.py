"""Say what this host can do for Thaw, each finding with a hint.

Exit code: 0 when pods can run, 1 when something that they need is missing.
"""

from __future__ import annotations

import argparse
import json

from cli import host_checks, limit_checks
from cli.client import Client
from hostlib.errors import ThawError

HELP = "say what this host can do"

_MARKS = {"ok": "ok  ", "warning": "warn", "missing": "FAIL"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print as JSON")
    parser.add_argument(
        "--pods",
        type=int,
        default=limit_checks.DEFAULT_PODS,
        help="the pods that this node is to hold, the kubelet's maxPods (%(default)s)",
    )


def run(arguments: argparse.Namespace) -> int:
    findings = [
        *host_checks.all_findings(),
        *limit_checks.findings(arguments.pods, arguments.address),
        _daemon(arguments.address),
    ]
    if arguments.json:
        print(json.dumps([finding.to_dict() for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{_MARKS[finding.level]}  {finding.name}: {finding.message}")
            if finding.hint:
                print(f"      hint: {finding.hint}")
    return 1 if any(finding.level == "missing" for finding in findings) else 0


def _daemon(address: str) -> host_checks.Finding:
    try:
        with Client(address) as client:
            answer = client.version()
            pool = client.pool()
    except ThawError as error:
        return host_checks.Finding("thawd", "warning", error.message, error.hint or "")
    for shape in pool.shapes:
        if shape.pressure:
            return host_checks.Finding(
                "thawd",
                "warning",
                f"{answer.runtime_version}, no VM waits: {shape.pressure}",
                "free memory, or lower the pool's settings; pods start slower meanwhile",
            )
    ready = ", ".join(f"{s.shape}: {s.ready} of {s.size} ready" for s in pool.shapes)
    return host_checks.Finding(
        "thawd", "ok", f"{answer.runtime_version}, {pool.accelerator}, pool {ready or 'empty'}"
    )
