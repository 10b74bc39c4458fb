"""What the daemon knows of pods and containers: in memory, fed by the shims' records and events.

The shims' records are the authority; this is their copy, kept by the one event loop, so that lists
and look-ups cost no call. Lists come in the order of creation. What a call asks of one pod costs
the same however many there are: only a list of everything, and a prefix of an id, look at all.
"""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, Generic, Protocol, TypeVar

from cri.stats.rate import Rate
from cri.vms import Vm, Wire
from hostlib import ids
from hostlib.errors import AlreadyExists, InvalidArgument, NotFound
from shim.records import EXIT_UNKNOWN, ContainerRecord, PodRecord

MAX_ID: Final = 128

START_ERROR: Final = "StartError"
"""The reason of a container whose command could not be started."""

POD_UID: Final = "io.kubernetes.pod.uid"
"""The label by which the kubelet asks for what belongs to one pod."""


class Change(enum.Enum):
    """What happens to a pod or a container, for those who listen."""

    CREATED = enum.auto()
    STARTED = enum.auto()
    STOPPED = enum.auto()
    DELETED = enum.auto()


Notify = Callable[[Change, str, str], None]
"""Called with the change, the id of what changed, and its pod's id."""


@dataclass
class Pod:
    """A pod sandbox; its VM's `shim` is None when the shim is gone."""

    record: PodRecord
    vm: Vm
    changing: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)
    """Held while what it asks for is changed; `updating` while its bounds are, `sizing` while its
    VM's size is."""
    updating: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)
    sizing: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)
    shown: tuple[PodRecord, bytes] | None = field(default=None, compare=False)
    """See `shown`."""
    rate: Rate = field(default_factory=Rate, compare=False)
    """How much of the processors its VM uses."""

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def ready(self) -> bool:
        return self.record.state == "ready"


@dataclass(frozen=True)
class Written:
    """Bytes and inodes, and when that was seen, in nanoseconds."""

    at: int = 0
    bytes: int = 0
    inodes: int = 0


@dataclass
class Container:
    """A container; `process` is its OCI process object, None for one that was adopted."""

    record: ContainerRecord
    process: Wire | None = None
    updating: asyncio.Lock = field(default_factory=asyncio.Lock, compare=False)
    shown: tuple[ContainerRecord, bytes] | None = field(default=None, compare=False)
    """See `shown`."""
    rate: Rate = field(default_factory=Rate, compare=False)
    written: Written = field(default=Written(), compare=False)
    """What its writable layer took when that was last seen."""

    @property
    def id(self) -> str:
        return self.record.id


R = TypeVar("R", PodRecord, ContainerRecord)


class _Shown(Protocol[R]):
    record: R
    shown: tuple[R, bytes] | None


def shown(entry: _Shown[R], encode: Callable[[R], bytes]) -> bytes:
    """What lists have of a pod or a container, encoded once for each record: the kubelet lists
    every second, and making these messages anew would be nearly all that a list costs."""
    if entry.shown is None or entry.shown[0] is not entry.record:
        entry.shown = entry.record, encode(entry.record)
    return entry.shown[1]


class _Named(Protocol):
    @property
    def id(self) -> str: ...


E = TypeVar("E", bound=_Named)


class _Table(Generic[E]):
    """Objects by id, by what is a prefix of one id alone, and by properties that never change."""

    def __init__(self, noun: str, **properties: Callable[[E], Hashable]) -> None:
        self._noun = noun
        self._entries: dict[str, E] = {}
        self._properties = properties
        self._groups: dict[tuple[str, Hashable], dict[str, E]] = {}

    def __iter__(self) -> Iterator[E]:
        return iter(list(self._entries.values()))

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, entry: E) -> None:
        self.discard(entry.id)
        self._entries[entry.id] = entry
        for key in self._keys(entry):
            self._groups.setdefault(key, {})[entry.id] = entry

    def discard(self, entry_id: str) -> None:
        if (entry := self._entries.pop(entry_id, None)) is None:
            return
        for key in self._keys(entry):
            group = self._groups[key]
            del group[entry_id]
            if not group:
                del self._groups[key]

    def _keys(self, entry: E) -> list[tuple[str, Hashable]]:
        return [(name, of(entry)) for name, of in self._properties.items()]

    def exact(self, entry_id: str) -> E | None:
        return self._entries.get(entry_id)

    def where(self, name: str, value: Hashable) -> list[E]:
        """All whose property `name` has this value."""
        return list(self._groups.get((name, value), {}).values())

    def find(self, text: str) -> E:
        """The one object that `text` names. Raises `NotFound`, `InvalidArgument`."""
        if not text:
            raise InvalidArgument(f"no {self._noun} id given")
        found = self.prefixed(text)
        if len(found) > 1:
            raise InvalidArgument(
                f"{self._noun} id prefix {text[:MAX_ID]} is ambiguous", hint="write more digits"
            )
        if not found:
            raise NotFound(f"{self._noun} {text[:MAX_ID]} does not exist")
        return found[0]

    def prefixed(self, text: str) -> list[E]:
        """All whose id begins with `text`; all when it is empty."""
        if not text:
            return list(self._entries.values())
        if (entry := self._entries.get(text)) is not None:
            return [entry]
        # A whole id is the prefix of no other: clients ask for what is gone quite often.
        if ids.is_object_id(text):
            return []
        return [entry for key, entry in self._entries.items() if key.startswith(text)]

    def asked(self, text: str, labels: Mapping[str, str]) -> list[E]:
        """Those that a filter can mean, by id or by the label `POD_UID`; all where it has neither.
        Whether they fit the rest of the filter is for the caller to see."""
        if not text and (uid := labels.get(POD_UID)) is not None:
            return self.where("uid", uid)
        return self.prefixed(text)


def _pods() -> _Table[Pod]:
    return _Table(
        "pod sandbox",
        name=lambda pod: pod_key(pod.record),
        uid=lambda pod: pod.record.labels.get(POD_UID),
    )


def _containers() -> _Table[Container]:
    return _Table(
        "container",
        pod=lambda each: each.record.pod_id,
        uid=lambda each: each.record.labels.get(POD_UID),
    )


@dataclass
class Index:
    """Every pod and container of this daemon."""

    pods: _Table[Pod] = field(default_factory=_pods)
    containers: _Table[Container] = field(default_factory=_containers)
    notify: Notify = lambda _change, _id, _pod_id: None
    """Told of each change right after it, and of a pod's removal right before it."""

    def pod_added(self, pod: Pod) -> None:
        """Tell of a pod that was made: it runs from its first moment."""
        self.notify(Change.CREATED, pod.id, pod.id)
        self.notify(Change.STARTED, pod.id, pod.id)

    def add_container(self, container: Container) -> None:
        """Take in a container that was made."""
        self.containers.add(container)
        self.notify(Change.CREATED, container.id, container.record.pod_id)

    def container_started(self, container: Container, started_at: int) -> None:
        """The answer to a start. A process that ends at once may have ended here before it."""
        record = container.record
        if record.state == "created":
            container.record = dataclasses.replace(record, state="running", started_at=started_at)
            self.notify(Change.STARTED, record.id, record.pod_id)
        elif not record.started_at:
            container.record = dataclasses.replace(record, started_at=started_at)

    def remove_container(self, container: Container, at: int) -> None:
        """The container was removed, killed if it ran; idempotent."""
        if self.containers.exact(container.id) is not container:
            return
        if container.record.state == "running":
            self._replace(container, ended(container.record, "removed", at))
        self.containers.discard(container.id)
        self.notify(Change.DELETED, container.id, container.record.pod_id)

    def _replace(self, container: Container, record: ContainerRecord) -> None:
        """Take a newer record over, and tell what it says that was not known."""
        before, container.record = container.record, record
        if before.state == "created" and (record.state == "running" or _ran(record)):
            self.notify(Change.STARTED, record.id, record.pod_id)
        if before.state != "exited" and record.state == "exited":
            self.notify(Change.STOPPED, record.id, record.pod_id)

    def containers_of(self, pod_id: str) -> list[Container]:
        return self.containers.where("pod", pod_id)

    def pod_named(self, key: tuple[str, str, str, int]) -> Pod | None:
        """The pod of this name, namespace, uid and attempt."""
        return next(iter(self.pods.where("name", key)), None)

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
            self._replace(entry, record)

    def pod_stopped(self, pod: Pod, reason: str, at: int) -> None:
        """The pod is over: NOTREADY, and what ran in it ended with it."""
        was_ready = pod.ready
        if was_ready:
            pod.record = dataclasses.replace(
                pod.record, state="notready", stopped_at=at, reason=reason
            )
        for each in self.containers_of(pod.id):
            if each.record.state != "exited":
                self._replace(each, ended(each.record, reason, at))
        if was_ready:
            self.notify(Change.STOPPED, pod.id, pod.id)

    def pod_removed(self, pod: Pod, at: int) -> None:
        """The pod was removed, and its containers with it."""
        for each in self.containers_of(pod.id):
            self.remove_container(each, at)
        if self.pods.exact(pod.id) is pod:
            self.notify(Change.DELETED, pod.id, pod.id)
        self.pods.discard(pod.id)

    def forget_pod(self, pod_id: str) -> None:
        """The pod is about to be taken in anew: nobody is told."""
        for each in self.containers_of(pod_id):
            self.containers.discard(each.id)
        self.pods.discard(pod_id)


def _ran(record: ContainerRecord) -> bool:
    return record.started_at > 0 and record.reason != START_ERROR


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
