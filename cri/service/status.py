"""Status: can a pod be run, is there a network, and what the handlers can do."""

from __future__ import annotations

import json

from cri import guest_kernel
from cri.api import v1_pb2 as v1
from cri.daemon import HANDLERS, Daemon
from hostlib.tasks import in_thread


async def run(daemon: Daemon, request: v1.StatusRequest) -> v1.StatusResponse:
    user_namespaces = await in_thread(guest_kernel.has_user_namespaces, daemon.config.guest.dir)
    features = v1.RuntimeHandlerFeatures(
        recursive_read_only_mounts=True, user_namespaces=user_namespaces
    )
    return v1.StatusResponse(
        status=v1.RuntimeStatus(conditions=[runtime_condition(daemon), _network(daemon)]),
        info=_info(daemon) if request.verbose else {},
        runtime_handlers=[v1.RuntimeHandler(name=name, features=features) for name in HANDLERS],
        features=v1.RuntimeFeatures(
            supplemental_groups_policy=True,
            user_namespaces_host_network=False,
            mount_options=True,
        ),
    )


def runtime_condition(daemon: Daemon) -> v1.RuntimeCondition:
    """Ready once pods can be restored: the base snapshot is there, or is made on demand."""
    shape = daemon.config.guest.default_shape
    state = daemon.snapshots.state(shape)
    condition = v1.RuntimeCondition(type="RuntimeReady")
    if daemon.snapshots.ready(shape) is not None:
        condition.status = True
    elif state.error:
        condition.reason = "BaseSnapshotFailed"
        condition.message = state.error
    elif daemon.config.snapshot.on_demand:
        condition.status = True
    else:
        condition.reason = "BaseSnapshotBaking"
        condition.message = f"{state.phase}, {state.fraction:.0%}"
    return condition


def _network(daemon: Daemon) -> v1.RuntimeCondition:
    status, reason, message = daemon.network.ready()
    return v1.RuntimeCondition(type="NetworkReady", status=status, reason=reason, message=message)


def _info(daemon: Daemon) -> dict[str, str]:
    snapshots = [
        {
            "shape": each.shape,
            "key": each.key,
            "path": str(each.path),
            "accelerator": each.accelerator,
            "accelerator_reason": each.accelerator_reason,
            "warnings": list(each.warnings),
        }
        for each in daemon.snapshots.all()
    ]
    pool = {
        "shape": daemon.pool.shape,
        "size": daemon.pool.size,
        "max_size": daemon.pool.limits.ceiling,
        "ready": len(daemon.pool),
        "starting": daemon.pool.starting,
        "error": daemon.pool.error,
        "pressure": daemon.pool.pressure,
    }
    config = {
        "root": str(daemon.config.root),
        "state": str(daemon.config.state),
        "instance": daemon.config.instance,
        "guest": str(daemon.config.guest.dir),
        "streaming": daemon.streaming.base if daemon.streaming else "",
    }
    return {
        "config": json.dumps(config),
        "snapshots": json.dumps(snapshots),
        "pool": json.dumps(pool),
    }
