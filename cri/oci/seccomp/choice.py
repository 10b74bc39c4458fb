"""Which profile a container asks for, and the program for it."""

from __future__ import annotations

import base64
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from cri import guest_kernel
from cri.api import v1_pb2 as v1
from cri.oci.seccomp import default
from cri.oci.seccomp.compiler import compile_profile
from cri.oci.seccomp.profile import Target, parse
from hostlib.errors import FailedPrecondition, InvalidArgument, NotFound

MAX_FILE: Final = 1 << 20
"""Bytes of a profile's file."""

_LOCALHOST: Final = "localhost/"
_RUNTIME_DEFAULT: Final = ("runtime/default", "docker/default")


@dataclass(frozen=True)
class Choice:
    """A profile: the file's path, "" for the default of the runtime."""

    path: str


def choose(
    security: v1.LinuxContainerSecurityContext | v1.LinuxSandboxSecurityContext,
) -> Choice | None:
    """The profile that is asked for; None for none: unconfined, privileged, or nothing said.

    The message counts where both it and the deprecated path are given, as the kubelet does it.
    Raises `InvalidArgument`.
    """
    if security.HasField("seccomp"):
        found = _of_message(security.seccomp)
    else:
        found = _of_path(security.seccomp_profile_path)
    return None if security.privileged else found


def _of_message(profile: v1.SecurityProfile) -> Choice | None:
    kind, path = profile.profile_type, profile.localhost_ref
    if kind == v1.SecurityProfile.Localhost:
        return _localhost(path, "seccomp.localhost_ref")
    if kind not in (v1.SecurityProfile.RuntimeDefault, v1.SecurityProfile.Unconfined):
        raise InvalidArgument(
            f"seccomp: unknown profile_type {kind}", hint="RuntimeDefault, Unconfined or Localhost"
        )
    if path:
        raise InvalidArgument(
            f"seccomp: localhost_ref {path[:200]!r} goes with profile_type Localhost alone"
        )
    return Choice("") if kind == v1.SecurityProfile.RuntimeDefault else None


def _of_path(text: str) -> Choice | None:
    if text in ("", "unconfined"):
        return None
    if text in _RUNTIME_DEFAULT:
        return Choice("")
    if text.startswith(_LOCALHOST):
        return _localhost(text[len(_LOCALHOST) :], "seccomp_profile_path")
    raise InvalidArgument(
        f"seccomp_profile_path {text[:200]!r} is no profile",
        hint='"runtime/default", "unconfined" or "localhost//absolute/path"',
    )


def _localhost(path: str, field: str) -> Choice:
    if not path.startswith("/") or "\0" in path:
        raise InvalidArgument(
            f"{field}: {path[:200]!r} is no absolute path",
            hint="the kubelet names a file in its folder for profiles",
        )
    return Choice(path)


def program(choice: Choice, capabilities: Iterable[str], guest: Path) -> dict[str, Any]:
    """The spec's `linux.seccomp` for a container of these capabilities; `guest` is the folder of
    the guest's image. Blocking.

    Raises `InvalidArgument` for a profile that is none, `NotFound`, `FailedPrecondition`.
    """
    target = Target(frozenset(capabilities), guest_kernel.version(guest))
    if not choice.path:
        found = default.profile(target)
        compiled = compile_profile(found)
    else:
        try:
            found = parse(_read(choice.path), target)
            compiled = compile_profile(found)
        except InvalidArgument as error:
            raise InvalidArgument(
                f"seccomp profile {choice.path}: {error.message}", hint=error.hint
            ) from error
    return {"program": base64.b64encode(compiled).decode(), "flags": found.flags}


def _read(path: str) -> bytes:
    try:
        # Not blocking: whatever lies there, no fifo holds the thread up.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise InvalidArgument("it is no regular file")
            text = _all(descriptor)
        finally:
            os.close(descriptor)
    except FileNotFoundError as error:
        raise NotFound(
            f"seccomp profile {path} does not exist",
            hint="put it into the kubelet's folder for profiles on this node",
        ) from error
    except OSError as error:
        raise FailedPrecondition(f"seccomp profile {path}: {error.strerror}") from error
    if len(text) > MAX_FILE:
        raise InvalidArgument(f"it is longer than {MAX_FILE} bytes")
    return text


def _all(descriptor: int) -> bytes:
    text = b""
    while len(text) <= MAX_FILE and (piece := os.read(descriptor, MAX_FILE + 1 - len(text))):
        text += piece
    return text
