"""A container's process: command, environment, working directory, user."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from typing import Any, Final, Protocol

from cri.api import v1_pb2 as v1
from hostlib.errors import InvalidArgument

MAX_GROUPS: Final = 4096
"""Supplementary groups of a process, as the agent has it."""

DEFAULT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class ImageConfig(Protocol):
    """What an image says about its process, and which of its folders are volumes."""

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
    @property
    def volumes(self) -> Sequence[str]: ...


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
    """The process's user; names are looked up in the guest, in the container's own files. Raises
    `InvalidArgument`."""
    check_ids(security)
    if security.HasField("run_as_user") and security.run_as_username:
        raise InvalidArgument(
            f"both run_as_user {security.run_as_user.value} and run_as_username"
            f" {security.run_as_username[:80]!r} are given",
            hint="give one of them",
        )
    if any(bad in security.run_as_username for bad in ":\0\n/"):
        raise InvalidArgument(f"run_as_username {security.run_as_username[:80]!r} is no user name")
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
    return {
        "username": name or image_user or "0",
        "additionalGids": list(security.supplemental_groups),
        # With Strict, what /etc/group of the image says of the user's groups does not count.
        "imageGroups": security.supplemental_groups_policy == v1.Merge,
    }


def check_ids(
    security: v1.LinuxContainerSecurityContext | v1.LinuxSandboxSecurityContext,
) -> None:
    """Refuse ids that the kernel does not have. Raises `InvalidArgument`."""
    groups = security.supplemental_groups
    if len(groups) > MAX_GROUPS:
        raise InvalidArgument(f"{len(groups)} supplemental groups, more than {MAX_GROUPS}")
    given = {
        "run_as_user": [security.run_as_user.value],
        "run_as_group": [security.run_as_group.value],
        "supplemental_groups": groups,
    }
    for field, values in given.items():
        for value in values:
            if not 0 <= value < 2**32 - 1:
                raise InvalidArgument(
                    f"{field}: {value} is out of range", hint="ids are from 0 to 4294967294"
                )
    if security.supplemental_groups_policy not in (v1.Merge, v1.Strict):
        raise InvalidArgument(
            f"unknown supplemental groups policy {security.supplemental_groups_policy}",
            hint="Merge or Strict",
        )
