"""Profiles and what they are compiled to, which a small interpreter of classic BPF runs here."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri.api import v1_pb2 as v1
from cri.oci.capabilities import ALL, DEFAULT
from cri.oci.seccomp import choice, compiler, default
from cri.oci.seccomp.profile import ACTIONS, SPEC_ALLOW, Profile, Target, parse
from hostlib.errors import InvalidArgument, NotFound, ThawError

X86_64, X86 = 0xC000003E, 0x40000003
ALLOW, EPERM, ENOSYS = 0x7FFF0000, 0x00050001, 0x00050000 | 38
TARGET = Target(frozenset(DEFAULT), (6, 12), "x86_64")
READ, WRITE, CHMOD, UNSHARE, CLONE, CLONE3, SOCKET = 0, 1, 90, 272, 56, 435, 41
BPF, OPEN_BY_HANDLE_AT, MSEAL, NEWEST, X32 = 321, 304, 462, 500, 0x40000000
IO_URING_SETUP = 425

Wire = dict[str, Any]


def judge(program: bytes, number: int, *args: int, audit: int = X86_64) -> int:
    """What the program returns: the instructions of linux/filter.h that seccomp takes."""
    padded = [*args, 0, 0, 0, 0, 0, 0][:6]
    data = struct.pack("=IIQ6Q", number, audit, 0, *padded)
    code = [struct.unpack_from("=HBBI", program, at) for at in range(0, len(program), 8)]
    place = accumulator = 0
    while True:
        kind, yes, no, value = code[place]
        place += 1
        if kind == 0x20:
            accumulator = struct.unpack_from("=I", data, value)[0]
        elif kind == 0x05:
            place += value
        elif kind == 0x06:
            return int(value)
        elif kind == 0x54:
            accumulator &= value
        else:
            met = {
                0x15: accumulator == value,
                0x25: accumulator > value,
                0x35: accumulator >= value,
                0x45: accumulator & value != 0,
            }[kind]
            place += yes if met else no


def compiled(body: Wire, target: Target = TARGET) -> bytes:
    return compiler.compile_profile(parse(json.dumps(body).encode(), target))


def rule(*names: str, action: str = "SCMP_ACT_ALLOW", **more: Any) -> Wire:
    return {"names": list(names), "action": action, **more}


def body(*rules: Wire, action: str = "SCMP_ACT_ERRNO", **more: Any) -> Wire:
    return {"defaultAction": action, "syscalls": list(rules), **more}


def test_names_actions_and_values() -> None:
    program = compiled(
        body(
            rule("read", "write", "no_such_call"),
            rule("chmod", action="SCMP_ACT_ERRNO", errnoRet=5),
            rule("unshare", action="SCMP_ACT_KILL_PROCESS"),
            rule("socket", action="SCMP_ACT_LOG"),
            defaultErrnoRet=7,
        )
    )
    assert judge(program, READ) == judge(program, WRITE) == ALLOW
    assert judge(program, CHMOD) == 0x00050005
    assert judge(program, UNSHARE) == 0x80000000
    assert judge(program, SOCKET) == ACTIONS["SCMP_ACT_LOG"]
    assert judge(program, CLONE) == 0x00050007
    # Another architecture is none of the profile's; so is x32.
    assert judge(program, READ, audit=X86) == 0
    assert judge(program, X32 | READ) == 0


def test_architectures() -> None:
    names = ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]
    mapped = {"architecture": "SCMP_ARCH_X86_64", "subArchitectures": names[1:]}
    other = {"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}
    for more in ({"architectures": names}, {"archMap": [other, mapped]}):
        program = compiled(body(rule("read", "chown32"), **more))
        assert judge(program, READ) == judge(program, X32 | READ) == ALLOW
        # By each one's own numbers.
        assert judge(program, 3, audit=X86) == judge(program, 212, audit=X86) == ALLOW
        assert judge(program, 0, audit=X86) == EPERM
        assert judge(program, NEWEST, audit=X86) == ENOSYS


@pytest.mark.parametrize(
    ("operator", "value", "two", "allowed", "refused"),
    [
        ("NE", 5, 0, [4, 6, 5 << 32], [5]),
        ("LT", 5, 0, [0, 4], [5, 6, 1 << 40]),
        ("LE", 5, 0, [5], [6]),
        ("EQ", 1 << 40, 0, [1 << 40], [0, (1 << 40) + 1]),
        ("GE", 5, 0, [5, 1 << 40], [4]),
        ("GT", 5, 0, [6], [5]),
        ("MASKED_EQ", 0xF0, 0x30, [0x30, 0x3F, 0x133], [0x40, 0xF0]),
    ],
)
def test_operators(
    operator: str, value: int, two: int, allowed: list[int], refused: list[int]
) -> None:
    argument = {"index": 2, "value": value, "valueTwo": two, "op": f"SCMP_CMP_{operator}"}
    program = compiled(body(rule("read", args=[argument])))
    assert {judge(program, READ, 0, 0, one) for one in allowed} == {ALLOW}
    assert {judge(program, READ, 0, 0, one) for one in refused} == {EPERM}


def test_conditions_on_several_arguments() -> None:
    def equal(index: int, value: int) -> Wire:
        return {"index": index, "value": value, "op": "SCMP_CMP_EQ"}

    both = compiled(body(rule("read", args=[equal(0, 1), equal(1, 2)])))
    assert judge(both, READ, 1, 2) == ALLOW
    assert judge(both, READ, 1, 3) == judge(both, READ, 0, 2) == EPERM
    # On one argument they are alternatives.
    either = compiled(body(rule("read", args=[equal(0, 1), equal(0, 2)])))
    assert judge(either, READ, 1) == judge(either, READ, 2) == ALLOW
    assert judge(either, READ, 3) == EPERM


def test_conditions_on_the_container() -> None:
    def allowed(**conditions: Any) -> bool:
        return judge(compiled(body(rule("read", **conditions))), READ) == ALLOW

    assert allowed(includes={"caps": ["CAP_CHOWN"]})
    assert not allowed(includes={"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]})
    assert not allowed(excludes={"caps": ["CAP_CHOWN", "CAP_SYS_ADMIN"]})
    assert allowed(excludes={"caps": ["CAP_SYS_ADMIN"]}, includes={})
    assert allowed(includes={"arches": ["amd64", "arm"]})
    assert not allowed(excludes={"arches": ["amd64"]})
    assert allowed(includes={"minKernel": "6.12"})
    assert not allowed(includes={"minKernel": "6.13.1"})


def test_calls_newer_than_the_compiler() -> None:
    refusing = compiled(body(rule("mseal", "read")))
    assert judge(refusing, MSEAL) == ALLOW
    assert judge(refusing, NEWEST) == ENOSYS
    assert judge(refusing, NEWEST, audit=X86) == 0
    # Known to it and not allowed: the profile's own word.
    assert judge(refusing, CLONE3) == EPERM
    allowing = compiled(body(rule("mseal", action="SCMP_ACT_ERRNO"), action="SCMP_ACT_ALLOW"))
    assert judge(allowing, MSEAL) == EPERM
    assert judge(allowing, NEWEST) == judge(allowing, READ) == ALLOW


def test_the_default_goes_by_capability() -> None:
    def verdicts(capabilities: frozenset[str] | set[str]) -> bytes:
        target = Target(frozenset(capabilities), (6, 12), "x86_64")
        return compiler.compile_profile(default.profile(target))

    usual, every = verdicts(DEFAULT), verdicts(frozenset(ALL))
    new_user = 0x10000000
    assert len(every) <= compiler.MAX_INSTRUCTIONS * 8
    for number in (READ, WRITE, CHMOD, MSEAL):
        assert judge(usual, number) == judge(every, number) == ALLOW
    assert judge(usual, 3, audit=X86) == ALLOW
    assert judge(usual, X32 | READ) == ENOSYS
    for number in (UNSHARE, BPF, OPEN_BY_HANDLE_AT):
        assert (judge(usual, number), judge(every, number)) == (EPERM, ALLOW)
    assert judge(usual, CLONE, 0x11) == ALLOW
    assert (judge(usual, CLONE, new_user), judge(every, CLONE, new_user)) == (EPERM, ALLOW)
    assert (judge(usual, CLONE3), judge(every, CLONE3)) == (ENOSYS, ALLOW)
    assert judge(every, IO_URING_SETUP) == EPERM
    assert (judge(usual, SOCKET, 2), judge(usual, SOCKET, 40)) == (ALLOW, EPERM)
    assert judge(usual, 135, 0xFFFFFFFF) == ALLOW
    assert judge(usual, 135, 0x40000) == EPERM


BAD: list[tuple[Any, str]] = [
    ([], "no object"),
    ({}, "defaultAction"),
    (body(action="SCMP_ACT_NOTIFY"), "SCMP_ACT_NOTIFY"),
    (body(action="allow"), "allow"),
    (body(defaultErrnoRet=4096), "4096"),
    (body(defaultErrnoRet=True), "defaultErrnoRet"),
    (body(action="SCMP_ACT_ALLOW", defaultErrnoRet=1), "does not go with"),
    (body(listenerPath="/run/x"), "listenerPath"),
    (body(extra=1), "extra"),
    (body(syscalls={}), "syscalls"),
    (body({"action": "SCMP_ACT_ALLOW"}), "names no system call"),
    (body(rule("re ad")), "re ad"),
    (body(rule("read", action="x")), r"syscalls\[0\].action"),
    (body(rule("read", name="read")), "both name and names"),
    (body(rule("read", args=[{"index": 6, "op": "SCMP_CMP_EQ"}])), r"args\[0\].index"),
    (body(rule("read", args=[{"index": 0, "op": "=="}])), "=="),
    (body(rule("read", args=[{"index": 0, "op": "SCMP_CMP_EQ", "value": -1}])), "value"),
    (body(rule("read", includes={"minKernel": "new"})), "minKernel"),
    (body(rule("read", includes={"moon": []})), "moon"),
    (body(architectures=["SCMP_ARCH_Z80"]), "Z80"),
    (body(architectures=["SCMP_ARCH_X86"]), "machine's own"),
    (body(architectures=["SCMP_ARCH_X86_64", "SCMP_ARCH_PPC64"]), "PPC64"),
    (body(architectures=["SCMP_ARCH_X86_64"], archMap=[{"architecture": "x"}]), "both"),
    (body(flags=["SECCOMP_FILTER_FLAG_NEW_LISTENER"]), "LISTENER"),
]


@pytest.mark.parametrize(("profile", "says"), BAD)
def test_profiles_that_are_refused(profile: Any, says: str) -> None:
    with pytest.raises(InvalidArgument, match=says):
        compiled(profile)


def test_flags() -> None:
    assert parse(json.dumps(body()).encode(), TARGET).flags == SPEC_ALLOW
    named = body(flags=["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_TSYNC"])
    assert parse(json.dumps(named).encode(), TARGET).flags == 2


_MEMBERS = (
    *("defaultAction", "syscalls", "names", "name", "action", "args", "index", "op", "errnoRet"),
    *("architectures", "archMap", "architecture", "subArchitectures", "flags", "includes", "caps"),
    *("minKernel", "value"),
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(_MEMBERS),
            inner,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(
    _json
    | st.builds(
        lambda inner: {"defaultAction": "SCMP_ACT_ALLOW", **inner},
        st.dictionaries(st.sampled_from(["syscalls", "archMap", "flags", "architectures"]), _json),
    )
)
def test_any_json_is_a_profile_or_refused(value: Any) -> None:
    try:
        found = parse(json.dumps(value).encode(), TARGET)
    except InvalidArgument:
        return
    assert isinstance(found, Profile)
    assert hash(found) == hash(found)


@given(st.binary(max_size=100))
def test_any_bytes_are_a_profile_or_refused(value: bytes) -> None:
    try:
        parse(value, TARGET)
    except InvalidArgument:
        pass


def security(**more: Any) -> v1.LinuxContainerSecurityContext:
    return v1.LinuxContainerSecurityContext(**more)


def test_choices() -> None:
    kinds = v1.SecurityProfile
    default_choice = choice.Choice("")
    assert choice.choose(security()) is None
    assert choice.choose(security(seccomp=kinds())) == default_choice
    assert choice.choose(security(seccomp_profile_path="docker/default")) == default_choice
    assert choice.choose(security(seccomp_profile_path="unconfined")) is None
    assert choice.choose(security(seccomp_profile_path="localhost//a/b")) == choice.Choice("/a/b")
    local = kinds(profile_type=kinds.Localhost, localhost_ref="/a")
    assert choice.choose(security(seccomp=local)) == choice.Choice("/a")
    assert choice.choose(security(seccomp=local, privileged=True)) is None
    # The message counts.
    free = kinds(profile_type=kinds.Unconfined)
    assert choice.choose(security(seccomp=free, seccomp_profile_path="runtime/default")) is None
    for bad in (
        {"seccomp": kinds(profile_type=kinds.Localhost, localhost_ref="a")},
        {"seccomp": kinds(localhost_ref="/a")},
        {"seccomp_profile_path": "localhost/a"},
        {"seccomp_profile_path": "x"},
    ):
        with pytest.raises(InvalidArgument):
            choice.choose(security(**bad))


def test_programs(tmp_path: Path) -> None:
    (tmp_path / "guest.json").write_text('{"kernel_version": "6.12.95+deb12-amd64"}')
    found = choice.program(choice.Choice(""), DEFAULT, tmp_path)
    assert judge(base64.b64decode(found["program"]), READ) == ALLOW
    file = tmp_path / "profile.json"
    file.write_text(json.dumps(body(rule("read", includes={"minKernel": "6.12"}))))
    found = choice.program(choice.Choice(str(file)), DEFAULT, tmp_path)
    assert judge(base64.b64decode(found["program"]), READ) == ALLOW
    file.write_text("{")
    with pytest.raises(InvalidArgument, match=r"profile.json: it is no JSON"):
        choice.program(choice.Choice(str(file)), DEFAULT, tmp_path)
    file.write_bytes(b" " * (choice.MAX_FILE + 1))
    with pytest.raises(InvalidArgument, match="longer"):
        choice.program(choice.Choice(str(file)), DEFAULT, tmp_path)
    with pytest.raises(InvalidArgument, match="regular"):
        choice.program(choice.Choice("/dev/null"), DEFAULT, tmp_path)
    with pytest.raises(NotFound):
        choice.program(choice.Choice(str(tmp_path / "none")), DEFAULT, tmp_path)
    with pytest.raises(ThawError, match="guest image"):
        choice.program(choice.Choice(""), DEFAULT, tmp_path / "none")
