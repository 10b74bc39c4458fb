"""Manifests of static pods."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from e2e.harness.refs import SHELL

Json = dict[str, Any]

FOREVER = "sleep 1000000 & wait"
"""The end of a script that goes on; its traps work meanwhile."""


def pod(name: str, *containers: Json, labels: dict[str, str] | None = None, **spec: Any) -> Json:
    """A pod; `spec` is as Kubernetes has it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"suite": "e2e", **(labels or {})}},
        "spec": {
            "containers": list(containers),
            "terminationGracePeriodSeconds": 2,
            "dnsPolicy": "Default",
            **spec,
        },
    }


def container(
    name: str, script: str = FOREVER, *, image: str = SHELL, mounts: dict[str, str] | None = None,
    **fields: Any,
) -> Json:  # fmt: skip
    """A container that runs a shell script; `mounts` are paths of volumes, by their names."""
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/sh", "-c", script],
        "volumeMounts": [{"name": k, "mountPath": v} for k, v in (mounts or {}).items()],
        **fields,
    }


def host_path(name: str, path: Path, kind: str = "Directory") -> Json:
    """A volume of the host's."""
    return {"name": name, "hostPath": {"path": str(path), "type": kind}}


def run(script: str) -> Json:
    """The action of a probe or hook that is a shell script."""
    return {"exec": {"command": ["/bin/sh", "-c", script]}}


def probe(action: Json, **fields: Any) -> Json:
    """A probe that asks each second and believes the first answer."""
    return {"periodSeconds": 1, "failureThreshold": 1, "timeoutSeconds": 10, **fields, **action}


def limits(memory: str, cpu: str = "1") -> Json:
    """A container's resources, of the class Guaranteed."""
    return {"limits": {"memory": memory, "cpu": cpu}}
