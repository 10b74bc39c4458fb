"""The kubelet, as built by tools/clients.sh: alone on a daemon, with static pods, no API server."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Self

import httpx

from e2e.harness import leaks
from e2e.harness.authority import Authority
from e2e.harness.daemon import PROJECT, Daemon
from e2e.harness.registry import free_port
from e2e.harness.waiting import until
from hostlib import linux
from hostlib.process import ENVIRONMENT

PROGRAM: Final = PROJECT / ".build" / "bin" / "kubelet"
NODE: Final = "node"
NAMESPACE: Final = "default"

LIMIT: Final = 120.0
"""Seconds in which what a test waits for happens, however busy the machine."""
BACK_OFF: Final = 2
"""The longest that a container waits for its restart, in seconds."""
LOG_BYTES: Final = 65536
LOG_FILES: Final = 30
"""A log that is longer than the first is rotated; so many files of a container are kept."""

Json = dict[str, Any]


class Kubelet:
    """A kubelet in a jail (`e2e.harness.jail`), which leaves all of the host but its folder alone,
    and in the network of who starts it (`e2e.harness.network`), as its daemon is.

    The folder is the daemon's, and its control group carries the instance's id: what is left is
    found by the leak scan of the daemon.
    """

    def __init__(self, daemon: Daemon, address: str) -> None:
        """`address` is the node's, of an interface that is not loopback."""
        self.daemon = daemon
        self.address = address
        self.folder = daemon.folder / "kubelet"
        self.root = self.folder / "root"
        self.logs = self.folder / "logs"
        self.manifests = self.folder / "manifests"
        self.log = self.folder / "kubelet.log"
        self.group = f"kubelet-{daemon.instance}"
        self.port = free_port()
        self.process: subprocess.Popen[bytes] | None = None
        for place in (self.root, self.logs, self.manifests, self.folder / "tmp"):
            place.mkdir(parents=True)
        (self.folder / "shared").mkdir()
        self._authority = Authority(self.folder / "certificates")
        self._certificate, self._key = self._authority.issue("kubelet")
        self._http: httpx.Client | None = None
        self._bound = False

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def trust(self) -> Path:
        """The authority of its certificate."""
        return self._authority.certificate

    def configuration(self, gates: Mapping[str, bool]) -> Json:
        """Its KubeletConfiguration; docs/operations.md says which of these a node needs."""
        resolv = self.folder / "resolv.conf"
        resolv.write_text("nameserver 192.0.2.53\n")
        return {
            "kind": "KubeletConfiguration",
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            # The runtime.
            "containerRuntimeEndpoint": self.daemon.address,
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{self.group}",
            "failCgroupV1": False,
            "featureGates": {"PodAndContainerStatsFromCRI": True, **gates},
            # Whom it serves.
            "staticPodPath": str(self.manifests),
            "address": "127.0.0.1",
            "port": self.port,
            "tlsCertFile": str(self._certificate),
            "tlsPrivateKeyFile": str(self._key),
            "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            "healthzPort": 0,
            # The host is not its own.
            "podLogsDir": str(self.logs),
            "volumePluginDir": str(self.folder / "plugins"),
            "resolvConf": str(resolv),
            "makeIPTablesUtilChains": False,
            "protectKernelDefaults": True,
            "oomScoreAdj": 0,
            "failSwapOn": False,
            "enforceNodeAllocatable": ["none"],
            "evictionHard": {"memory.available": "1Mi", "nodefs.available": "1Mi"},
            "imageGCHighThresholdPercent": 100,
            "registerNode": False,
            # Tests do not wait for minutes.
            "fileCheckFrequency": "1s",
            "syncFrequency": "5s",
            "volumeStatsAggPeriod": "5s",
            "crashLoopBackOff": {"maxContainerRestartPeriod": f"{BACK_OFF}s"},
            "containerLogMaxSize": str(LOG_BYTES),
            "containerLogMaxFiles": LOG_FILES,
            "containerLogMonitorInterval": "3s",
        }

    def start(self, **gates: bool) -> Self:
        """Start, or start again, with feature gates, and wait until it is well."""
        subprocess.run([str(PROJECT / "tools" / "clients.sh")], check=True)
        if not self._bound:
            self._bound = True
            linux.mount(str(self.folder), str(self.folder), flags=linux.MS_BIND)
            linux.mount("none", str(self.folder), flags=linux.MS_SHARED)
        for hierarchy in _hierarchies():
            (hierarchy / self.group).mkdir(exist_ok=True)
        trusted = ssl.create_default_context(cafile=str(self.trust))
        self._http = httpx.Client(base_url=self.url, verify=trusted, trust_env=False, timeout=60)
        config = self.folder / "config.json"
        config.write_text(json.dumps(self.configuration(gates), indent=2))
        argv = [
            *(sys.executable, "-m", "e2e.harness.jail", str(self.folder), str(PROGRAM)),
            *("--config", str(config), "--root-dir", str(self.root)),
            *("--cert-dir", str(self.folder / "certificates")),
            *("--hostname-override", NODE, "--node-ip", self.address, "--v", "2"),
        ]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                argv,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                cwd=PROJECT,
                env={
                    **ENVIRONMENT,
                    "HOME": str(self.folder),
                    "TMPDIR": str(self.folder / "tmp"),
                },
            )
        until("the kubelet is well", self._well, LIMIT, pause=0.1)
        return self

    def _well(self) -> bool:
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"the kubelet ended: {self.log.read_text()[-3000:]}")
        with contextlib.suppress(httpx.TransportError):
            return self.get("/healthz").status_code == 200
        return False

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the process by a signal; pods stay."""
        if self._http is not None:
            self._http.close()
            self._http = None
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(number)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def get(self, path: str, **query: str) -> httpx.Response:
        """The answer to a GET."""
        assert self._http is not None
        return self._http.get(path, params=query)

    def text(self, path: str, **query: str) -> str:
        """The body of a GET that succeeds."""
        answer = self.get(path, **query)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer.text

    def json(self, path: str, **query: str) -> Json:
        found: Json = json.loads(self.text(path, **query))
        return found

    def shared(self, name: str) -> Path:
        """A folder for a pod's hostPath volume."""
        place = self.folder / "shared" / name
        place.mkdir(exist_ok=True)
        # Containers of any user write there.
        place.chmod(0o777)
        return place

    def run(self, *pods: Json) -> None:
        """Have static pods run."""
        for pod in pods:
            name = pod["metadata"]["name"]
            draft = self.manifests / f".{name}"
            draft.write_text(json.dumps(pod))
            draft.rename(self.manifests / f"{name}.json")

    def remove(self, *names: str, watch: Callable[[], object] | None = None) -> None:
        """Have static pods end, and wait until the kubelet has nothing of theirs. `watch` is called
        again and again meanwhile: it removes what has ended."""
        uids = {self.pod(name)["metadata"]["uid"] for name in names}
        for name in names:
            (self.manifests / f"{name}.json").unlink()

        def gone() -> bool:
            if watch is not None:
                watch()
            return not self.kept(uids)

        until(f"{names} are gone", gone, LIMIT, pause=0.1)

    def remove_all(self) -> None:
        """Have all pods end."""
        for manifest in self.manifests.glob("*.json"):
            manifest.unlink()
        until("all pods are gone", lambda: not self.pods() and not self.kept(), LIMIT, pause=0.1)

    def kept(self, uids: set[str] | None = None) -> list[str]:
        """What the kubelet has of pods: folders, mounts and control groups."""
        known = {each["metadata"]["uid"] for each in self.pods()}
        folders = {path.name for path in (self.root / "pods").glob("*")}
        names = [each.name for each in self._groups()]
        groups = {name.removeprefix("pod") for name in names if name.startswith("pod")}
        found = known | folders | groups
        return sorted(found if uids is None else found & uids)

    def _groups(self) -> list[Path]:
        """Its control groups in all hierarchies, children first."""
        walks = (os.walk(each / self.group, topdown=False) for each in _hierarchies())
        return [Path(folder) for walk in walks for folder, _, _ in walk]

    def pods(self) -> list[Json]:
        """All pods, with their status."""
        found: list[Json] = self.json("/pods")["items"] or []
        return found

    def pod(self, name: str) -> Json:
        """The pod of that manifest; {} where the kubelet has not seen it yet."""
        full = f"{name}-{NODE}"
        return next((each for each in self.pods() if each["metadata"]["name"] == full), {})

    def status(self, name: str) -> Json:
        found: Json = self.pod(name).get("status", {})
        return found

    def container(self, name: str, container: str) -> Json:
        """The status of a container of any kind; {} where there is none yet."""
        status = self.status(name)
        every = [
            *status.get("initContainerStatuses", ()),
            *status.get("containerStatuses", ()),
        ]
        return next((each for each in every if each["name"] == container), {})

    def last_end(self, name: str, container: str) -> Json:
        """How the last life of a container ended; {} where it has had none."""
        return terminated(self.container(name, container))

    def ready(self, *names: str) -> None:
        """Wait until pods are ready."""

        def check() -> bool:
            return all(condition(self.status(name), "Ready") for name in names)

        until(f"{names} are ready", check, LIMIT, pause=0.1)

    def sh(self, name: str, container: str, script: str) -> str:
        """What a shell script says inside of a container; AssertionError when it fails."""
        found = self.container(name, container)["containerID"].removeprefix("thaw://")
        answer = self.daemon.client.exec_sync(found, ["/bin/sh", "-c", script], 60)
        assert answer.exit_code == 0, (script, answer)
        return answer.stdout.decode().strip()

    def post(self, path: str, **query: str) -> str:
        """The body of the answer to a POST that succeeds."""
        assert self._http is not None
        answer = self._http.post(path, params=query)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer.text

    def path(self, verb: str, name: str, *container: str) -> str:
        """The path of its API for a pod, or a container."""
        return "/".join(["", verb, NAMESPACE, f"{name}-{NODE}", *container])

    def logs_of(self, name: str, container: str) -> Path:
        """The folder of a container's logs."""
        uid = self.pod(name)["metadata"]["uid"]
        return self.logs / f"{NAMESPACE}_{name}-{NODE}_{uid}" / container

    def destroy(self) -> list[str]:
        """End all pods and the kubelet. What is left of them then: it should be nothing."""
        left = []
        if self.alive():
            try:
                self.remove_all()
            except AssertionError as error:
                left = [str(error), *self.kept()]
        self.stop()
        inside = leaks.mounts(f"{self.folder}/")
        left += inside
        for line in reversed(inside):
            linux.umount(line.split()[5])
        if self._bound:
            linux.umount(str(self.folder))
        for group in self._groups():
            with contextlib.suppress(OSError):
                group.rmdir()
        return left


def condition(status: Json, kind: str) -> bool:
    """Whether a condition of a pod's status is true."""
    return any(
        each["type"] == kind and each["status"] == "True" for each in status.get("conditions", ())
    )


def terminated(status: Json) -> Json:
    """How the last life of a container's status ended; {} where it has had none."""
    found: Json = status.get("lastState", {}).get("terminated", {})
    return found


def _hierarchies() -> list[Path]:
    """Where control groups are mounted: on a hybrid host the kubelet is in both versions' trees."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [Path(line.split()[4]) for line in lines if " - cgroup" in line]
