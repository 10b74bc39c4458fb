"""thawd as a process: started, killed, started again, and ended with everything it made."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Self

from cli.client import Client
from cri.api import v1_pb2
from e2e.harness import dropping, leaks
from e2e.harness.registry import Registry
from e2e.harness.waiting import until
from hostlib import errors, ids
from hostlib.process import ENVIRONMENT

PROJECT: Final = Path(__file__).resolve().parents[2]
EVIDENCE: Final = PROJECT / "e2e" / "evidence"
THAWD: Final = PROJECT / ".venv" / "bin" / "thawd"
SNAPSHOTS: Final = PROJECT / ".build" / "e2e" / "snapshots"
"""Snapshots outlive a test's folder: a base is baked once for the tests of a checkout."""

START_SECONDS: Final = 240.0
"""A first start bakes."""


def toml(settings: Mapping[str, Any]) -> str:
    """Settings as TOML; JSON's scalars and lists are TOML's."""
    plain = [f"{k} = {json.dumps(v)}" for k, v in settings.items() if not isinstance(v, Mapping)]
    for name, section in settings.items():
        if isinstance(section, Mapping):
            plain += [f"\n[{name}]", *(f"{k} = {json.dumps(v)}" for k, v in section.items())]
    return "\n".join(plain) + "\n"


class Daemon:
    """One daemon with its own root, state, configuration and socket under `folder`."""

    def __init__(
        self,
        folder: Path,
        registry: Registry | None = None,
        *,
        settings: Mapping[str, Any] | None = None,
        root: Path | None = None,
        subnet: str = "10.88.0.0/16",
        environment: Mapping[str, str] | None = None,
        share_snapshots: bool = True,
    ) -> None:
        self.share_snapshots = share_snapshots
        self.folder = folder
        self.root = root or folder / "root"
        self.state = folder / "state"
        self.logs = folder / "pods"
        self.socket = folder / "thawd.sock"
        self.config = folder / "config.toml"
        self.log = folder / "thawd.log"
        self.failpoints = folder / "failpoints"
        self.environment = dict(environment or {})
        self.process: subprocess.Popen[bytes] | None = None
        self._proxy: dropping.Proxy | None = None
        self._client: Client | None = None
        self._seen: set[str] = set()
        for place in (folder, self.root, self.logs):
            place.mkdir(parents=True, exist_ok=True)
        hosts = folder / "hosts"
        hosts.mkdir(exist_ok=True)
        if registry is not None:
            registry.write_hosts(hosts)
        sections: dict[str, Any] = {
            "registry": {"config_path": str(hosts)},
            "network": {"subnet": subnet, "cni_conf_dir": ""},
            "pool": {"size": 1, "max_size": 1},
        }
        for name, value in (settings or {}).items():
            if value is None:
                # The daemon's own default.
                sections.pop(name, None)
            elif isinstance(value, Mapping):
                sections[name] = {**sections.get(name, {}), **value}
            else:
                sections[name] = value
        self.config.write_text(toml(sections))

    @property
    def address(self) -> str:
        return f"unix://{self.socket}"

    @property
    def _listens(self) -> Path:
        """Where thawd itself listens: behind the proxy that drops a field, where there is one."""
        return self.folder / "behind.sock" if dropping.proxied() else self.socket

    @property
    def instance(self) -> str:
        return ids.instance_id(self.root)

    @property
    def client(self) -> Client:
        if self._client is None:
            self._client = Client(self.address)
        return self._client

    def argv(self) -> list[str]:
        """The command line, as an operator would write it."""
        return [
            str(THAWD),
            *("--config", str(self.config)),
            *("--root", str(self.root)),
            *("--state", str(self.state)),
            *("--listen", f"unix://{self._listens}"),
        ]

    def spawn(self) -> None:
        """Start the process, and do not wait for its socket."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.argv(),
                stdout=log,
                stderr=log,
                cwd="/",
                env={
                    **ENVIRONMENT,
                    "THAW_FAILPOINTS_FILE": str(self.failpoints),
                    **self.environment,
                },
            )

    def start(self, timeout: float = START_SECONDS) -> Self:
        """Start, and wait until it answers."""
        self._borrow_snapshots()
        self.spawn()
        if dropping.proxied() and self._proxy is None:
            self._proxy = dropping.Proxy(self.socket, self._listens).start()
        until("thawd answers", self.answers, timeout)
        return self

    def answers(self) -> bool:
        """Whether it answers yet. AssertionError where it has ended."""
        assert self.process is not None
        if self.process.poll() is not None:
            raise AssertionError(f"thawd ended: {self.log.read_text()[-3000:]}")
        if not self.socket.exists():
            return False
        with contextlib.suppress(errors.ThawError):
            self.client.version()
            return True
        self.close_client()
        return False

    def close_client(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None

    def terminate(self) -> int:
        """SIGTERM; pods stay. The exit code."""
        assert self.process is not None
        self.close_client()
        self.process.terminate()
        return self.process.wait(60)

    def kill(self) -> None:
        """SIGKILL; pods stay."""
        assert self.process is not None
        self.close_client()
        self.process.kill()
        self.process.wait()

    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def log_text(self, offset: int = 0) -> str:
        """What the daemon logged, from a size of the file on."""
        with self.log.open("rb") as source:
            source.seek(offset)
            return source.read().decode(errors="replace")

    def named(self, name: str) -> list[int]:
        """The processes of this daemon, it or its children, that call themselves so."""
        found = leaks.marked(str(self.folder), str(self.root))
        return [pid for pid, traces in found if traces.split("\n")[0].startswith(name)]

    def zygotes(self) -> list[int]:
        """The zygote; what it has just forked has its name for a moment, and another parent."""
        assert self.process is not None
        return [pid for pid in self.named("thaw-zygote") if leaks.parent(pid) == self.process.pid]

    def bakes(self) -> list[int]:
        return self.named("thaw-bake")

    def qemus(self) -> list[int]:
        """Those that run a machine; QEMU is also asked which it is."""
        return [pid for pid in self.named("qemu") if b"-machine" in leaks.command(pid)]

    def runtime(self) -> v1_pb2.RuntimeCondition:
        """Status's condition RuntimeReady."""
        conditions = self.client.status().status.conditions
        return next(each for each in conditions if each.type == "RuntimeReady")

    def runtime_problem(self) -> v1_pb2.RuntimeCondition | None:
        """The same, where pods cannot be run and nothing is being done about it."""
        found = self.runtime()
        return found if found.reason == "BaseSnapshotFailed" else None

    def await_end(self, timeout: float = 60.0) -> None:
        """Wait for a daemon that dies by itself."""
        assert self.process is not None
        self.close_client()
        self.process.wait(timeout)

    def arm(self, points: str) -> None:
        """Arm failpoints in the daemon and its shims; an empty text disarms all."""
        temporary = self.failpoints.with_suffix(".new")
        temporary.write_text(points)
        temporary.replace(self.failpoints)

    def merged(self, image: str) -> bool:
        """Whether the image's layers are merged into one file."""
        request = v1_pb2.ImageStatusRequest(image=v1_pb2.ImageSpec(image=image), verbose=True)
        found = self.client.image("ImageStatus", request, v1_pb2.ImageStatusResponse)
        return json.loads(found.info["info"])["merged"] is not None

    def records(self) -> dict[str, dict[str, Any]]:
        """The vm.json of every VM, by VM id."""
        found = {}
        for folder in (self.state / "vms").glob("*"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                found[folder.name] = json.loads((folder / "vm.json").read_text())
        self._seen.update(found)
        return found

    def vm_of(self, pod_id: str) -> str:
        """The VM id of a pod."""
        for folder in (self.state / "vms").glob("*"):
            with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                if json.loads((folder / "pod.json").read_text())["id"] == pod_id:
                    return folder.name
        raise AssertionError(f"no VM is bound to the pod {pod_id}")

    def remove_pods(self) -> None:
        """Stop and remove every pod."""
        for pod in self.client.pods():
            self.client.stop_pod(pod.id)
            self.client.remove_pod(pod.id)

    def bound_vms(self) -> list[str]:
        """The VM folders that belong to pods."""
        return [str(p.parent) for p in (self.state / "vms").glob("*/pod.json")]

    def unclaimed(self) -> list[str]:
        """What belongs to this running daemon and to none of its VMs."""
        assert self.process is not None
        return leaks.unclaimed(self.instance, self.root, self.state, self.process.pid)

    def leftovers(self) -> list[str]:
        """Everything on the host that belongs to this daemon, and what pods left in its folders."""
        places = [str(self.folder), str(self.state)]
        if self.process is None:
            # It never came to life, and its root may be another's.
            return [*leaks.processes(*places), *leaks.mounts(*places)]
        found = leaks.all_of(
            self.instance, self.folder, self.state, self.root, vms=sorted(self._seen)
        )
        return found + leaks.remnants(self.root, self.state)

    def keep(self, target: Path) -> None:
        """Copy logs, consoles and records there: images and snapshots are too big."""
        for source in self.folder.rglob("*"):
            relative = source.relative_to(self.folder)
            # A pinned namespace looks like a file and is none.
            if relative.parts[0] == "root" or "netns" in relative.parts or not source.is_file():
                continue
            place = target / relative
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, place)

    def destroy(self) -> list[str]:
        """End the daemon and all its VMs. What is left on the host then: it should be nothing."""
        if self._proxy is not None:
            # What is to go must be seen as it is.
            self.close_client()
            self._proxy.stop()
            self.socket = self._listens
        if self.process is not None:
            self.arm("")
            if self.process.poll() is not None:
                # It was killed: the next one adopts what lives, and so can remove it.
                with contextlib.suppress(AssertionError):
                    self.start()
            if self.alive():
                self.records()
                with contextlib.suppress(errors.ThawError):
                    self.remove_pods()
                self.terminate()
            self.close_client()
        with contextlib.suppress(AssertionError):
            until("nothing is left", lambda: not self.leftovers(), 30)
        self._lend_snapshots()
        return self.leftovers()

    def erase(self) -> None:
        """Kill what `leftovers` finds and remove it, so that the next test starts clean."""
        groups: list[str] = []
        for found in self.leftovers():
            kind, name, *_ = found.split(" ")
            if kind == "process":
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(name), signal.SIGKILL)
            elif kind == "link":
                _quietly("ip", "link", "delete", name)
            elif kind == "nft":
                _quietly("nft", "delete", *found.split(" ")[1:])
            elif kind == "mount":
                _quietly("umount", "--lazy", found.split(" ")[5])
            elif kind == "loop":
                _quietly("losetup", "--detach", name)
            elif kind == "cgroup":
                groups.append(name)
        # Children first.
        for group in sorted(groups, reverse=True):
            with contextlib.suppress(OSError):
                os.rmdir(group)

    def _borrow_snapshots(self) -> None:
        if self.share_snapshots:
            _link_new(SNAPSHOTS, self.root / "snapshots")

    def _lend_snapshots(self) -> None:
        if self.share_snapshots:
            _link_new(self.root / "snapshots", SNAPSHOTS)


def _quietly(*argv: str) -> None:
    subprocess.run(argv, capture_output=True, check=False, env=dict(ENVIRONMENT))


def _link_new(source: Path, target: Path) -> None:
    """Hard-link the snapshots of `source` that `target` lacks; their files never change."""
    if not source.is_dir():
        return
    target.mkdir(parents=True, exist_ok=True)
    for snapshot in source.iterdir():
        # What has a dot is not, or not yet, a snapshot.
        hidden = snapshot.name.startswith(".")
        if hidden or not snapshot.is_dir() or (target / snapshot.name).exists():
            continue
        partial = target / f".{snapshot.name}.{os.getpid()}"
        try:
            shutil.copytree(snapshot, partial, copy_function=os.link)
            partial.rename(target / snapshot.name)
        except OSError:
            # Another file system, or another run of the tests was faster: it is baked again.
            shutil.rmtree(partial, ignore_errors=True)
