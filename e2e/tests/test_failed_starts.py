"""Containers that cannot be started: what the call says, and what is told of them afterwards."""

from __future__ import annotations

from typing import Any

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL
from hostlib import errors

CASES: list[tuple[list[str], dict[str, Any], type[errors.ThawError], str]] = [
    (["/no/such/program"], {}, errors.NotFound, "/no/such/program"),
    (["no-such-program"], {}, errors.NotFound, "executable file not found in \\$PATH"),
    (["/etc/passwd"], {}, errors.PermissionDenied, "permission denied"),
    (["/bin/true"], {"working_dir": "/etc/passwd"}, errors.ThawError, "/etc/passwd"),
    (["/volume/nonsense"], {}, errors.FailedPrecondition, "exec format error"),
]


def test_a_failed_start_is_told_and_kept(durable: Daemon) -> None:
    nonsense = durable.folder / "volume" / "nonsense"
    nonsense.parent.mkdir()
    nonsense.write_bytes(b"\x01\x02\x03\x04")
    nonsense.chmod(0o755)
    volume = v1_pb2.Mount(host_path=str(nonsense.parent), container_path="/volume")
    pod = Pod.run(durable)
    told = {}
    for number, (command, fields, error, words) in enumerate(CASES):
        made = pod.create(SHELL, command, name=f"c{number}", mounts=[volume], **fields)
        with pytest.raises(error, match=words) as caught:
            durable.client.start_container(made.id)
        told[made.id] = caught.value.message
        # It has ended; it is not there to be started again.
        with pytest.raises(errors.FailedPrecondition):
            durable.client.start_container(made.id)

    # The log's place is taken after the creation, which looked.
    made = pod.create(SHELL, ["/bin/true"], name="log")
    made.log_file.unlink(missing_ok=True)
    made.log_file.mkdir()
    with pytest.raises(errors.FailedPrecondition, match="log file") as caught:
        durable.client.start_container(made.id)
    told[made.id] = caught.value.message

    def check() -> None:
        for container, message in told.items():
            found = durable.client.container_status(container)
            assert found.state == v1_pb2.CONTAINER_EXITED
            assert (found.exit_code, found.reason) == (128, "StartError"), message
            assert found.message
            assert found.message in message
            assert found.created_at <= found.started_at <= found.finished_at

    check()
    durable.kill()
    durable.start()
    check()
