"""Namespaces of containers and pods: PID in all modes, ephemeral containers among them, IPC with
its shared memory, and those of the host, which are refused."""

from __future__ import annotations

from typing import Any

import pytest

from cri.api import v1_pb2
from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP, WEBAPP
from e2e.harness.waiting import until
from hostlib.errors import ThawError

Options = v1_pb2.NamespaceOption


def linux(
    pid: v1_pb2.NamespaceMode = v1_pb2.CONTAINER, **fields: Any
) -> v1_pb2.LinuxContainerConfig:
    options = Options(
        pid=pid, ipc=fields.pop("ipc", v1_pb2.POD), target_id=fields.pop("target", "")
    )
    return v1_pb2.LinuxContainerConfig(
        security_context=v1_pb2.LinuxContainerSecurityContext(namespace_options=options, **fields)
    )


def start(pod: Pod, name: str, *command: str, **fields: Any) -> Container:
    return pod.start(SHELL, command or SLEEP, name=name, linux=linux(**fields))


def space(container: Container, kind: str) -> str:
    return container.sh(f"readlink /proc/self/ns/{kind}")


def commands(container: Container) -> list[str]:
    """The names of the processes that it sees, by pid."""
    script = "for p in $(ls /proc | grep '^[0-9]*$' | sort -n); do cat /proc/$p/comm 2>&1; done"
    return [one for one in container.sh(f"{script}; true").split("\n") if one]


def pids(container: Container, command: str) -> list[str]:
    """The processes with this command line, of those that it sees."""
    same = f"[ \"$(tr '\\0' ' ' < $p/cmdline)\" = '{command}' ] && echo ${{p#/proc/}}"
    return container.sh(f"for p in /proc/[0-9]*; do {same}; done; true").split()


def test_containers_that_share_a_pid_namespace(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    alone = start(pod, "alone")
    assert commands(alone)[0] == "sleep"
    first = start(pod, "first", pid=v1_pb2.POD)
    second = start(pod, "second", "/bin/sleep", "4242", pid=v1_pb2.POD)
    assert space(first, "pid") == space(second, "pid") != space(alone, "pid")
    assert commands(first)[:1] == ["pause"]
    assert commands(first).count("sleep") == 2
    assert "4242" not in alone.sh("cat /proc/*/cmdline | tr '\\0' ' '")
    (pid,) = pids(first, "/bin/sleep 4242 ")

    # PID 1 reaps what is orphaned, and is nobody's to end or to look into.
    first.sh("(sh -c 'sleep 0.2 & echo $! > /tmp/orphan' &)")
    orphan = first.sh("until [ -s /tmp/orphan ]; do sleep 0.1; done; cat /tmp/orphan")
    until(
        "the orphan is reaped",
        lambda: not int(first.sh(f"ls -d /proc/{orphan} 2>/dev/null | wc -l")),
    )
    first.sh("kill -9 1; kill -TERM 1; kill -CHLD 1; true")
    assert commands(first)[:1] == ["pause"]
    said = first.sh("cat /proc/1/status")
    assert "Uid:\t65535\t65535\t65535\t65535" in said
    assert "CapBnd:\t0000000000000000" in said
    assert "NoNewPrivs:\t1" in said
    for hidden in ("ls /proc/1/root/", "cat /proc/1/environ"):
        assert "denied" in first.sh(f"{hidden} 2>&1 || true").lower(), hidden
    assert first.sh("ls /proc/1/fd") == "0\n1\n2"
    # Nor is there anything for who may look.
    tracer = {"add_capabilities": ["SYS_PTRACE"]}
    third = start(pod, "third", pid=v1_pb2.POD, capabilities=tracer)
    assert third.sh("ls -A /proc/1/root/; wc -c < /proc/1/environ") == "0"
    assert third.sh("for n in 0 1 2; do readlink /proc/1/fd/$n; done | sort -u") == "/dev/null"

    # One container's end is its own: by a signal from another, by its own init's exit.
    first.sh(f"kill -TERM {pid}")
    assert second.wait().exit_code == 143
    script = "sleep 5151 & until [ -e /tmp/over ]; do sleep 0.1; done"
    child = start(pod, "leaves-a-child", "/bin/sh", "-c", script, pid=v1_pb2.POD)
    until("its child runs", lambda: pids(first, "sleep 5151 "))
    child.sh("touch /tmp/over")
    assert child.wait().exit_code == 0
    until("its child is killed", lambda: not pids(first, "sleep 5151 "))
    assert first.status().state == v1_pb2.CONTAINER_RUNNING
    assert alone.status().state == v1_pb2.CONTAINER_RUNNING


def test_an_ephemeral_container_in_a_running_pod(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    app = pod.start(
        WEBAPP,
        ("/usr/bin/python3", "-c", "import time; time.sleep(7777)"),
        name="app",
        linux=linux(),
    )
    # As kubectl debug --target has it.
    debug = start(
        pod,
        "debugger",
        pid=v1_pb2.TARGET,
        target=app.id,
        capabilities={"add_capabilities": ["SYS_PTRACE"]},
    )
    assert space(debug, "pid") == space(app, "pid")
    assert "7777" in debug.sh("tr '\\0' ' ' < /proc/1/cmdline")
    assert "webapp" not in debug.sh("ls /"), "the root is the debugger's own image"
    assert debug.sh("ls /proc/1/root/usr/bin/python3")
    assert "sleep" in app.sh("cat /proc/[0-9]*/comm 2>/dev/null || true")
    plain = start(pod, "by-prefix", pid=v1_pb2.TARGET, target=app.id[:20])
    assert space(plain, "pid") == space(app, "pid")
    # The PID namespace ends with its init, and with it who joined it.
    daemon.client.stop_container(app.id, 0)
    assert debug.wait().exit_code == 137
    assert plain.wait().exit_code == 137

    other = Pod.run(daemon)
    stranger = start(other, "stranger")
    for target, says, code in (
        ("", "target_id", "INVALID_ARGUMENT"),
        ("f" * 64, "does not exist", "NOT_FOUND"),
        (stranger.id, "another pod", "INVALID_ARGUMENT"),
        (app.id, "exited", "FAILED_PRECONDITION"),
    ):
        with pytest.raises(ThawError, match=says) as caught:
            start(pod, "late", pid=v1_pb2.TARGET, target=target)
        assert caught.value.code == code
    with pytest.raises(ThawError, match="TARGET"):
        start(pod, "late", target=stranger.id)


def test_ipc_namespaces_and_shared_memory(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    first, second = start(pod, "first"), start(pod, "second", run_as_user={"value": 1000})
    own = start(pod, "own", ipc=v1_pb2.CONTAINER)
    assert space(first, "ipc") == space(second, "ipc") != space(own, "ipc")
    first.sh("echo shared > /dev/shm/file; chmod 666 /dev/shm/file")
    assert second.sh("cat /dev/shm/file; echo more >> /dev/shm/file") == "shared"
    assert first.sh("cat /dev/shm/file") == "shared\nmore"
    assert own.sh("ls /dev/shm") == ""
    for each in (first, own):
        assert each.sh("df -k /dev/shm | tail -1").split()[1] == "65536"
        options = each.sh("grep ' /dev/shm ' /proc/mounts")
        assert all(word in options for word in ("rw,", "nosuid", "nodev", "noexec"))
    first.sh("touch /dev/mqueue/q")
    assert second.sh("ls /dev/mqueue") == "q"
    assert own.sh("ls /dev/mqueue") == ""


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"network": v1_pb2.NODE}, "hostNetwork: false"),
        ({"pid": v1_pb2.NODE}, "shareProcessNamespace"),
        ({"ipc": v1_pb2.NODE}, "hostIPC: false"),
        ({"network": v1_pb2.CONTAINER}, "one network namespace"),
        ({"ipc": v1_pb2.TARGET}, "pid namespace alone"),
        ({"pid": 9}, "9 is no NamespaceMode"),
        ({"userns_options": {"mode": v1_pb2.POD}}, "0 user mappings"),
    ],
)
def test_namespaces_that_are_refused(daemon: Daemon, fields: dict[str, Any], says: str) -> None:
    context = v1_pb2.LinuxSandboxSecurityContext(namespace_options=Options(**fields))
    with pytest.raises(ThawError) as caught:
        Pod.run(daemon, linux=v1_pb2.LinuxPodSandboxConfig(security_context=context))
    assert caught.value.code in ("INVALID_ARGUMENT", "UNIMPLEMENTED")
    assert says in str(caught.value)
