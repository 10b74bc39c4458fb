"""A host of another kind: systemd is its init, and its control groups are of version 2 alone.

It is emulated, and so are the VMs in it. `e2e/inside/test_cgroup_v2.py` runs there; each of its
tests is one here.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from e2e.harness.daemon import PROJECT, Daemon, toml
from e2e.harness.host_vm import HostVm, Outcome
from e2e.harness.outside import subnet
from e2e.harness.refs import SHELL, SMALL
from e2e.harness.registry import Registry
from e2e.harness.waiting import until

INSIDE: Final = PROJECT / "e2e" / "inside" / "test_cgroup_v2.py"
EVIDENCE: Final = PROJECT / "e2e" / "evidence" / "cgroup-v2-host"

LIMIT: Final = 900.0
"""Seconds for all of it on a busy machine."""

NAMES: Final = [
    node.name
    for node in ast.parse(INSIDE.read_text()).body
    if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
]

pytestmark = pytest.mark.timeout(LIMIT + 300)


@pytest.fixture(scope="module")
def outcomes(workspace: Path, registry: Registry) -> Iterator[dict[str, Outcome]]:
    """How the tests ended there."""
    baker = Daemon(
        workspace / "baker",
        registry,
        settings={"guest": SMALL, "vm": {"accel": "tcg"}, "pool": {"size": 0}},
        subnet=subnet(),
    )
    host = HostVm(
        workspace / "host",
        baker.root,
        toml(
            {
                "guest": SMALL,
                # A life of a container takes an emulated guest in an emulated host half a minute.
                "vm": {"rehearse": False},
                "pool": {"size": 0, "max_size": 1},
                "network": {"cni_conf_dir": ""},
            }
        ),
        INSIDE,
    )
    try:
        try:
            baker.start()
            baker.client.pull_image(SHELL)
            until("the base is baked", lambda: baker.runtime().status, 240)
        finally:
            left = baker.destroy()
            baker.erase()
        assert not left, left
        found = host.run(LIMIT)
        yield found
        if any(each.error for each in found.values()) or set(found) != set(NAMES):
            host.keep(EVIDENCE)
    except BaseException:
        host.keep(EVIDENCE)
        raise
    finally:
        for each in (baker.folder, host.folder):
            shutil.rmtree(each)


@pytest.mark.parametrize("name", NAMES)
def test_in_that_host(outcomes: dict[str, Outcome], name: str) -> None:
    assert name in outcomes, "an earlier one failed"
    assert not outcomes[name].error, outcomes[name].error
