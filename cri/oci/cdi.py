"""CDI devices (Container Device Interface 1.0): those that are mounts and environment.

A specification names devices and what a container gets with each. Device nodes and hooks are the
host's, and nothing that a microVM can have: a device that asks for one is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cri.api import v1_pb2 as v1
from hostlib.errors import FailedPrecondition, InvalidArgument, NotFound, Unimplemented

FOLDERS: Final = (Path("/etc/cdi"), Path("/var/run/cdi"))
"""Where specifications lie; those of the later folder count more."""

MAX_BYTES: Final = 1 << 20
_MAX_FILES: Final = 256
_NAME: Final = re.compile(
    r"(?P<kind>[A-Za-z][A-Za-z0-9_.-]*/[A-Za-z][A-Za-z0-9_-]*)=(?P<device>[A-Za-z0-9][\w.:-]*)"
)
_KNOWN: Final = frozenset({"env", "mounts"})
_EMPTY: Final[tuple[object, ...]] = (None, [], {}, "")


@dataclass(frozen=True)
class Edits:
    """What devices add to a container."""

    env: tuple[tuple[str, str], ...] = ()
    mounts: tuple[v1.Mount, ...] = ()


def edits(names: Sequence[str], folders: Iterable[Path] = FOLDERS) -> Edits:
    """What the devices of these names add. Blocking.

    Raises `InvalidArgument` for a malformed name, `NotFound` for an unknown device,
    `FailedPrecondition` for a broken specification, `Unimplemented` for what no microVM can have.
    """
    wanted = []
    for name in dict.fromkeys(names):
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidArgument(f"CDI device {name!r} is not of the form vendor/class=name")
        wanted.append((name, match["kind"], match["device"]))
    specs = list(_specs(folders)) if wanted else []
    env: dict[str, str] = {}
    mounts: list[v1.Mount] = []
    seen: set[Path] = set()
    for name, kind, device in wanted:
        # The last that has it counts.
        found = [
            (path, spec, one)
            for path, spec in specs
            if spec.get("kind") == kind
            for one in _list(path, spec, "devices")
            if one.get("name") == device
        ]
        if not found:
            raise NotFound(
                f"CDI device {name} is unknown", hint="is its specification in /etc/cdi?"
            )
        path, spec, one = found[-1]
        parts = [one.get("containerEdits")]
        if path not in seen:
            parts.insert(0, spec.get("containerEdits"))
            seen.add(path)
        for part in parts:
            _apply(name, path, part or {}, env, mounts)
    return Edits(tuple(env.items()), tuple(mounts))


def _apply(
    name: str, path: Path, part: object, env: dict[str, str], mounts: list[v1.Mount]
) -> None:
    if not isinstance(part, dict):
        raise _broken(path, "containerEdits is no object")
    for key, value in part.items():
        if key not in _KNOWN and value not in _EMPTY:
            raise Unimplemented(
                f"CDI device {name} needs {key}, which a microVM cannot have",
                hint="run such pods under another runtime handler on this node",
            )
    for item in part.get("env") or ():
        key, equals, value = str(item).partition("=")
        if not key or not equals:
            raise _broken(path, f"{item!r} is no variable")
        env[key] = value
    mounts += [_mount(path, item) for item in _list(path, part, "mounts")]


def _mount(path: Path, item: dict[str, Any]) -> v1.Mount:
    host, inside = item.get("hostPath"), item.get("containerPath")
    if not isinstance(host, str) or not isinstance(inside, str) or not host or not inside:
        raise _broken(path, "a mount has no hostPath or containerPath")
    options = item.get("options") or []
    if not isinstance(options, list) or not all(isinstance(each, str) for each in options):
        raise _broken(path, "a mount's options are no list of words")
    if item.get("type") not in (None, "", "bind", "none"):
        raise Unimplemented(f"CDI specification {path}: mounts of type {item['type']!r}")
    plain = {"bind", "rbind", "ro", "rw", "private", "rprivate", "noexec", "nodev", "nosuid"}
    if unknown := sorted(set(options) - plain):
        raise Unimplemented(f"CDI specification {path}: mount option {unknown[0]!r}")
    return v1.Mount(
        host_path=host,
        container_path=inside,
        readonly="ro" in options,
        mount_options=[each for each in options if each in ("noexec", "nodev", "nosuid")],
    )


def _specs(folders: Iterable[Path]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every specification that can be read. One that is broken stops only who asks for a device."""
    count = 0
    for folder in folders:
        for path in sorted(folder.glob("*")):
            if path.suffix not in (".json", ".yaml"):
                continue
            count += 1
            if count > _MAX_FILES:
                raise FailedPrecondition(f"there are more than {_MAX_FILES} CDI specifications")
            yield path, _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as source:
            data = source.read(MAX_BYTES + 1)
        spec = _parse(path, data) if len(data) <= MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise _broken(path, str(error)) from error
    if not isinstance(spec, dict):
        raise _broken(path, f"it is no object, or larger than {MAX_BYTES} bytes")
    return spec


def _parse(path: Path, data: bytes) -> object:
    if path.suffix == ".json":
        return json.loads(data)
    # Few nodes have such a file, and the module would be in memory on all.
    import yaml

    try:
        return yaml.safe_load(data)
    except yaml.YAMLError as error:
        raise ValueError(error) from error


def _list(path: Path, holder: dict[str, Any], key: str) -> list[dict[str, Any]]:
    value = holder.get(key) or []
    if not isinstance(value, list) or not all(isinstance(each, dict) for each in value):
        raise _broken(path, f"{key} is no list of objects")
    return value


def _broken(path: Path, why: str) -> FailedPrecondition:
    return FailedPrecondition(f"CDI specification {path} cannot be used: {why}")
