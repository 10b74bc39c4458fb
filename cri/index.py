"""What the daemon knows of pods and containers: in memory, fed by the shims' records and events.

The shims' records are the authority; this is their copy, kept by the one event loop, so that lists
and look-ups cost no call. Lists come in the order of creation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from cri.vms import Vm, Wire
from hostlib.errors import AlreadyExists, InvalidArgument, NotFound
from shim.records import EXIT_UNKNOWN, ContainerRecord, PodRecord

MAX_ID: Final = 128


@dataclass
class Pod:
    """A pod sandbox; its VM's `shim` is None when the shim is gone."""

    record: PodRecord
    vm: Vm

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def ready(self) -> bool:
        return self.record.state == "ready"


@dataclass
class Container:
    """A container; `process` is its OCI process object, None for one that was adopted."""

    record: ContainerRecord
    process: Wire | None = None

    @property
    def id(self) -> str:
        return self.record.id


class _Named(Protocol):
    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=_Named)


class _Table(Generic[E]):
    """Objects by id, and by what is a prefix of one id alone."""

    def __init__(self, noun: str) -> None:
        self._noun = noun
        self._entries: dict[str, E] = {}

    def __iter__(self) -> Iterator[E]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: E) -> None:
        self._entries[entry.id] = entry

    def discard(self, entry_id: str) -> None:
        self._entries.pop(entry_id, None)

    def exact(self, entry_id: str) -> E | None:
        return self._entries.get(entry_id)

    def find(self, text: str) -> E:
        """The one object that `text` names. Raises `NotFound`, `InvalidArgument`."""
        if not text:
            raise InvalidArgument(f"no {self._noun} id given")
        if (entry := self._entries.get(text)) is not None:
            return entry
        found = [e for key, e in self._entries.items() if key.startswith(text)]
        if len(found) > 1:
            raise InvalidArgument(
                f"{self._noun} id prefix {text[:MAX_ID]} is ambiguous", hint="write more digits"
            )
        if not found:
            raise NotFound(f"{self._noun} {text[:MAX_ID]} does not exist")
        return found[0]

    def prefixed(self, text: str) -> list[E]:
        """All whose id begins with `text`, for filters; all when it is empty."""
        return [entry for key, entry in self._entries.items() if key.startswith(text)]


@dataclass
class Index:
    """Every pod and container of this daemon."""

    pods: _Table[Pod] = field(default_factory=lambda: _Table("pod sandbox"))
    containers: _Table[Container] = field(default_factory=lambda: _Table("container"))

    def containers_of(self, pod_id: str) -> list[Container]:
        return [each for each in self.containers if each.record.pod_id == pod_id]

    def pod_named(self, key: tuple[str, str, str, int]) -> Pod | None:
        """The pod of this name, namespace, uid and attempt."""
        for pod in self.pods:
            if pod_key(pod.record) == key:
                return pod
        return None

    def container_named(self, pod_id: str, name: str, attempt: int) -> Container | None:
        for each in self.containers_of(pod_id):
            metadata = each.record.metadata
            if (metadata.name, metadata.attempt) == (name, attempt):
                return each
        return None

    def update_container(self, record: ContainerRecord) -> None:
        """Take over what a shim says of one of its containers; ids never seen are ignored."""
        entry = self.containers.exact(record.id)
        # Events cross with answers: an exit is final.
        if entry is not None and not (entry.record.state == "exited" and record.state != "exited"):
            entry.record = record

    def pod_stopped(self, pod: Pod, reason: str, at: int) -> None:
        """The pod is over: NOTREADY, and what ran in it ended with it."""
        if pod.ready:
            pod.record = dataclasses.replace(
                pod.record, state="notready", stopped_at=at, reason=reason
            )
        for each in self.containers_of(pod.id):
            if each.record.state != "exited":
                each.record = ended(each.record, reason, at)

    def forget_pod(self, pod_id: str) -> None:
        """The pod was removed, and its containers with it."""
        for each in self.containers_of(pod_id):
            self.containers.discard(each.id)
        self.pods.discard(pod_id)


def ended(record: ContainerRecord, message: str, at: int) -> ContainerRecord:
    """A container whose end nobody saw: exit code 255, and the reason why nobody did."""
    return dataclasses.replace(
        record,
        state="exited",
        exit_code=EXIT_UNKNOWN,
        reason="Error",
        message=message,
        finished_at=at,
    )


def pod_key(record: PodRecord) -> tuple[str, str, str, int]:
    """What Kubernetes knows a pod sandbox by."""
    metadata = record.metadata
    return metadata.name, metadata.namespace, metadata.uid, metadata.attempt


def matches(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether `labels` hold every pair of `selector`."""
    return all(labels.get(key) == value for key, value in selector.items())


class Names:
    """Names of calls under way. A name is never reserved for longer than its call runs."""

    def __init__(self) -> None:
        self._held: set[tuple[object, ...]] = set()

    def claim(self, what: str, key: Iterable[object]) -> _Claim:
        """Hold the name in a ``with`` block. Raises `AlreadyExists` when a call holds it."""
        return _Claim(self._held, what, tuple(key))


class _Claim:
    def __init__(self, held: set[tuple[object, ...]], what: str, key: tuple[object, ...]) -> None:
        self._held, self._what, self._key = held, what, key

    def __enter__(self) -> None:
        if self._key in self._held:
            raise AlreadyExists(
                f"{self._what} is being made by another call", hint="wait for that call to end"
            )
        self._held.add(self._key)

    def __exit__(self, *_: object) -> None:
        self._held.discard(self._key)
