"""A container's process: command, environment, working directory, user."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from cri.api import v1_pb2 as v1
from hostlib.errors import InvalidArgument, Unimplemented

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageConfig(Protocol):
    """What an image says about its process."""

    @property
    def user(self) -> str: ...
    @property
    def env(self) -> Sequence[str]: ...
    @property
    def entrypoint(self) -> Sequence[str]: ...
    @property
    def cmd(self) -> Sequence[str]: ...
    @property
    def working_dir(self) -> str: ...


def arguments(config: v1.ContainerConfig, image: ImageConfig) -> list[str]:
    """Kubernetes' rule: a command replaces the entrypoint and the image's cmd, args the cmd alone.

    Raises `InvalidArgument` when nothing is left to run.
    """
    command, args = list(config.command), list(config.args)
    if not command:
        command = list(image.entrypoint)
        args = args or list(image.cmd)
    argv = command + args
    if not argv or not argv[0]:
        raise InvalidArgument(
            "no command specified", hint="neither the container nor its image names one"
        )
    return argv


def environment(
    config: v1.ContainerConfig, image_env: Iterable[str], *, hostname: str
) -> list[str]:
    """The image's variables, then the container's over them; HOSTNAME, TERM and PATH as containerd
    gives them."""
    merged = {"PATH": DEFAULT_PATH, "HOSTNAME": hostname}
    if config.tty:
        merged["TERM"] = "xterm"
    for item in image_env:
        name, _, value = item.partition("=")
        if name:
            merged[name] = value
    for entry in config.envs:
        if not entry.key or "=" in entry.key or "\0" in entry.key:
            raise InvalidArgument(f"malformed name of an environment variable: {entry.key!r}")
        try:
            merged[entry.key] = entry.value.decode()
        except UnicodeDecodeError as error:
            raise InvalidArgument(f"environment variable {entry.key} is not UTF-8") from error
    return [f"{name}={value}" for name, value in merged.items()]


def working_dir(path: str) -> str:
    """Absolute and without dots. Raises `InvalidArgument`."""
    if not path.startswith("/"):
        raise InvalidArgument(f"working directory {path!r} is not absolute")
    return posixpath.normpath(path)


def user(security: v1.LinuxContainerSecurityContext, image_user: str) -> dict[str, Any]:
    """The process's user; names are looked up in the guest, in the container's own files."""
    if security.HasField("run_as_user"):
        name = str(security.run_as_user.value)
    else:
        name = security.run_as_username
    if security.HasField("run_as_group"):
        if not name:
            raise InvalidArgument(
                "run_as_group needs run_as_user or run_as_username", hint="set the user too"
            )
        name = f"{name}:{security.run_as_group.value}"
    for value in (security.run_as_user.value, security.run_as_group.value):
        if not 0 <= value < 2**32 - 1:
            raise InvalidArgument(f"user or group id {value} is out of range")
    if security.supplemental_groups_policy == v1.Strict:
        raise Unimplemented("the supplemental groups policy Strict is not supported yet")
    return {
        "username": name or image_user or "0",
        "additionalGids": list(security.supplemental_groups),
    }
