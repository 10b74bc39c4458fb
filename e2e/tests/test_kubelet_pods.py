"""Static pods of a real kubelet: their order, probes, hooks, restarts and ends."""

from __future__ import annotations

import contextlib
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

from cri.api import v1_pb2
from e2e.harness import probed
from e2e.harness.kubelet import LIMIT, NODE, Json, Kubelet, condition, terminated
from e2e.harness.refs import NGINX, WEBAPP
from e2e.harness.static_pods import FOREVER, container, host_path, pod, probe, run
from e2e.harness.waiting import until
from hostlib.errors import NotFound

SERVER = ["/usr/bin/python3", "-c", probed.SOURCE]


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def in_phase(node: Kubelet, pod: str, phase: str) -> bool:
    """Whether the pod is in that phase now."""
    return bool(node.status(pod).get("phase") == phase)


def test_containers_start_and_end_in_order(node: Kubelet) -> None:
    here = node.shared("order")

    def says(name: str) -> str:
        """A script that notes that it began and, once it is told to, that it ends."""
        trap = f"trap 'echo {name} ends >> /order/log; exit 0' TERM"
        return f"echo {name} >> /order/log; {trap}; {FOREVER}"

    def member(name: str, script: str, **fields: Any) -> Json:
        return container(name, script, mounts={"order": "/order"}, **fields)

    once = "[ -e /order/failed ] || { touch /order/failed; exit 3; }; echo init >> /order/log"
    beside = (
        "trap 'echo sidecar ends >> /order/log; exit 0' TERM; sleep 1; echo sidecar >> /order/log;"
        "touch /order/up; until [ -e /order/stop ]; do sleep 0.1; done; rm /order/stop; exit 9"
    )
    node.run(
        pod(
            "order",
            member("app", says("app")),
            member("second", says("second"), env=[_field("POD_IP", "status.podIP")]),
            initContainers=[
                member("init", once),
                member(
                    "sidecar",
                    beside,
                    restartPolicy="Always",
                    startupProbe=probe(run("[ -e /order/up ]"), failureThreshold=100),
                ),
                member("last", "echo last >> /order/log"),
            ],
            volumes=[host_path("order", here)],
            # All of them hear what they are asked, and none is to be killed before it has said so.
            terminationGracePeriodSeconds=60,
        )
    )
    node.ready("order")
    log = here / "log"
    assert lines(log)[:3] == ["init", "sidecar", "last"]
    until("both began", lambda: sorted(lines(log)[3:]) == ["app", "second"], LIMIT)
    first = node.container("order", "init")
    assert first["restartCount"] == 1
    assert terminated(first)["exitCode"] == 3
    assert first["state"]["terminated"]["reason"] == "Completed"
    status = node.status("order")
    assert status["phase"] == "Running"
    assert (
        node.sh("order", "second", "echo $POD_IP; hostname") == f"{status['podIP']}\norder-{NODE}"
    )

    # One that is beside the others lives anew without them.
    (here / "stop").touch()
    until(
        "the sidecar is back",
        lambda: node.container("order", "sidecar")["restartCount"] == 1,
        LIMIT,
        pause=0.1,
    )
    assert node.last_end("order", "sidecar")["exitCode"] == 9
    until("it is up", lambda: lines(log)[5:] == ["sidecar"], LIMIT)
    assert node.container("order", "app")["restartCount"] == 0

    node.remove("order")
    assert sorted(lines(log)[6:8]) == ["app ends", "second ends"]
    assert lines(log)[8:] == ["sidecar ends"]


def _field(name: str, path: str) -> Json:
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def test_probes(node: Kubelet) -> None:
    here = node.shared("probes")
    (here / "live").touch()
    (here / "tcp").touch()

    def member(name: str, **fields: Any) -> Json:
        return container(name, mounts={"probes": "/probes"}, **fields)

    patient = {"failureThreshold": 1000}
    node.run(
        pod(
            "probes",
            member(
                "server",
                image=WEBAPP,
                command=SERVER,
                startupProbe=probe({"grpc": {"port": probed.GRPC}}, **patient),
                readinessProbe=probe({"httpGet": {"port": probed.HTTP, "path": "/ready"}}),
                livenessProbe=probe({"tcpSocket": {"port": probed.TCP}}, failureThreshold=3),
            ),
            member(
                "command",
                startupProbe=probe(run("[ -e /probes/started ]"), **patient),
                readinessProbe=probe(run("[ -e /probes/ready ]")),
                livenessProbe=probe(run("[ -e /probes/live ]")),
            ),
            member(
                "hangs",
                livenessProbe=probe(run("[ ! -e /probes/hang ] || sleep 1000"), timeoutSeconds=3),
            ),
            volumes=[host_path("probes", here)],
        )
    )

    def state(name: str) -> tuple[bool, bool, int]:
        found = node.container("probes", name)
        return found.get("started", False), found.get("ready", False), found.get("restartCount", 0)

    def reach(name: str, *wanted: object) -> None:
        until(f"{name} is {wanted}", lambda: state(name) == wanted, LIMIT, pause=0.1)

    reach("hangs", True, True, 0)
    # It serves HTTP for long, and says by gRPC that it does not.
    until("it serves", lambda: "1F90" in node.sh("probes", "hangs", "cat /proc/net/tcp"), LIMIT)
    assert state("server") == (False, False, 0)
    assert state("command") == (False, False, 0)
    (here / "serving").touch()
    (here / "started").touch()
    reach("server", True, False, 0)
    reach("command", True, False, 0)
    (here / "ready").touch()
    reach("server", True, True, 0)
    node.ready("probes")
    (here / "ready").unlink()
    reach("server", True, False, 0)
    reach("command", True, False, 0)
    assert not condition(node.status("probes"), "Ready")
    (here / "ready").touch()
    node.ready("probes")

    # What no longer lives is started anew: nobody listens, a command fails, another takes for ever.
    (here / "deaf").touch()
    (here / "live").unlink()
    (here / "hang").touch()
    for name in ("server", "command", "hangs"):
        until(f"{name} ended", partial(node.last_end, "probes", name), LIMIT)
    (here / "deaf").unlink()
    (here / "hang").unlink()
    (here / "live").touch()
    node.ready("probes")
    for name in ("server", "command", "hangs"):
        last = node.last_end("probes", name)
        assert (last["exitCode"], last["reason"]) in {(137, "Error"), (143, "Error")}, last


def test_hooks_and_the_time_to_end(node: Kubelet) -> None:
    here = node.shared("ends")

    def member(name: str, script: str, **fields: Any) -> Json:
        return container(name, script, mounts={"ends": "/ends", "probes": "/probes"}, **fields)

    def note(name: str) -> Json:
        return {"httpGet": {"port": probed.HTTP, "path": f"/note/{name}"}}

    polite = "trap 'echo TERM >> /ends/polite; exit 3' TERM; echo main >> /ends/polite;"
    node.run(
        pod(
            "ends",
            member(
                "polite",
                polite + FOREVER,
                lifecycle={
                    "postStart": run("sleep 1; echo postStart >> /ends/polite"),
                    "preStop": run("echo preStop >> /ends/polite; sleep 1"),
                },
            ),
            member(
                "server",
                "",
                image=WEBAPP,
                command=SERVER,
                lifecycle={"preStop": note("preStop")},
            ),
            member("nginx", "", image=NGINX, command=["nginx"]),
            # Neither hears what it is asked.
            member("deaf", f"trap '' TERM; {FOREVER}"),
            member("hook", FOREVER, lifecycle={"preStop": run("echo > /ends/hook; sleep 1000")}),
            terminationGracePeriodSeconds=10,
            volumes=[host_path("ends", here), host_path("probes", node.shared("notes"))],
        )
    )
    node.ready("ends")
    until("it was begun", lambda: sorted(lines(here / "polite")) == ["main", "postStart"], LIMIT)
    until("it serves", lambda: "1F90" in node.sh("ends", "deaf", "cat /proc/net/tcp"), LIMIT)
    ids = {
        each["name"]: each["containerID"].removeprefix("thaw://")
        for each in node.status("ends")["containerStatuses"]
    }
    assert node.container("ends", "nginx")["imageID"].startswith("sha256:")
    codes: dict[str, int] = {}

    def watch() -> None:
        for name, each in ids.items():
            with contextlib.suppress(NotFound):
                status = node.daemon.client.container_status(each)
                if status.state == v1_pb2.CONTAINER_EXITED:
                    codes[name] = status.exit_code

    node.remove("ends", watch=watch)
    assert lines(here / "polite")[2:] == ["preStop", "TERM"]
    assert lines(node.shared("notes") / "notes") == ["/note/preStop"]
    assert (here / "hook").exists()
    # nginx hears what its image names, and goes when its work is done; a process 1 that handles no
    # SIGTERM, as the server is, does not hear it.
    assert codes == {"polite": 3, "server": 137, "nginx": 0, "deaf": 137, "hook": 137}


def test_restarts_and_their_back_off(node: Kubelet) -> None:
    here = node.shared("restarts")
    volumes = [host_path("here", here)]
    count = "echo x >> /here/{0}; n=$(wc -l < /here/{0}); echo life $n;"

    def member(name: str, script: str, **fields: Any) -> Json:
        return container(name, count.format(name) + script, mounts={"here": "/here"}, **fields)

    node.run(
        pod(
            "fails",
            member("fails", "exit 3", terminationMessagePolicy="FallbackToLogsOnError"),
            volumes=volumes,
        ),
        pod(
            "never",
            member("never", "echo for a reason > /dev/termination-log; exit 5"),
            restartPolicy="Never",
            volumes=volumes,
        ),
        pod("retries", member("retries", "[ $n = 3 ]"), restartPolicy="OnFailure", volumes=volumes),
        pod(
            "starts",
            container("missing", image="registry.test/demo/missing:latest"),
            container("program", command=["/no/such/program"]),
            container("hook", lifecycle={"postStart": run("echo it is not well >&2; exit 1")}),
        ),
    )

    def waiting(name: str, member: str, *reasons: str) -> Json:
        def look() -> Json:
            found: Json = node.container(name, member).get("state", {}).get("waiting", {})
            return found if found.get("reason") in reasons else {}

        return until(f"{member} waits: {reasons}", look, LIMIT, pause=0.1)

    waiting("fails", "fails", "CrashLoopBackOff")
    found = until(
        "it failed three times",
        lambda: (
            (each := node.container("fails", "fails"))["restartCount"] >= 2
            and terminated(each)
            and each
        ),
        LIMIT,
        pause=0.1,
    )
    assert (terminated(found)["exitCode"], terminated(found)["reason"]) == (3, "Error")

    def earlier() -> str:
        answer = node.get(node.path("containerLogs", "fails", "fails"), previous="true")
        # There is none for a moment while the kubelet removes one for the next.
        return answer.text if answer.status_code == 200 else ""

    logs = until("the log of an earlier life", earlier, LIMIT)
    assert logs.startswith("life ")
    assert 2 <= int(logs.split()[1]) <= len(lines(here / "fails"))
    assert terminated(found)["message"].startswith("life ")

    for name, phase, lives in (("never", "Failed", 1), ("retries", "Succeeded", 3)):
        until(f"{name}: {phase}", partial(in_phase, node, name, phase), LIMIT, pause=0.1)
        assert len(lines(here / name)) == lives
        assert node.container(name, name)["restartCount"] == lives - 1
    ended = node.container("never", "never")["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (5, "for a reason\n")

    waiting("starts", "missing", "ErrImagePull", "ImagePullBackOff")
    waiting("starts", "program", "RunContainerError", "CrashLoopBackOff")
    last = until("it ended", partial(node.last_end, "starts", "program"), LIMIT)
    assert (last["exitCode"], last["reason"]) == (128, "StartError")
    assert "/no/such/program" in last["message"]
    waiting("starts", "hook", "PostStartHookError", "CrashLoopBackOff")
    last = until("it ended", partial(node.last_end, "starts", "hook"), LIMIT)
    assert last["exitCode"] in {137, 143}


def test_what_has_ended_is_collected(node: Kubelet) -> None:
    """By the kubelet: containers beyond the last life of each, the sandbox of a VM that died with
    the last of its containers, and all that is left of a pod that is not wanted any more."""
    told = "until [ -e /tmp/end ]; do sleep 0.1; done"
    node.run(
        pod("again", container("again", "sleep 1; exit 3"), container("lasting", told)),
        pod("once", container("once", "exit 0"), restartPolicy="Never"),
    )
    client = node.daemon.client
    until("it is done", partial(in_phase, node, "once", "Succeeded"), LIMIT, pause=0.1)
    uids = {node.pod(name)["metadata"]["uid"]: name for name in ("again", "once")}

    def lives(name: str) -> list[int]:
        """The attempts of a container that have ended and are kept."""
        return sorted(
            each.metadata.attempt
            for each in client.containers()
            if each.metadata.name == name and each.state == v1_pb2.CONTAINER_EXITED
        )

    def sandboxes(name: str) -> list[tuple[int, bool]]:
        """The attempts of a pod's sandbox, and whether each is ready."""
        return sorted(
            (each.metadata.attempt, each.state == v1_pb2.SANDBOX_READY)
            for each in client.pods()
            if uids.get(each.metadata.uid) == name
        )

    until("it had four lives", lambda: (lives("again") or [0])[-1] >= 3, LIMIT, pause=0.1)
    until("the last is kept alone", lambda: len(lives("again")) == 1, LIMIT, pause=0.1)
    assert sandboxes("again") == [(0, True)]
    first = node.container("again", "lasting")["containerID"]
    [vm] = [
        node.daemon.vm_of(each.id)
        for each in client.pods()
        if uids.get(each.metadata.uid) == "again"
    ]
    os.kill(node.daemon.records()[vm]["qemu_pid"], signal.SIGKILL)
    until("the pod is made anew", lambda: (1, True) in sandboxes("again"), LIMIT, pause=0.1)

    def lives_again() -> bool:
        found = node.container("again", "lasting")
        return found["restartCount"] == 1 and "running" in found["state"]

    until("so are its containers", lives_again, LIMIT, pause=0.1)
    again = node.container("again", "lasting")
    assert again["containerID"] != first
    assert terminated(again)["exitCode"] == 255
    assert (0, False) in sandboxes("again"), "what is known of its last life is there"
    node.sh("again", "lasting", "touch /tmp/end")
    until("the dead one is gone", lambda: sandboxes("again") == [(1, True)], LIMIT, pause=0.5)

    folders = [node.logs_of(*each).parent for each in (("again", "again"), ("once", "once"))]
    assert all(each.is_dir() for each in folders)
    node.remove("again", "once")
    until(
        "nothing of the pods is left",
        lambda: (
            not {each.metadata.uid for each in client.pods()} & uids.keys()
            and not any(lives(name) for name in ("again", "once", "lasting"))
            and not any(each.exists() for each in folders)
        ),
        LIMIT,
        pause=0.5,
    )
