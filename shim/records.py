"""What a shim keeps on disk under ``state/vms/<vm id>/``, as typed, validated values.

The shim writes these records before it changes anything in memory; the daemon reads them when the
shim is dead. Times are nanoseconds since the epoch, 0 for "not yet".
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar, Union

from hostlib import ids, records
from hostlib.errors import DataLoss, FailedPrecondition, InvalidArgument, ThawError

VERSION: Final = 1
VM_FILE: Final = "vm.json"
POD_FILE: Final = "pod.json"
CONTAINERS: Final = "containers"
SOCKET: Final = "shim.sock"
LOG: Final = "shim.log"

EXIT_UNKNOWN: Final = 255
"""The exit code of a container whose end nobody saw."""

Wire = dict[str, Any]
"""A JSON object."""

VMState = Literal["starting", "pooled", "running", "stopped"]
PodState = Literal["ready", "notready"]
ContainerState = Literal["created", "running", "exited"]


@dataclass(frozen=True)
class ShimConfig:
    """What a new shim is told; paths are absolute.

    ``shape`` is the machine shape's own form and passed on as it is. ``slots`` is the number of
    read-only block slots of the snapshot. ``netns`` is where the namespace is pinned. ``cgroup``
    is where the shim and its VM live until a pod is bound; "" leaves the shim where it was forked.
    ``uid_base`` is the first user id of workers, see `ids.worker_uid`.
    """

    instance: str
    snapshot: str
    shape: Wire
    accel: str
    qemu: str
    scratch_dir: str
    rehearsal: str
    tap_name: str
    netns: str
    rehearse: bool = True
    slots: int = 12
    cgroup: str = ""
    uid_base: int = ids.WORKER_UID_BASE


@dataclass(frozen=True)
class VMRecord:
    """A microVM and the processes that hold it; a pid and a start time name a process for good.

    ``shape`` is what it was restored as, ``size`` what it has become since, {} before it changes.
    """

    id: str
    shim_pid: int
    shim_start_time: int
    snapshot_key: str = ""
    shape: Wire = field(default_factory=dict)
    size: Wire = field(default_factory=dict)
    qemu_pid: int = 0
    qemu_start_time: int = 0
    netns: str = ""
    tap: str = ""
    scratch: str = ""
    cgroup: str = ""
    state: VMState = "starting"
    reason: str = ""

    def __post_init__(self) -> None:
        if not ids.is_vm_id(self.id):
            raise InvalidArgument(f"{self.id!r} is no VM id")


@dataclass(frozen=True)
class PodMetadata:
    name: str
    uid: str
    namespace: str
    attempt: int = 0


@dataclass(frozen=True)
class PodNetworkRecord:
    """The pod's place in the network; ``cni`` is opaque and serves to give it back."""

    interface: str = "eth0"
    ips: tuple[str, ...] = ()
    cni: Wire = field(default_factory=dict)


@dataclass(frozen=True)
class PodRecord:
    """A pod sandbox. ``linux``, ``dns``, ``port_mappings`` and ``config`` are CRI's as JSON."""

    id: str
    metadata: PodMetadata
    created_at: int
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    runtime_handler: str = ""
    log_directory: str = ""
    hostname: str = ""
    cgroup_parent: str = ""
    network: PodNetworkRecord = field(default_factory=PodNetworkRecord)
    port_mappings: tuple[Wire, ...] = ()
    dns: Wire = field(default_factory=dict)
    linux: Wire = field(default_factory=dict)
    config: Wire = field(default_factory=dict)
    state: PodState = "ready"
    stopped_at: int = 0
    reason: str = ""

    def __post_init__(self) -> None:
        _check_object_id(self.id)


@dataclass(frozen=True)
class ContainerMetadata:
    name: str
    attempt: int = 0


@dataclass(frozen=True)
class ImageRecord:
    """The image as the request named it, and its id."""

    ref: str = ""
    id: str = ""


@dataclass(frozen=True)
class ContainerRecord:
    """A container. ``log_path`` is absolute, "" for none; ``mounts`` and ``config`` are CRI's, the
    resources those in force. ``guest_cpus`` are the VM's processors that it has, "" for any;
    ``volume_images`` the ids of the images that it mounts as volumes; ``user`` is what its process
    runs as, OCI's ``uid``, ``gid``, ``additionalGids``."""

    id: str
    pod_id: str
    metadata: ContainerMetadata
    created_at: int
    image: ImageRecord = field(default_factory=ImageRecord)
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    mounts: tuple[Wire, ...] = ()
    log_path: str = ""
    stdin: bool = False
    stdin_once: bool = False
    tty: bool = False
    stop_signal: str = ""
    config: Wire = field(default_factory=dict)
    guest_cpus: str = ""
    volume_images: tuple[str, ...] = ()
    user: Wire = field(default_factory=dict)
    state: ContainerState = "created"
    started_at: int = 0
    finished_at: int = 0
    exit_code: int = 0
    reason: str = ""
    message: str = ""

    def __post_init__(self) -> None:
        _check_object_id(self.id)
        _check_object_id(self.pod_id)


AnyRecord = VMRecord | PodRecord | ContainerRecord

_KINDS: Final[Mapping[type, str]] = {
    VMRecord: "vm",
    PodRecord: "pod",
    ContainerRecord: "container",
}

T = TypeVar("T")
R = TypeVar("R", VMRecord, PodRecord, ContainerRecord)


def _check_object_id(text: str) -> None:
    if not ids.is_object_id(text):
        raise InvalidArgument(f"{text[:80]!r} is no id of a pod or container")


def to_dict(value: Any) -> Wire:
    """A record as JSON; `from_dict` reads it."""
    result: Wire = dataclasses.asdict(value)
    return result


def from_dict(cls: type[T], data: object) -> T:
    """The `cls` in `data`. Absent members take their default, unknown ones are passed over.

    Raises `InvalidArgument`, which names the member that is missing or of another type.
    """
    value: T = _convert(cls, data, cls.__name__)
    return value


def _convert(hint: Any, value: object, path: str) -> Any:
    origin = typing.get_origin(hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _dataclass(hint, value, path)
    if origin is Literal:
        if value not in typing.get_args(hint):
            raise InvalidArgument(f"{path} is {value!r}, not one of {typing.get_args(hint)}")
        return value
    if origin in (Union, types.UnionType):
        members = [one for one in typing.get_args(hint) if one is not type(None)]
        return None if value is None else _convert(members[0], value, path)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise InvalidArgument(f"{path} is no list")
        inner = typing.get_args(hint)[0]
        return tuple(_convert(inner, one, f"{path}[{i}]") for i, one in enumerate(value))
    if origin is dict:
        if not isinstance(value, dict):
            raise InvalidArgument(f"{path} is no object")
        inner = typing.get_args(hint)[1]
        return {str(key): _convert(inner, one, f"{path}.{key}") for key, one in value.items()}
    if hint is Any:
        return value
    # A bool is an int to Python, not to a reader of the record.
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise InvalidArgument(f"{path} is {type(value).__name__}, not {hint.__name__}")
    return value


def _dataclass(cls: type, value: object, path: str) -> Any:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{path} is no object")
    hints = _hints(cls)
    found = {}
    for one in dataclasses.fields(cls):
        if one.name in value:
            found[one.name] = _convert(hints[one.name], value[one.name], f"{path}.{one.name}")
        elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
            raise InvalidArgument(f"{path}.{one.name} is missing")
    return cls(**found)


_hint_cache: dict[type, dict[str, Any]] = {}


def _hints(cls: type) -> dict[str, Any]:
    if cls not in _hint_cache:
        _hint_cache[cls] = typing.get_type_hints(cls)
    return _hint_cache[cls]


def preload() -> None:
    """Work out the types of all records now, for every process that is forked from here."""
    for cls in (
        ShimConfig,
        VMRecord,
        PodRecord,
        PodMetadata,
        PodNetworkRecord,
        ContainerRecord,
        ContainerMetadata,
        ImageRecord,
    ):
        _hints(cls)


def container_path(folder: Path, container_id: str) -> Path:
    """Where the record of a container of the VM in `folder` lies."""
    _check_object_id(container_id)
    return folder / CONTAINERS / f"{container_id}.json"


def scratch_disk(folder: Path, vm_id: str) -> Path:
    """Where the writable disk of a VM lies, in the `folder` of all of them."""
    return folder / f"{vm_id}.ext4"


def _path(folder: Path, record: AnyRecord) -> Path:
    if isinstance(record, VMRecord):
        return folder / VM_FILE
    if isinstance(record, PodRecord):
        return folder / POD_FILE
    return container_path(folder, record.id)


def write(folder: Path, record: AnyRecord) -> None:
    """Write the record, atomically, into the VM's `folder`.

    Not durable: state does not survive a reboot, nor does any VM.
    """
    path = _path(folder, record)
    if isinstance(record, ContainerRecord):
        path.parent.mkdir(mode=0o700, exist_ok=True)
    records.write(path, _KINDS[type(record)], VERSION, to_dict(record), durable=False)


def read(cls: type[R], path: Path) -> R:
    """The record at `path`.

    Raises FileNotFoundError, `DataLoss` when it is damaged, `FailedPrecondition` when it is newer.
    """
    body = records.read(path, _KINDS[cls], VERSION)
    try:
        return from_dict(cls, body)
    except InvalidArgument as error:
        raise DataLoss(f"record {path} is damaged: {error.message}") from error


@dataclass(frozen=True)
class Broken:
    """A record that could not be read."""

    path: Path
    error: ThawError


@dataclass(frozen=True)
class VMFolder:
    """All that is known of one VM from disk."""

    path: Path
    vm: VMRecord | None = None
    pod: PodRecord | None = None
    containers: tuple[ContainerRecord, ...] = ()
    broken: tuple[Broken, ...] = ()

    @property
    def id(self) -> str:
        return self.path.name

    @property
    def socket(self) -> Path:
        return self.path / SOCKET


def read_vm_folder(path: Path) -> VMFolder:
    """The records of the VM in folder `path`; one that is broken does not hide the others."""
    broken: list[Broken] = []

    def attempt(cls: type[R], file: Path) -> R | None:
        try:
            return read(cls, file)
        except FileNotFoundError:
            return None
        except (DataLoss, FailedPrecondition) as error:
            broken.append(Broken(file, error))
        except OSError as error:
            broken.append(Broken(file, DataLoss(f"record {file}: {error.strerror}")))
        return None

    vm = attempt(VMRecord, path / VM_FILE)
    pod = attempt(PodRecord, path / POD_FILE)
    files = sorted((path / CONTAINERS).glob("[!.]*.json"))
    containers = tuple(one for file in files if (one := attempt(ContainerRecord, file)) is not None)
    return VMFolder(path, vm, pod, containers, tuple(broken))
