"""What a real kubelet does with a node's runtime: volumes, logs, streams, figures, restarts."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from urllib.parse import urlencode

import httpx
import pytest

from demo.images import PAGE
from e2e.harness import leaks
from e2e.harness.kubelet import LIMIT, LOG_BYTES, NAMESPACE, NODE, Json, Kubelet
from e2e.harness.refs import NGINX, WEBAPP
from e2e.harness.registry import free_port
from e2e.harness.static_pods import FOREVER, container, host_path, limits, pod, probe, run
from e2e.harness.streams import go
from e2e.harness.waiting import until

MIB = 2**20


def test_volumes(node: Kubelet) -> None:
    here = node.shared("volumes")
    (here / "folder").mkdir()
    (here / "folder" / "there").write_text("from the host\n")
    (here / "file").write_text("one file\n")
    (here / "tree" / "part").mkdir(parents=True)
    (here / "tree" / "part" / "name").write_text("a part\n")
    user = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 2000}
    mounts = {"disk": "/disk", "memory": "/memory", "folder": "/folder", "file": "/etc/one"}
    script = "until [ -e /disk/stop ]; do sleep 0.1; done; rm /disk/stop; exit 1"
    first = container(
        "first", script, mounts={**mounts, "made": "/made", "pod": "/pod", "image": "/image"}
    )
    first["volumeMounts"] += [
        {"name": "tree", "mountPath": "/part", "subPath": "part", "readOnly": True},
        {"name": "tree", "mountPath": "/mounted", "mountPropagation": "HostToContainer"},
        {"name": "disk", "mountPath": "/mine", "subPathExpr": "of-$(POD)"},
    ]
    first["env"] = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    labels = {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}}
    node.run(
        pod(
            "volumes",
            first,
            container("second", mounts=mounts),
            labels={"told": "yes"},
            securityContext=user,
            volumes=[
                {"name": "disk", "emptyDir": {}},
                {"name": "memory", "emptyDir": {"medium": "Memory", "sizeLimit": "8Mi"}},
                {"name": "pod", "downwardAPI": {"items": [labels]}},
                {"name": "image", "image": {"reference": NGINX}},
                host_path("folder", here / "folder"),
                host_path("file", here / "file", "File"),
                host_path("made", here / "made", "DirectoryOrCreate"),
                host_path("tree", here / "tree"),
            ],
        )
    )
    node.ready("volumes")

    def first_says(script: str) -> str:
        return node.sh("volumes", "first", script)

    assert first_says("cat /folder/there /etc/one /part/name /pod/labels").splitlines() == [
        "from the host", "one file", "a part", 'suite="e2e"', 'told="yes"',
    ]  # fmt: skip
    assert first_says("cat /image/var/www/html/index.html") == PAGE.strip()
    # emptyDirs are the group's, and all containers'.
    first_says("echo d > /disk/x; echo m > /memory/x; echo s > /mine/x")
    assert first_says("stat -c '%g %A' /disk /memory") == "2000 drwxrwsrwx\n2000 drwxrwsrwt"
    seen = "cat /disk/x /memory/x /disk/of-volumes-node/x; id -G"
    assert node.sh("volumes", "second", seen) == "d\nm\ns\n1000 50 2000"
    assert first_says("grep -c ' /memory tmpfs ' /proc/mounts; df -m /memory | tail -n 1").split()[
        :3
    ] == ["1", "tmpfs", "8"]
    assert first_says("(echo > /part/x) 2>&1 || true").lower().count("read-only") == 1
    assert (here / "made").is_dir()
    uid = node.pod("volumes")["metadata"]["uid"]
    inside = str(node.root / "pods" / uid)
    assert leaks.mounts(inside)
    # Made anew, a container finds its volumes as they were.
    first_says("touch /disk/stop")
    until(
        "it is back",
        lambda: (
            node.container("volumes", "second")["restartCount"] == 0
            and node.container("volumes", "first")["restartCount"] == 1
        ),
        LIMIT,
        pause=0.1,
    )
    node.ready("volumes")
    assert first_says("cat /disk/x /memory/x /part/name") == "d\nm\na part"
    node.remove("volumes")
    assert not leaks.mounts(inside)
    assert (here / "folder" / "there").read_text() == "from the host\n"


def test_a_pod_that_may_little(node: Kubelet) -> None:
    """As the standard "restricted" wants it, with a port below 1024 all the same; what the kubelet
    tells of it, and whom it does not start for what an image says of its user."""
    profile = node.root / "seccomp" / "mine.json"
    profile.parent.mkdir(exist_ok=True)
    denied = {"names": ["chmod", "fchmodat", "fchmodat2"], "action": "SCMP_ACT_ERRNO"}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [denied]}))
    least = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    user = {**least, "runAsUser": 1000}
    port = free_port()
    server = container(
        "server",
        image=WEBAPP,
        command=["/usr/bin/python3", "-m", "http.server", "80", "--directory", "/shown"],
        securityContext={**user, "readOnlyRootFilesystem": True},
        ports=[{"containerPort": 80, "hostPort": port}],
        readinessProbe=probe({"httpGet": {"port": 80}}),
    )
    server["volumeMounts"] = [{"name": "shown", "mountPath": "/shown", "readOnly": True}]
    own = {"type": "Localhost", "localhostProfile": "mine.json"}
    beside = container("beside", image=WEBAPP, securityContext={**user, "seccompProfile": own})
    here = node.shared("shown")
    (here / "page").write_text("little\n")
    security = {
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
        "supplementalGroups": [1234],
        "supplementalGroupsPolicy": "Strict",
        "sysctls": [{"name": "net.ipv4.ip_unprivileged_port_start", "value": "80"}],
    }
    node.run(
        pod(
            "little",
            server,
            beside,
            shareProcessNamespace=True,
            dnsPolicy="None",
            dnsConfig={"nameservers": ["192.0.2.54"], "searches": ["a.test"]},
            hostAliases=[{"ip": "192.0.2.9", "hostnames": ["elsewhere.test"]}],
            securityContext=security,
            volumes=[host_path("shown", here)],
        ),
        pod(
            "refused",
            container("root", securityContext=least),
            container("named", image=WEBAPP, securityContext=least),
            securityContext={"runAsNonRoot": True},
        ),
    )
    node.ready("little")

    def says(script: str, who: str = "server") -> str:
        return node.sh("little", who, script)

    page = httpx.get(f"http://{node.address}:{port}/page", trust_env=False, timeout=60)
    assert page.text == "little\n"
    # Without the groups that the image gives its user.
    assert says("id -u; id -G") == "1000\n1000 1234"
    fields = "grep -E '^(CapBnd|CapPrm|NoNewPrivs|Seccomp):' /proc/self/status | cut -f 2"
    for who in ("server", "beside"):
        assert says(fields, who).split() == ["0" * 16, "0" * 16, "1", "2"]
    assert says("(touch /x; touch /shown/x) 2>&1 || true").lower().count("read-only") == 2
    assert (
        "not permitted"
        in says("(chmod 700 /tmp/. ; chmod 600 /etc/issue) 2>&1 || true", "beside").lower()
    )
    assert says("cat /proc/1/comm; cat /proc/[0-9]*/comm | grep -c python3", "beside") == "pause\n1"
    assert says("grep elsewhere.test /etc/hosts | cut -f 1") == "192.0.2.9"
    assert says("cat /etc/resolv.conf") == "search a.test\nnameserver 192.0.2.54"
    told = node.container("little", "server")
    assert told["user"]["linux"] == {"uid": 1000, "gid": 1000, "supplementalGroups": [1000, 1234]}

    for name, why in (("root", "image will run as root"), ("named", "non-numeric user (app)")):

        def waits(name: str = name) -> Json:
            found: Json = node.container("refused", name).get("state", {}).get("waiting", {})
            return found if found.get("reason") == "CreateContainerConfigError" else {}

        assert why in until(f"{name} is refused", waits, LIMIT, pause=0.1)["message"]


def logged(folder: Path) -> list[str]:
    """All lines of a container's logs, rotated and packed ones too, in their order."""
    found: list[str] = []
    # The one that is written to has no time in its name, and is the last.
    for path in sorted(folder.iterdir(), key=lambda each: (each.suffix == ".log", each.name)):
        if path.suffix == ".tmp":
            continue
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        found += [line.split(" ", 3)[3] for line in data.decode().splitlines()]
    return found


def test_logs_are_rotated_and_nothing_is_lost(node: Kubelet) -> None:
    fill = "x" * 100
    script = (
        f"i=0; while [ ! -e /stop/it ]; do i=$((i + 1)); echo $i {fill}; done; echo $i; {FOREVER}"
    )
    here = node.shared("logs")
    node.run(
        pod(
            "logs",
            container("main", script, mounts={"stop": "/stop"}, resources=limits("64Mi", "100m")),
            overhead={"memory": "320Mi"},
            volumes=[host_path("stop", here)],
        )
    )
    node.ready("logs")
    folder = node.logs_of("logs", "main")

    def names() -> list[str]:
        return sorted(path.name for path in folder.iterdir())

    until("it was packed", lambda: sum(name.endswith(".gz") for name in names()) >= 2, LIMIT)
    (here / "it").touch()

    def last() -> str:
        return node.text(node.path("containerLogs", "logs", "main"), tailLines="1").strip()

    until("it stopped", lambda: last().isdigit(), LIMIT, pause=0.2)
    count = int(last())
    assert node.container("logs", "main")["restartCount"] == 0
    # None may be rotated while they are read.
    until(
        "all are as long as they stay", lambda: (folder / "0.log").stat().st_size < LOG_BYTES, LIMIT
    )
    assert not [name for name in names() if name.endswith(".tmp")]
    assert logged(folder) == [*(f"{i + 1} {fill}" for i in range(count)), str(count)]


@pytest.mark.parametrize("transport", ["spdy", "websocket"])
def test_streams_through_the_kubelet(node: Kubelet, transport: str, tmp_path: Path) -> None:
    name = f"streams-{transport}"
    node.run(
        pod(
            name,
            container(
                "nginx",
                image=NGINX,
                command=["nginx"],
                readinessProbe=probe({"tcpSocket": {"port": 80}}),
            ),
            container("cat", "cat; echo end", stdin=True, stdinOnce=True),
        )
    )
    node.ready(name)
    source = tmp_path / "stdin"

    def client(verb: str, path: str, query: Json, *flags: str) -> Json:
        url = f"{node.url}{path}?{urlencode(query, doseq=True)}"
        return go(verb, url, "-transport", transport, *flags, trust=node.trust)

    streams = {"input": 1, "output": 1, "error": 1}
    source.write_bytes(os.urandom(300_000))
    command = ["/bin/sh", "-c", "wc -c; echo bad >&2; exit 7"]
    path = node.path("exec", name, "nginx")
    done = client("exec", path, {**streams, "command": command}, "-stdin", str(source))
    assert (done["code"], done["error"]) == (7, "")
    assert (done["stdout"]["text"], done["stderr"]["text"]) == ("300000\n", "bad\n")

    source.write_text("typed\n")
    done = client("exec", node.path("attach", name, "cat"), streams, "-stdin", str(source))
    assert done["stdout"]["text"].startswith("typed\n")

    done = client("forward", node.path("portForward", name), {}, "-port", "80", "-http", "3")
    assert done.get("error", "") == "", done
    # Without a stream: the oldest verb.
    assert node.post(node.path("run", name, "nginx"), cmd="hostname") == f"{name}-{NODE}\n"

    def requests() -> int:
        log = node.text(node.path("containerLogs", name, "nginx"), sinceSeconds="600")
        return log.count("GET / HTTP")

    until("all requests are in the log", lambda: requests() == 3)


def metrics(text: str) -> dict[str, list[tuple[dict[str, str], float]]]:
    """Samples of a Prometheus text: labels and values by name."""
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"(\w+)(?:\{(.*)\})? (\S+)(?: \d+)?", line)
        if match:
            labels = dict(re.findall(r'(\w+)="((?:[^"\\]|\\.)*)"', match[2] or ""))
            found.setdefault(match[1], []).append((labels, float(match[3])))
    return found


HOLD = """
import http.server, os
held = b"x" * (40 << 20)
os.chdir("/tmp")
open("data", "wb").write(os.urandom(6 << 20))
os.sync()
print("y" * 5000, flush=True)
http.server.test(http.server.SimpleHTTPRequestHandler, port=8000)
"""


def test_figures_are_true(node: Kubelet) -> None:
    node.run(
        pod(
            "figures",
            container("busy", "while :; do :; done", resources={"limits": {"cpu": "200m"}}),
            container(
                "holds",
                image=WEBAPP,
                command=["/usr/bin/python3", "-c", HOLD],
                readinessProbe=probe({"tcpSocket": {"port": 8000}}),
            ),
        )
    )
    node.ready("figures")
    ip = node.status("figures")["podIP"]
    answer = httpx.get(f"http://{ip}:8000/data", trust_env=False, timeout=60)
    assert len(answer.content) == 6 * MIB

    def truth(name: str, file: str) -> int:
        """A number that the guest's kernel keeps, the last on a file's first line."""
        return int(
            node.sh("figures", name, f"cat /sys/fs/cgroup/{file}").split("\n")[0].split()[-1]
        )

    def between(what: str, read: Callable[[], float]) -> None:
        """A reading of busy's processor time, in seconds, lies between two of the guest's own."""
        low = truth("busy", "cpu.stat") / 1e6
        found = until(
            f"{what} is new", lambda: (each := read()) >= int(low) and each, LIMIT, pause=0.5
        )
        assert found <= truth("busy", "cpu.stat") / 1e6, what

    def summary() -> Json:
        pods = node.json("/stats/summary")["pods"]
        return next(each for each in pods if each["podRef"]["name"] == f"figures-{NODE}")

    def member(found: Json, name: str) -> Json:
        return next(each for each in found["containers"] if each["name"] == name)

    between("the summary", lambda: member(summary(), "busy")["cpu"]["usageCoreNanoSeconds"] / 1e9)
    found = until("its rates are known", lambda: _rated(summary()), LIMIT, pause=0.5)
    busy, holds = member(found, "busy"), member(found, "holds")
    # A fifth of a processor is what it may have, and what it takes.
    assert 0.1e9 < busy["cpu"]["usageNanoCores"] < 0.3e9
    assert 40 * MIB < holds["memory"]["workingSetBytes"] < 80 * MIB
    assert holds["memory"]["workingSetBytes"] <= truth("holds", "memory.current") + 4 * MIB
    assert busy["memory"]["workingSetBytes"] < 10 * MIB
    assert 6 * MIB <= holds["rootfs"]["usedBytes"] < 8 * MIB
    assert 5000 < holds["logs"]["usedBytes"] < 64 << 10
    # The pod's own is what its VM takes of the host.
    assert found["memory"]["workingSetBytes"] > 40 * MIB
    assert found["cpu"]["usageCoreNanoSeconds"] > 0
    assert found["process_stats"]["process_count"] >= 2
    interface = found["network"]["interfaces"][0]
    assert interface["name"] == "eth0"
    assert 6 * MIB < interface["txBytes"] < 8 * MIB
    assert 0 < interface["rxBytes"] < 2 * MIB
    whole = node.json("/stats/summary")["node"]
    assert whole["runtime"]["imageFs"]["usedBytes"] > 10 * MIB
    assert whole["memory"]["workingSetBytes"] > found["memory"]["workingSetBytes"]

    def sample(path: str, metric: str, **labels: str) -> float:
        wanted = {"pod": f"figures-{NODE}", "namespace": NAMESPACE, **labels}
        every = metrics(node.text(path)).get(metric, [])
        fitting = [value for has, value in every if wanted.items() <= has.items()]
        assert len(fitting) == 1, (path, metric, labels, every)
        return fitting[0]

    for path in ("/metrics/cadvisor", "/metrics/resource"):
        usage = "container_cpu_usage_seconds_total"
        between(path, partial(sample, path, usage, container="busy"))
        held = sample(path, "container_memory_working_set_bytes", container="holds")
        assert 40 * MIB < held < 80 * MIB
    sent = sample("/metrics/cadvisor", "container_network_transmit_bytes_total", interface="eth0")
    assert 6 * MIB < sent < 8 * MIB
    assert sample("/metrics/cadvisor", "container_spec_cpu_quota", container="busy") == 20_000
    assert sample("/metrics/resource", "pod_memory_working_set_bytes") > 40 * MIB
    resource = metrics(node.text("/metrics/resource"))
    assert resource["resource_scrape_error"] == [({}, 0.0)]
    began = sample("/metrics/resource", "container_start_time_seconds", container="busy")
    assert began <= time.time()


def _rated(found: Json) -> Json:
    """The summary of a pod, once all rates are in it; else {}."""
    return found if all(each["cpu"].get("usageNanoCores") for each in found["containers"]) else {}


def test_kubelet_and_daemon_are_restarted_in_turn(node: Kubelet) -> None:
    here = node.shared("lasting")
    count = f"i=0; while [ ! -e /here/stop ]; do i=$((i + 1)); echo $i; sleep 0.05; done; {FOREVER}"
    node.run(
        pod(
            "lasting",
            container(
                "counts",
                count,
                mounts={"here": "/here"},
                livenessProbe=probe(run("true")),
                readinessProbe=probe(run("true")),
            ),
            container(
                "ends",
                "until [ -e /here/end ]; do sleep 0.1; done; rm /here/end; exit 4",
                mounts={"here": "/here"},
            ),
            volumes=[host_path("here", here)],
        ),
        pod("unwanted", container("main")),
    )
    node.ready("lasting", "unwanted")

    def lives() -> dict[str, tuple[str, int]]:
        every = node.status("lasting")["containerStatuses"]
        return {each["name"]: (each["containerID"], each["restartCount"]) for each in every}

    born = lives()
    unwanted = node.pod("unwanted")["metadata"]["uid"]
    assert all(count == 0 for _, count in born.values())

    def goes_on() -> None:
        node.ready("lasting")
        assert lives() == born
        assert node.sh("lasting", "counts", "echo here") == "here"

    daemon = node.daemon
    node.stop(signal.SIGTERM)
    node.start()
    goes_on()
    daemon.terminate()
    daemon.start()
    goes_on()
    node.stop(signal.SIGKILL)
    # What there is of figures without the runtime's own for pods.
    node.start(PodAndContainerStatsFromCRI=False)
    goes_on()
    found = node.json("/stats/summary")["pods"]
    assert {each["podRef"]["name"] for each in found} >= {f"lasting-{NODE}", f"unwanted-{NODE}"}
    daemon.kill()
    daemon.start()
    goes_on()
    # A container that ends while nobody looks, and a pod that is not wanted any more.
    node.stop(signal.SIGKILL)
    daemon.kill()
    (here / "end").touch()
    (node.manifests / "unwanted.json").unlink()
    until("it ended", lambda: not (here / "end").exists(), LIMIT)
    daemon.start()
    node.start()
    until(
        "it lives again",
        lambda: node.container("lasting", "ends").get("restartCount") == 1,
        LIMIT,
        pause=0.1,
    )
    last = node.container("lasting", "ends")["lastState"]["terminated"]
    assert (last["exitCode"], last["containerID"]) == (4, born["ends"][0])
    assert lives()["counts"] == born["counts"]
    until("the other is gone", lambda: not node.kept({unwanted}), LIMIT, pause=0.1)
    (here / "stop").touch()
    node.ready("lasting")
    lines = node.text(node.path("containerLogs", "lasting", "counts")).splitlines()
    assert lines == [str(i + 1) for i in range(len(lines))]
    assert len(lines) > 50
