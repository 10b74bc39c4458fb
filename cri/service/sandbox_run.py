"""RunPodSandbox: a VM from the pool, its network, the eight restore steps, and the pod is up."""

from __future__ import annotations

import ipaddress
import logging
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from cri import cgroups, guest_kernel, identity, settle, shapes
from cri.api import v1_pb2 as v1
from cri.daemon import HANDLERS, Daemon
from cri.index import Pod
from cri.network.api import Attachment, Dns, HostPort, PodIdentity
from cri.oci import resources, user_namespace
from cri.oci import spec as oci_spec
from cri.oci.sysctls import normalized
from cri.trace import Trace
from cri.vms import Vm
from hostlib import failpoint, ids
from hostlib.errors import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    ThawError,
    Unavailable,
)
from hostlib.tasks import in_thread
from shim.records import PodMetadata, PodNetworkRecord, PodRecord

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What the request comes to, before anything is done."""

    config: v1.PodSandboxConfig
    handler: str
    hostname: str
    shape: str
    ports: tuple[HostPort, ...]


async def run(daemon: Daemon, request: v1.RunPodSandboxRequest) -> v1.RunPodSandboxResponse:
    plan = check(daemon, request)
    if users_of(plan.config) is not None:
        await check_guest(daemon)
    metadata = plan.config.metadata
    key = (metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
    # A client that went away comes back with the same request while the first still runs: both
    # get the one pod.
    flight = ("pod", key, request.SerializeToString(deterministic=True))
    if flight not in daemon.runs and (taken := daemon.index.pod_named(key)) is not None:
        raise AlreadyExists(
            f"pod {metadata.namespace}/{metadata.name} (uid {metadata.uid}, attempt"
            f" {metadata.attempt}) exists: {taken.id}",
            hint="remove it, or raise the attempt",
        )

    async def work() -> str:
        name = f"pod {metadata.namespace}/{metadata.name}"
        with daemon.names.claim(name, ("pod", *key)), daemon.pool.giving_way():
            return await start(daemon, plan)

    return v1.RunPodSandboxResponse(pod_sandbox_id=await daemon.runs.run(flight, work))


def check(daemon: Daemon, request: v1.RunPodSandboxRequest) -> Plan:
    """Refuse what cannot be. Raises `InvalidArgument`, `NotFound`, `Unimplemented`."""
    if not request.HasField("config"):
        raise InvalidArgument("no sandbox config given")
    config = request.config
    if not config.HasField("metadata") or not config.metadata.name:
        raise InvalidArgument("the sandbox has no name", hint="set metadata.name")
    if request.runtime_handler not in HANDLERS:
        raise NotFound(
            f"no runtime for handler {request.runtime_handler!r} is configured",
            hint='the handlers are "thaw" and ""',
        )
    oci_spec.check_sandbox(config)
    for wanted in (config.linux.resources, config.linux.overhead):
        resources.check(wanted)
    cgroups.parent_path(config.linux.cgroup_parent)
    if config.log_directory and not os.path.isabs(config.log_directory):
        raise InvalidArgument(f"log directory {config.log_directory!r} is not absolute")
    guest = daemon.config.guest
    shape = shapes.pick(*shapes.wanted(config), guest.shapes, guest.default_shape)
    return Plan(config, request.runtime_handler, identity.hostname(config), shape, _ports(config))


def _ports(config: v1.PodSandboxConfig) -> tuple[HostPort, ...]:
    found = []
    for port in config.port_mappings:
        for number in (port.container_port, port.host_port):
            if not 0 <= number <= 65535:
                raise InvalidArgument(f"port {number} is out of range")
        if not port.container_port or not port.host_port:
            continue
        if port.host_ip:
            try:
                ipaddress.ip_address(port.host_ip)
            except ValueError as error:
                raise InvalidArgument(
                    f"host port {port.host_port}: {error}", hint="host_ip is an address, or empty"
                ) from error
        if port.protocol == v1.UDP:
            found.append(HostPort("udp", port.container_port, port.host_port, port.host_ip))
        elif port.protocol == v1.SCTP:
            found.append(HostPort("sctp", port.container_port, port.host_port, port.host_ip))
        else:
            found.append(HostPort("tcp", port.container_port, port.host_port, port.host_ip))
    return tuple(found)


async def start(daemon: Daemon, plan: Plan) -> str:
    """Make the pod; its id. When it fails nothing of it is left."""
    pod_id = ids.new_object_id()
    metadata = plan.config.metadata
    trace = daemon.traces.begin(pod_id, metadata.name, metadata.namespace)
    with trace.step("total"):
        await make_log_directory(plan.config.log_directory)
        pod = await _place(daemon, plan, pod_id, trace)
        if pod is None:
            # A VM can fail though a thousand others of its snapshot did not.
            pod = await _place(daemon, plan, pod_id, trace, last=True)
        assert pod is not None
        daemon.add_pod(pod)
        daemon.index.pod_added(pod)
        settle.begin(daemon, pod)
    return pod_id


async def _place(
    daemon: Daemon, plan: Plan, pod_id: str, trace: Trace, *, last: bool = False
) -> Pod | None:
    """The pod, in a VM that is its own. None where the VM died or did not answer while it became
    the pod's, which is no fault of the pod's; the `last` one's error is raised. When it fails
    nothing of it is left."""
    metadata = plan.config.metadata
    with trace.step("vm"):
        await failpoint.hit("sandbox.vm")
        vm = await daemon.pool.take(plan.shape)
    # Out of the pool's small share of the processors, beside what follows.
    settle.enter(daemon, vm, plan.config, {})
    attachment: Attachment | None = None
    pod: Pod | None = None
    who = PodIdentity(pod_id, metadata.name, metadata.namespace, metadata.uid)
    try:
        with trace.step("network"):
            await failpoint.hit("sandbox.network")
            attachment = await daemon.network.attach(
                vm.id,
                vm.netns,
                who,
                port_mappings=plan.ports,
                dns=_dns(plan.config.dns_config),
                annotations=dict(plan.config.annotations),
            )
        pod = Pod(_record(pod_id, plan, attachment), vm)
        with trace.step("bind"):
            await failpoint.hit("sandbox.bind")
            await bind(daemon, pod, plan, attachment, trace)
        await failpoint.hit("sandbox.bound")
    except BaseException as error:
        await _roll_back(daemon, vm, who, attachment)
        if pod is None or last or not isinstance(error, DeadlineExceeded | Unavailable):
            raise
        log.warning("pod %s gets another VM, as %s failed: %s", pod_id[:12], vm.id, error)
        return None
    return pod


async def bind(daemon: Daemon, pod: Pod, plan: Plan, attachment: Attachment, trace: Trace) -> None:
    resolv = await in_thread(
        identity.resolv_conf, plan.config.dns_config, daemon.config.network.dns_servers
    )
    network = dict(attachment.guest)
    sysctls = normalized(plan.config.linux.sysctls)
    if sysctls:
        network["sysctls"] = {**network.get("sysctls", {}), **sysctls}
    who = identity.identity(plan.hostname, attachment.ips, resolv)
    begun = trace.elapsed()
    users = users_of(plan.config)
    answer = await daemon.shim_of(pod).bind(
        pod.record, network, who, users.to_oci() if users else None
    )
    timings = dict(answer.get("timings") or {})
    # The sum of the guest's own steps, which stand beside it.
    timings.pop("guest", None)
    trace.add_parts("bind", begun, timings)


async def check_guest(daemon: Daemon) -> None:
    """Raises `FailedPrecondition` unless pods can have user namespaces."""
    if not await in_thread(guest_kernel.has_user_namespaces, daemon.config.guest.dir):
        raise FailedPrecondition(
            "the guest's kernel shows files with their own owners alone, so that no pod can have a"
            " user namespace",
            hint="build the guest image with Linux 6.3 or newer, or leave hostUsers at its default",
        )


def users_of(config: v1.PodSandboxConfig) -> user_namespace.Mappings | None:
    """The mappings of the pod's user namespace, where it asks for one."""
    return user_namespace.of_pod(config.linux.security_context.namespace_options)


def _dns(dns: v1.DNSConfig) -> Dns:
    return Dns(tuple(dns.servers), tuple(dns.searches), tuple(dns.options))


def _record(pod_id: str, plan: Plan, attachment: Attachment) -> PodRecord:
    config = plan.config
    metadata = config.metadata
    return PodRecord(
        id=pod_id,
        metadata=PodMetadata(metadata.name, metadata.uid, metadata.namespace, metadata.attempt),
        created_at=time.time_ns(),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        runtime_handler=plan.handler,
        log_directory=config.log_directory,
        hostname=plan.hostname,
        cgroup_parent=config.linux.cgroup_parent,
        network=PodNetworkRecord(attachment.interface, attachment.ips, attachment.opaque),
        port_mappings=tuple(_json(port) for port in config.port_mappings),
        dns=_json(config.dns_config),
        linux=_json(config.linux),
        config=_json(config),
    )


def _json(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    return found


async def make_log_directory(path: str) -> None:
    """The kubelet makes the folder itself; crictl does not. Raises `FailedPrecondition`."""
    if not path:
        return
    try:
        await in_thread(lambda: Path(path).mkdir(mode=0o755, parents=True, exist_ok=True))
    except OSError as error:
        raise FailedPrecondition(
            f"log directory {path} cannot be made: {error.strerror}",
            hint="set log_directory to a folder that can be written",
        ) from error


async def _roll_back(
    daemon: Daemon, vm: Vm, who: PodIdentity, attachment: Attachment | None
) -> None:
    try:
        opaque = attachment.opaque if attachment is not None else {}
        await daemon.network.detach(vm.id, vm.netns, who, opaque)
    except ThawError as error:
        log.warning("the network of pod %s was not freed: %s", who.id, error)
    await daemon.kill(vm)
