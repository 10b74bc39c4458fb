"""PodSandboxStatus."""

from __future__ import annotations

import json
import time

from google.protobuf import json_format

from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Pod
from cri.service import container_status
from shim.records import PodRecord


async def run(daemon: Daemon, request: v1.PodSandboxStatusRequest) -> v1.PodSandboxStatusResponse:
    pod = daemon.index.pods.find(request.pod_sandbox_id)
    return v1.PodSandboxStatusResponse(
        status=status(pod),
        info=info(pod) if request.verbose else {},
        # The two go together, or not at all (evented PLEG).
        containers_statuses=[
            container_status.status(each) for each in daemon.index.containers_of(pod.id)
        ],
        timestamp=time.time_ns(),
    )


def metadata(record: PodRecord) -> v1.PodSandboxMetadata:
    found = record.metadata
    return v1.PodSandboxMetadata(
        name=found.name, uid=found.uid, namespace=found.namespace, attempt=found.attempt
    )


def state(record: PodRecord) -> v1.PodSandboxState:
    return v1.SANDBOX_READY if record.state == "ready" else v1.SANDBOX_NOTREADY


def status(pod: Pod) -> v1.PodSandboxStatus:
    record = pod.record
    ips = record.network.ips
    linux = v1.LinuxPodSandboxConfig()
    json_format.ParseDict(record.linux, linux, ignore_unknown_fields=True)
    return v1.PodSandboxStatus(
        id=record.id,
        metadata=metadata(record),
        state=state(record),
        created_at=record.created_at,
        network=v1.PodSandboxNetworkStatus(
            ip=ips[0] if ips else "", additional_ips=[v1.PodIP(ip=ip) for ip in ips[1:]]
        ),
        linux=v1.LinuxPodSandboxStatus(
            namespaces=v1.Namespace(options=linux.security_context.namespace_options)
        ),
        labels=record.labels,
        annotations=record.annotations,
        runtime_handler=record.runtime_handler,
    )


def info(pod: Pod) -> dict[str, str]:
    """What ``crictl inspectp`` shows."""
    vm = pod.vm
    body = {
        "pid": vm.shim_pid,
        "vm": {
            "id": vm.id,
            "shape": vm.shape,
            "size": str(vm.size),
            "snapshot": vm.key,
            "netns": str(vm.netns),
            "folder": str(vm.folder),
        },
        "reason": pod.record.reason,
        "config": pod.record.config,
    }
    return {"info": json.dumps(body)}
