"""A profile to classic BPF, by libseccomp, as runc does it.

The library is QEMU's own dependency, so it is there wherever Thaw runs; it is called by ctypes, for
its Python binding is built for Debian's own Python alone.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
from collections.abc import Callable
from typing import Any, Final

from cri.oci.seccomp.profile import ACTIONS, Profile, Rule
from hostlib.errors import FailedPrecondition, Internal, InvalidArgument

LIBRARY: Final = "libseccomp.so.2"
MAX_INSTRUCTIONS: Final = 4096
"""The kernel's limit."""

_BAD_ARCHITECTURE: Final = 2
_OPTIMIZE: Final = 8
_BINARY_TREE: Final = 2
_UNKNOWN: Final = -1

NEWER: Final = {
    "cachestat": 451,
    "fchmodat2": 452,
    "map_shadow_stack": 453,
    "futex_wake": 454,
    "futex_wait": 455,
    "futex_requeue": 456,
    "statmount": 457,
    "listmount": 458,
    "lsm_get_self_attr": 459,
    "lsm_set_self_attr": 460,
    "lsm_list_modules": 461,
    "mseal": 462,
    "setxattrat": 463,
    "getxattrat": 464,
    "listxattrat": 465,
    "removexattrat": 466,
    "open_tree_attr": 467,
}
"""System calls that the installed libseccomp may be too old for. Since 424 they have one number on
all architectures."""

_FIRST_SHARED: Final = 424
_X32: Final = 0x40000000

# linux/audit.h: what the kernel tells a filter of the architecture. x32 calls itself X86_64.
_AUDIT: Final = {
    "SCMP_ARCH_X86_64": 0xC000003E,
    "SCMP_ARCH_X86": 0x40000003,
    "SCMP_ARCH_AARCH64": 0xC00000B7,
    "SCMP_ARCH_ARM": 0x40000028,
}

# linux/filter.h
_LOAD: Final = 0x20
_JUMP: Final = 0x05
_EQUAL: Final = 0x15
_AT_LEAST: Final = 0x35
_RETURN: Final = 0x06
_NUMBER: Final = 0
_ARCHITECTURE: Final = 4

_ENOSYS: Final = ACTIONS["SCMP_ACT_ERRNO"] | errno.ENOSYS
_REFUSALS: Final = tuple(
    ACTIONS[f"SCMP_ACT_{name}"] for name in ("KILL", "KILL_PROCESS", "TRAP", "ERRNO")
)


class _Comparison(ctypes.Structure):
    _fields_ = (
        ("argument", ctypes.c_uint),
        ("operator", ctypes.c_int),
        ("first", ctypes.c_uint64),
        ("second", ctypes.c_uint64),
    )


@functools.cache
def _library() -> Any:
    try:
        library = ctypes.CDLL(LIBRARY)
        library.seccomp_init.restype = ctypes.c_void_p
        library.seccomp_init.argtypes = [ctypes.c_uint32]
        library.seccomp_release.argtypes = [ctypes.c_void_p]
        library.seccomp_release.restype = None
        library.seccomp_attr_set.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_uint32]
        library.seccomp_arch_add.argtypes = [ctypes.c_void_p, ctypes.c_uint32]
        library.seccomp_arch_resolve_name.argtypes = [ctypes.c_char_p]
        library.seccomp_arch_resolve_name.restype = ctypes.c_uint32
        library.seccomp_syscall_resolve_name.argtypes = [ctypes.c_char_p]
        library.seccomp_syscall_resolve_num_arch.argtypes = [ctypes.c_uint32, ctypes.c_int]
        # Not c_char_p: the library's strings are the caller's to free.
        library.seccomp_syscall_resolve_num_arch.restype = ctypes.c_void_p
        library.seccomp_rule_add_array.argtypes = [
            ctypes.c_void_p,
            ctypes.c_uint32,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.POINTER(_Comparison),
        ]
        library.seccomp_export_bpf.argtypes = [ctypes.c_void_p, ctypes.c_int]
    except (OSError, AttributeError) as error:
        raise FailedPrecondition(
            f"seccomp profiles need {LIBRARY}: {error}",
            hint="install libseccomp2 2.5 or newer, or ask for the profile Unconfined",
        ) from error
    return library


class _Version(ctypes.Structure):
    _fields_ = (("major", ctypes.c_uint), ("minor", ctypes.c_uint), ("micro", ctypes.c_uint))


def version() -> str:
    """The installed library's. Raises `FailedPrecondition`."""
    library = _library()
    library.seccomp_version.restype = ctypes.POINTER(_Version)
    found = library.seccomp_version().contents
    return f"{found.major}.{found.minor}.{found.micro}"


@functools.lru_cache(maxsize=64)
def compile_profile(profile: Profile) -> bytes:
    """The program, as the kernel takes it. Blocking: some 10 ms, but once for each profile.

    Raises `InvalidArgument` when the profile's rules cannot be one program, `FailedPrecondition`
    without the library.
    """
    program = _newer(profile) + _compile(profile)
    if len(program) > MAX_INSTRUCTIONS * 8:
        raise InvalidArgument(
            f"the profile comes to {len(program) // 8} instructions; the kernel takes"
            f" {MAX_INSTRUCTIONS}",
            hint="name fewer architectures or system calls",
        )
    return program


def _compile(profile: Profile) -> bytes:
    library = _library()
    context = library.seccomp_init(profile.default)
    if not context:
        raise Internal("libseccomp made no filter")
    try:
        # A program that decides in few steps, however many calls it names.
        _check(library.seccomp_attr_set(context, _OPTIMIZE, _BINARY_TREE), "optimize")
        _check(library.seccomp_attr_set(context, _BAD_ARCHITECTURE, profile.stranger), "strangers")
        for name in profile.architectures[1:]:
            token = library.seccomp_arch_resolve_name(name[len("SCMP_ARCH_") :].lower().encode())
            code = library.seccomp_arch_add(context, token) if token else -errno.EINVAL
            if code:
                raise InvalidArgument(f"architecture {name} does not go with this machine")
        for rule in profile.rules:
            _add(library, context, rule)
        return _export(lambda target: library.seccomp_export_bpf(context, target))
    finally:
        library.seccomp_release(context)


def _check(code: int, what: str) -> None:
    if code:
        raise Internal(f"libseccomp: {what}: {os.strerror(abs(code))}")


def _export(export: Callable[[int], int]) -> bytes:
    target = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    try:
        _check(export(target), "export")
        return os.pread(target, os.fstat(target).st_size, 0)
    finally:
        os.close(target)


def _add(library: Any, context: Any, rule: Rule) -> None:
    indices = [one.index for one in rule.arguments]
    # As in runc: conditions on one argument are alternatives, else all must be met.
    alternatives = len(set(indices)) < len(indices)
    groups = [(one,) for one in rule.arguments] if alternatives else [rule.arguments]
    for name in rule.names:
        number = library.seccomp_syscall_resolve_name(name.encode())
        if number == _UNKNOWN:
            if name in NEWER and rule.arguments:
                raise InvalidArgument(
                    f"arguments of {name} cannot be looked at: the installed libseccomp does not"
                    " know it",
                    hint="install a newer libseccomp2",
                )
            # Of another architecture, or newer than all: to the guest's kernel it is none.
            continue
        for group in groups:
            array = (_Comparison * max(1, len(group)))(
                *[_Comparison(one.index, one.operator, one.value, one.value_two) for one in group]
            )
            code = library.seccomp_rule_add_array(context, rule.action, number, len(group), array)
            # Said twice.
            if code not in (0, -errno.EEXIST):
                raise InvalidArgument(
                    f"the rule for {name} does not go with the profile's others:"
                    f" {os.strerror(abs(code))}"
                )


def _instruction(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
    return struct.pack("=HBBI", code, yes, no, value)


@functools.cache
def _first_unknown() -> int:
    """The lowest number that the installed libseccomp has no name for."""
    library = _library()
    number = _FIRST_SHARED
    native = library.seccomp_arch_resolve_name(b"x86_64")
    while library.seccomp_syscall_resolve_num_arch(native, number):
        number += 1
    return number


def _newer(profile: Profile) -> bytes:
    """What goes before libseccomp's program: calls newer than the library are judged here.

    Those that the profile names get its action. The others, where the default is a refusal, get
    ENOSYS, as runc has it: C libraries fall back upon that, and on nothing else.
    """
    first = _first_unknown()
    named: dict[int, int] = {}
    for rule in profile.rules:
        for name in rule.names:
            if NEWER.get(name, 0) >= first:
                named.setdefault(NEWER[name], rule.action)
    refuses = profile.default & 0xFFFF0000 in _REFUSALS
    audits = sorted({_AUDIT[name] for name in profile.architectures if name in _AUDIT})
    if not audits or not (named or refuses):
        return b""
    verdicts = [_instruction(_LOAD, _NUMBER)]
    for number, action in sorted(named.items()):
        verdicts += [_instruction(_EQUAL, number, no=1), _instruction(_RETURN, action)]
    if refuses:
        verdicts.append(_instruction(_RETURN, _ENOSYS))
    # Past the verdicts: libseccomp's own.
    rest = len(verdicts)
    checks = [
        _instruction(_EQUAL, audit, yes=len(audits) - place) for place, audit in enumerate(audits)
    ]
    head = [
        _instruction(_LOAD, _NUMBER),
        # Two checks of the number, one load, the architectures and one jump come before `rest`.
        _instruction(_AT_LEAST, first, no=len(audits) + rest + 3),
        _instruction(_AT_LEAST, _X32, yes=len(audits) + rest + 2),
        _instruction(_LOAD, _ARCHITECTURE),
        *checks,
        _instruction(_JUMP, rest),
    ]
    return b"".join(head + verdicts)
