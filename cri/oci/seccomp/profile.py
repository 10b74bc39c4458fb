"""A profile's JSON, checked, and decided for one container: its capabilities, CPU and kernel."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Final

from hostlib.errors import InvalidArgument

MAX_RULES: Final = 4096
MAX_NAMES: Final = 16384
MAX_ERRNO: Final = 4095
_MAX_TRACE: Final = 65535
EPERM: Final = 1

ACTIONS: Final[Mapping[str, int]] = {
    "SCMP_ACT_KILL": 0x00000000,
    "SCMP_ACT_KILL_THREAD": 0x00000000,
    "SCMP_ACT_KILL_PROCESS": 0x80000000,
    "SCMP_ACT_TRAP": 0x00030000,
    "SCMP_ACT_ERRNO": 0x00050000,
    "SCMP_ACT_TRACE": 0x7FF00000,
    "SCMP_ACT_LOG": 0x7FFC0000,
    "SCMP_ACT_ALLOW": 0x7FFF0000,
}
"""What the kernel is told for each; those with a value have it in the low 16 bits."""

OPERATORS: Final[Mapping[str, int]] = {
    "SCMP_CMP_NE": 1,
    "SCMP_CMP_LT": 2,
    "SCMP_CMP_LE": 3,
    "SCMP_CMP_EQ": 4,
    "SCMP_CMP_GE": 5,
    "SCMP_CMP_GT": 6,
    "SCMP_CMP_MASKED_EQ": 7,
}

ARCHITECTURES: Final = frozenset(
    f"SCMP_ARCH_{name}"
    for name in (
        *("X86", "X86_64", "X32", "ARM", "AARCH64", "MIPS", "MIPS64", "MIPS64N32", "MIPSEL"),
        *("MIPSEL64", "MIPSEL64N32", "PPC", "PPC64", "PPC64LE", "S390", "S390X", "PARISC"),
        *("PARISC64", "RISCV64", "LOONGARCH64", "M68K", "SH", "SHEB"),
    )
)

_FLAGS: Final[Mapping[str, int]] = {
    # Of one thread, as a process is before its exec.
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 2,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 4,
}
SPEC_ALLOW: Final = 4
"""What runc sets where a profile names no flags."""

_NATIVE: Final[Mapping[str, tuple[str, str]]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "amd64"),
    "aarch64": ("SCMP_ARCH_AARCH64", "arm64"),
}

_PROFILE: Final = frozenset(
    {"defaultAction", "defaultErrnoRet", "architectures", "archMap", "flags", "syscalls", "comment"}
    | {"listenerPath", "listenerMetadata"}
)
_RULE: Final = frozenset(
    {"name", "names", "action", "errnoRet", "args", "comment", "includes", "excludes"}
)
_ARGUMENT: Final = frozenset({"index", "value", "valueTwo", "op"})
_CONDITIONS: Final = frozenset({"arches", "caps", "minKernel"})
_NAME: Final = re.compile(r"[a-zA-Z0-9_]{1,64}")
_KERNEL: Final = re.compile(r"([0-9]{1,4})\.([0-9]{1,4})")


@dataclass(frozen=True)
class Argument:
    """A condition on an argument of the system call; `OPERATORS` has the operator. With MASKED_EQ
    `value` is the mask and `value_two` what is left."""

    index: int
    operator: int
    value: int
    value_two: int = 0


@dataclass(frozen=True)
class Rule:
    """`action` is what the kernel is told, its value in it."""

    names: tuple[str, ...]
    action: int
    arguments: tuple[Argument, ...] = ()


@dataclass(frozen=True)
class Profile:
    """What a container's calls are judged by. Equal ones are compiled once."""

    default: int
    architectures: tuple[str, ...]
    rules: tuple[Rule, ...]
    flags: int = SPEC_ALLOW
    stranger: int = ACTIONS["SCMP_ACT_KILL"]
    """For calls of other architectures."""


@dataclass(frozen=True)
class Target:
    """What rules can depend on. `kernel` is the guest's, major and minor."""

    capabilities: frozenset[str]
    kernel: tuple[int, int]
    machine: str = platform.machine()

    @property
    def native(self) -> tuple[str, str]:
        """The machine's name in libseccomp, and in Docker's conditions."""
        return _NATIVE.get(self.machine, (f"SCMP_ARCH_{self.machine.upper()}", self.machine))


def parse(text: bytes, target: Target) -> Profile:
    """The profile in a file, for this container. Raises `InvalidArgument`, which says where."""
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"it is no JSON: {error}") from error
    fields = _object(body, "the profile", _PROFILE)
    if fields.get("listenerPath") or fields.get("listenerMetadata"):
        raise InvalidArgument(
            "listenerPath: no agent of the host can be asked about a guest's system calls",
            hint="leave SCMP_ACT_NOTIFY and the listener out",
        )
    if "defaultAction" not in fields:
        raise InvalidArgument("defaultAction is missing", hint='for example "SCMP_ACT_ERRNO"')
    default = _action(fields, "defaultAction", "defaultErrnoRet", "")
    rules: list[Rule] = []
    listed = _list(fields, "syscalls", "", MAX_RULES)
    for number, entry in enumerate(listed):
        rule = _rule(entry, f"syscalls[{number}]", target)
        # What the default says anyway is no rule to libseccomp.
        if rule is not None and rule.action != default:
            rules.append(rule)
    if sum(len(rule.names) for rule in rules) > MAX_NAMES:
        raise InvalidArgument(f"syscalls: more than {MAX_NAMES} names")
    return Profile(default, _architectures(fields, target), tuple(rules), _flags(fields))


def _object(value: Any, where: str, known: Collection[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where} is no object")
    for key in value:
        if key not in known:
            raise InvalidArgument(f"{where}: unknown member {key[:80]!r}")
    return value


def _list(fields: Mapping[str, Any], key: str, where: str, most: int) -> list[Any]:
    """An absent list is an empty one, as is null."""
    value = fields.get(key)
    name = f"{where}.{key}" if where else key
    if value is None:
        return []
    if not isinstance(value, list):
        raise InvalidArgument(f"{name} is no list")
    if len(value) > most:
        raise InvalidArgument(f"{name} has more than {most} members")
    return value


def _strings(fields: Mapping[str, Any], key: str, where: str) -> list[str]:
    found = _list(fields, key, where, MAX_NAMES)
    for one in found:
        if not isinstance(one, str):
            raise InvalidArgument(f"{where + '.' if where else ''}{key}: {one!r} is no string")
    return found


def _number(value: Any, where: str, most: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise InvalidArgument(f"{where}: {str(value)[:40]} is no number from 0 to {most}")
    return value


def _action(fields: Mapping[str, Any], key: str, errno: str, where: str) -> int:
    prefix = f"{where}." if where else ""
    name = fields.get(key)
    if name == "SCMP_ACT_NOTIFY":
        raise InvalidArgument(
            f"{prefix}{key}: no agent of the host can be asked about a guest's system calls",
            hint="use another action than SCMP_ACT_NOTIFY",
        )
    if not isinstance(name, str) or name not in ACTIONS:
        raise InvalidArgument(
            f"{prefix}{key}: unknown action {str(name)[:80]!r}", hint=", ".join(ACTIONS)
        )
    value = fields.get(errno)
    if name not in ("SCMP_ACT_ERRNO", "SCMP_ACT_TRACE"):
        if value is not None:
            raise InvalidArgument(f"{prefix}{errno} does not go with {name}")
        return ACTIONS[name]
    most = MAX_ERRNO if name == "SCMP_ACT_ERRNO" else _MAX_TRACE
    return ACTIONS[name] | (EPERM if value is None else _number(value, prefix + errno, most))


def _rule(entry: Any, where: str, target: Target) -> Rule | None:
    """None for a rule that is not for this container."""
    fields = _object(entry, where, _RULE)
    names = _strings(fields, "names", where)
    if (name := fields.get("name")) is not None:
        if names:
            raise InvalidArgument(f"{where}: both name and names are given")
        if not isinstance(name, str):
            raise InvalidArgument(f"{where}.name is no string")
        names = [name]
    if not names:
        raise InvalidArgument(f"{where} names no system call")
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise InvalidArgument(f"{where}: {name[:80]!r} is no name of a system call")
    action = _action(fields, "action", "errnoRet", where)
    arguments = tuple(
        _argument(one, f"{where}.args[{number}]")
        for number, one in enumerate(_list(fields, "args", where, 6 * 8))
    )
    included = _applies(fields, "includes", where, target, every=True)
    excluded = _applies(fields, "excludes", where, target, every=False)
    return Rule(tuple(names), action, arguments) if included and not excluded else None


def _argument(entry: Any, where: str) -> Argument:
    fields = _object(entry, where, _ARGUMENT)
    name = fields.get("op")
    if not isinstance(name, str) or name not in OPERATORS:
        raise InvalidArgument(
            f"{where}.op: unknown operator {str(name)[:80]!r}", hint=", ".join(OPERATORS)
        )
    return Argument(
        _number(fields.get("index"), f"{where}.index", 5),
        OPERATORS[name],
        _number(fields.get("value", 0), f"{where}.value", 2**64 - 1),
        _number(fields.get("valueTwo", 0), f"{where}.valueTwo", 2**64 - 1),
    )


def _applies(
    fields: Mapping[str, Any], key: str, where: str, target: Target, *, every: bool
) -> bool:
    """Docker's conditions: `includes` wants each that it names, `excludes` any."""
    place = f"{where}.{key}"
    value = fields.get(key)
    given = _object({} if value is None else value, place, _CONDITIONS)
    met: list[bool] = []
    if arches := _strings(given, "arches", place):
        met.append(target.native[1] in arches)
    caps = _strings(given, "caps", place)
    if caps and every:
        met.append(all(cap in target.capabilities for cap in caps))
    elif caps:
        met.append(any(cap in target.capabilities for cap in caps))
    if (least := given.get("minKernel")) not in (None, ""):
        found = _KERNEL.match(least) if isinstance(least, str) else None
        if found is None:
            raise InvalidArgument(f"{place}.minKernel: {str(least)[:40]!r} is no kernel version")
        met.append(target.kernel >= (int(found[1]), int(found[2])))
    return all(met) if every else any(met)


def _architectures(fields: Mapping[str, Any], target: Target) -> tuple[str, ...]:
    native = target.native[0]
    found = _strings(fields, "architectures", "")
    mapped = _list(fields, "archMap", "", 64)
    if found and mapped:
        raise InvalidArgument("both architectures and archMap are given")
    for number, entry in enumerate(mapped):
        where = f"archMap[{number}]"
        one = _object(entry, where, {"architecture", "subArchitectures"})
        subs = _strings(one, "subArchitectures", where)
        _known([one.get("architecture"), *subs])
        if one["architecture"] == native:
            found = [native, *subs]
    _known(found)
    if found and native not in found:
        raise InvalidArgument(f"architectures: {native}, the machine's own, is not among them")
    # In one order, so that equal profiles are.
    return tuple(sorted({native, *found}, key=lambda name: (name != native, name)))


def _known(names: Collection[Any]) -> None:
    for name in names:
        if name not in ARCHITECTURES:
            raise InvalidArgument(
                f"unknown architecture {str(name)[:80]!r}", hint='for example "SCMP_ARCH_X86_64"'
            )


def _flags(fields: Mapping[str, Any]) -> int:
    names = _strings(fields, "flags", "")
    flags = 0 if names else SPEC_ALLOW
    for name in names:
        if name not in _FLAGS:
            raise InvalidArgument(
                f"flags: {name[:80]!r} cannot be set here", hint=", ".join(_FLAGS)
            )
        flags |= _FLAGS[name]
    return flags
