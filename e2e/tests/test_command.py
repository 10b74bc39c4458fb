"""The `thaw` command against a real daemon."""

from __future__ import annotations

import json
import os
import signal
import subprocess

from e2e.harness.daemon import PROJECT, Daemon
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.waiting import until

THAW = str(PROJECT / ".venv" / "bin" / "thaw")


def thaw(daemon: Daemon, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [THAW, "--address", daemon.address, *argv],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_lists_show_what_runs_and_take_json(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    container = pod.start(SHELL, SLEEP)
    assert pod.id[:12] in thaw(daemon, "pods").stdout
    assert container.id[:12] in thaw(daemon, "ps").stdout
    assert [item["id"] for item in json.loads(thaw(daemon, "pods", "--json").stdout)] == [pod.id]
    found = json.loads(thaw(daemon, "ps", "--json").stdout)
    assert [item["id"] for item in found] == [container.id]
    images = json.loads(thaw(daemon, "images", "--json").stdout)
    assert SHELL in [tag for image in images for tag in image["repo_tags"]]
    assert thaw(daemon, "rm", pod.id[:12]).stdout.strip() == pod.id
    assert json.loads(thaw(daemon, "pods", "--json").stdout) == []


def test_run_shows_output_passes_the_exit_code_and_removes_everything(daemon: Daemon) -> None:
    done = thaw(daemon, "run", SHELL, "sh", "-c", "echo out; echo err >&2; exit 9")
    assert (done.returncode, done.stdout) == (9, "out\n")
    assert "err\n" in done.stderr
    assert not daemon.client.pods()


def test_run_removes_everything_on_interrupt(daemon: Daemon) -> None:
    running = subprocess.Popen(
        [THAW, "--address", daemon.address, "run", SHELL, "sh", "-c", "echo up; sleep 1000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert running.stdout is not None
    assert running.stdout.readline() == b"up\n"
    os.kill(running.pid, signal.SIGINT)
    running.communicate(timeout=60)
    assert running.returncode == 130
    until("the pod is gone", lambda: not daemon.client.pods())


def test_exec_and_logs(daemon: Daemon) -> None:
    container = Pod.run(daemon).start(SHELL, ["/bin/sh", "-c", "seq 1 5; exec sleep 1000000"])
    until("the output is logged", lambda: container.output().endswith("5\n"))
    assert thaw(daemon, "logs", "--tail", "2", container.id[:12]).stdout == "4\n5\n"
    done = thaw(daemon, "exec", container.id[:12], "sh", "-c", "echo hi; exit 4")
    assert (done.returncode, done.stdout) == (4, "hi\n")


def test_pull_prints_the_image_id(daemon: Daemon) -> None:
    done = thaw(daemon, "pull", SHELL)
    image = daemon.client.image_status(SHELL)
    assert image is not None
    assert done.stdout.strip() == image.id


def test_bake_names_the_snapshot_and_the_accelerator(daemon: Daemon) -> None:
    result = json.loads(thaw(daemon, "bake", "--json").stdout)
    assert result["key"]
    assert result["accelerator"] in ("kvm", "tcg")
    assert result["accelerator_reason"]


def test_errors_have_a_hint_and_go_to_stderr(daemon: Daemon) -> None:
    done = thaw(daemon, "logs", "0" * 64)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    unreachable = subprocess.run(
        [THAW, "--address", "unix:///no/such.sock", "pods"],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert unreachable.returncode == 1
    assert "hint: " in unreachable.stderr


def test_doctor_says_whether_pods_can_run(daemon: Daemon) -> None:
    done = thaw(daemon, "doctor", "--json")
    assert done.returncode == 0
    assert "thawd" in {finding["name"] for finding in json.loads(done.stdout)}


def test_the_printed_configuration_is_good(daemon: Daemon) -> None:
    path = daemon.folder / "printed.toml"
    path.write_text(thaw(daemon, "config", "default").stdout)
    assert thaw(daemon, "config", "check", str(path)).returncode == 0
    path.write_text("[pool]\nsize = -1\n")
    done = thaw(daemon, "config", "check", str(path))
    assert done.returncode == 1
    assert "pool.size" in done.stderr


def test_trace_shows_the_steps_of_a_start(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    pod.start(SHELL, SLEEP)
    shown = thaw(daemon, "trace", pod.id[:12])
    assert pod.id[:12] in shown.stdout
    for step in ("total", "vm", "network", "bind", "create main", "start main"):
        assert f"\n{step} " in shown.stdout
    for part in ("image", "host paths", "record", "layers", "shares", "guest"):
        assert f"\ncreate main.{part} " in shown.stdout
    assert thaw(daemon, "trace", "0123456789ab").returncode == 1
