"""Tests in the host of `e2e.harness.host_vm` say on its second serial port how they end."""

from __future__ import annotations

import json
import os
from typing import Final

import pytest

REPORT: Final = "/dev/ttyS1"


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when != "call" and not report.failed:
        return
    line = {
        "name": report.location[2],
        "error": report.longreprtext[-20000:] if report.failed else "",
        "seconds": report.duration,
    }
    descriptor = os.open(REPORT, os.O_WRONLY | os.O_NOCTTY)
    try:
        text = f"{json.dumps(line)}\n".encode()
        while text:
            text = text[os.write(descriptor, text) :]
    finally:
        os.close(descriptor)
