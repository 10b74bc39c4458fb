"""``make stress``: clients that do what they like with few names at once, under a model.

``python -m e2e.stress [SECONDS]`` starts a daemon of its own and runs for so long (3600).
"""

from __future__ import annotations

import math
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cli.client import Client
from cri.api import v1_pb2 as v1
from demo import images as demo_images
from e2e.harness.daemon import EVIDENCE, PROJECT, Daemon
from e2e.harness.model import Call, Model, Object
from e2e.harness.outside import subnet
from e2e.harness.pods import container, sandbox
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import Registry
from hostlib import errors

CLIENTS: Final = 8
PODS: Final = 3
CONTAINERS: Final = 2
GONE: Final = 0.1
TOLD_SECONDS: Final = 60.0
MANY: Final = 4
"""So many pods at most; a client that finds more removes some."""

# What a call may meet when another client was faster: the thing is not there, not yet or no more,
# its name is taken, or it is in another state.
LOST_RACES: Final = frozenset({"NOT_FOUND", "ALREADY_EXISTS", "FAILED_PRECONDITION", "UNAVAILABLE"})


class Someone:
    """One client, which chooses by chance."""

    def __init__(self, daemon: Daemon, model: Model, seed: int) -> None:
        self._client = Client(daemon.address)
        self._daemon, self._model = daemon, model
        self._random = random.Random(seed)
        self._verbs: list[Callable[[], None]] = [
            *(2 * [self._run_pod]),
            *(6 * [self._create]),
            *(8 * [self._start]),
            *(8 * [self._exec]),
            *(4 * [self._list]),
            *(4 * [self._status]),
            *(2 * [self._stop_container]),
            *(2 * [self._remove_container]),
            self._stop_pod,
            self._remove_pod,
        ]

    def run(self, until: float) -> None:
        while time.monotonic() < until and not self._model.wrong:
            verb = self._random.choice(self._verbs)
            try:
                verb()
            except errors.ThawError as error:
                self._model.met(f"{verb.__name__}: {error.code}")
                if error.code not in LOST_RACES:
                    self._model.failed(f"{verb.__name__}: {error.code}: {error}")
            except Exception as error:  # a client that breaks must be heard of
                self._model.failed(f"{verb.__name__}: {error!r}")
        self._client.close()

    def _pod(self) -> str:
        return self._any(self._model.pods, self._run_pod)

    def _container(self) -> str:
        return self._any(self._model.containers, self._create)

    def _any(self, objects: dict[str, Object], make: Callable[[], None]) -> str:
        # Mostly one that is there, now and then one that may be long gone.
        if objects and self._random.random() < GONE:
            return self._random.choice(list(objects))
        if not (there := self._there(objects)):
            make()
            there = self._there(objects)
        if not there:
            raise errors.NotFound("others removed it at once")
        return self._random.choice(there)

    @staticmethod
    def _there(objects: dict[str, Object]) -> list[str]:
        return [each.id for each in list(objects.values()) if each.removed.asked == math.inf]

    def _run_pod(self) -> None:
        if len(self._client.pods()) >= MANY:
            self._remove_pod()
            return
        config = sandbox(self._daemon, f"pod{self._random.randrange(PODS)}")
        with self._model.call() as call:
            made = self._client.run_pod(config)
        self._model.made_pod(made, call)

    def _create(self) -> None:
        pod = self._pod()
        config = container(SHELL, SLEEP, name=f"c{self._random.randrange(CONTAINERS)}")
        place = v1.PodSandboxConfig(log_directory=str(self._daemon.logs / pod[:8]))
        with self._model.call() as call:
            made = self._client.create_container(pod, config, place)
        self._model.made_container(made, pod, call)

    def _start(self) -> None:
        self._do("started", self._container(), self._client.start_container)

    def _stop_container(self) -> None:
        self._do("stopped", self._container(), self._client.stop_container)

    def _remove_container(self) -> None:
        self._do("removed", self._container(), self._client.remove_container)

    def _stop_pod(self) -> None:
        self._do("stopped", self._pod(), self._client.stop_pod)

    def _remove_pod(self) -> None:
        self._do("removed", self._pod(), self._client.remove_pod)

    def _do(self, kind: str, thing: str, verb: Callable[[str], None]) -> None:
        self._model.asked(kind, thing)
        with self._model.call() as call:
            verb(thing)
        self._model.did(kind, thing, call)

    def _exec(self) -> None:
        inside = self._container()
        with self._model.call() as call:
            answer = self._client.exec_sync(inside, ["/bin/echo", inside])
        # A container that is killed meanwhile takes the command along.
        if answer.exit_code == 0:
            self._model.ran(inside, call)
            if answer.stdout.decode().strip() != inside:
                self._model.failed(f"{inside[:8]} said {answer.stdout[:80]!r}")

    def _list(self) -> None:
        with self._model.call() as call:
            pods = self._client.pods()
        self._model.listed(self._model.pods, {pod.id: pod.state for pod in pods}, call)
        with self._model.call() as call:
            found = self._client.containers()
        states = {each.id: int(each.state) for each in found}
        self._model.listed(self._model.containers, states, call)
        self._judge(states, call)

    def _status(self) -> None:
        inside = self._container()
        with self._model.call() as call:
            status = self._client.container_status(inside)
        self._judge({inside: int(status.state)}, call)

    def _judge(self, states: dict[str, int], call: Call) -> None:
        for inside, state in states.items():
            self._model.told(inside, state, call)


def stress(
    daemon: Daemon, seconds: float, seed: int, tell: Callable[[Model], None] | None = None
) -> Model:
    """Let clients loose on the daemon, and remove what they leave. Its `wrong` should be empty.

    `tell` is called with the model every minute.
    """
    model = Model()
    until = time.monotonic() + seconds
    clients = [Someone(daemon, model, seed + number) for number in range(CLIENTS)]
    threads = [threading.Thread(target=client.run, args=(until,)) for client in clients]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads) and time.monotonic() < until + 300:
        for thread in threads:
            thread.join(TOLD_SECONDS / CLIENTS)
        if tell:
            tell(model)
    if any(thread.is_alive() for thread in threads):
        model.failed("a client waits for ever")
    if model.wrong:
        daemon.keep(EVIDENCE / f"stress-{seed}")
    else:
        daemon.remove_pods()
    return model


def done(model: Model) -> str:
    pods, containers = model.made["pods"], model.made["containers"]
    return f"{model.calls} calls, {pods} pods, {containers} containers"


def tell(model: Model) -> None:
    sys.stderr.write(f"{done(model)}\n")


def main() -> int:
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 3600.0
    seed = random.randrange(1 << 30)
    with tempfile.TemporaryDirectory(prefix="thaw-", dir="/tmp") as folder:
        with Registry(Path(folder) / "registry") as registry:
            registry.push(demo_images.built(PROJECT / ".build")["demo/shell"], "demo/shell")
            daemon = Daemon(Path(folder) / "stress", registry, subnet=subnet())
            try:
                daemon.start().client.pull_image(SHELL)
                model = stress(daemon, seconds, seed, tell)
            finally:
                left = daemon.destroy()
        sys.stdout.write(f"seed {seed}: {done(model)}\n")
        for what, count in model.lost.most_common():
            sys.stdout.write(f"{count:6} {what}\n")
        for text in [*model.wrong, *(f"left behind: {each}" for each in left)]:
            sys.stdout.write(f"WRONG {text}\n")
    return 1 if model.wrong or left else 0


if __name__ == "__main__":
    sys.exit(main())
