"""CreateContainer: the image held, the spec built, host folders opened, and the shim told."""

from __future__ import annotations

import dataclasses
import os
import time
from collections.abc import Sequence
from pathlib import Path

from google.protobuf import json_format

from cri import cpusets, growth, settle, signals
from cri.api import v1_pb2 as v1
from cri.daemon import Daemon
from cri.index import Container, Pod
from cri.oci import cdi
from cri.oci import resources as oci_resources
from cri.oci import spec as oci_spec
from cri.oci.mounts import ImageMount
from cri.oci.seccomp import choice
from cri.sources import Sources
from cri.trace import Trace
from hostlib import failpoint, ids
from hostlib.errors import (
    AlreadyExists,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    ResourceExhausted,
)
from hostlib.tasks import in_thread
from images.model import Image
from shim.records import ContainerMetadata, ContainerRecord, ImageRecord


async def run(daemon: Daemon, request: v1.CreateContainerRequest) -> v1.CreateContainerResponse:
    if not request.HasField("config"):
        raise InvalidArgument("no container config given")
    metadata = request.config.metadata
    if not metadata.name:
        raise InvalidArgument("the container has no name", hint="set metadata.name")
    pod = daemon.index.pods.find(request.pod_sandbox_id)
    if not pod.ready:
        raise FailedPrecondition(f"pod {pod.id} is not ready: {pod.record.reason}")
    key = ("container", pod.id, metadata.name, metadata.attempt)
    flight = (*key, request.config.SerializeToString(deterministic=True))
    if flight not in daemon.runs:
        taken = daemon.index.container_named(pod.id, metadata.name, metadata.attempt)
        if taken is not None:
            raise AlreadyExists(
                f"container {metadata.name} (attempt {metadata.attempt}) exists in pod"
                f" {pod.id}: {taken.id}",
                hint="remove it, or raise the attempt",
            )

    async def work() -> str:
        name = f"container {metadata.name} of pod {pod.id}"
        with daemon.names.claim(name, key), daemon.pool.giving_way():
            return await create(daemon, pod, request.config)

    return v1.CreateContainerResponse(container_id=await daemon.runs.run(flight, work))


async def create(daemon: Daemon, pod: Pod, config: v1.ContainerConfig) -> str:
    """Make the container; its id. When it fails nothing of it is left."""
    trace, name = daemon.trace_of(pod), f"create {config.metadata.name}"
    sandbox = settle.config_of(pod)
    with trace.step(name):
        try:
            return await _create(daemon, pod, sandbox, config, trace, name)
        finally:
            # With it or without, whatever others did meanwhile.
            await settle.settle(daemon, pod, sandbox)


async def _create(
    daemon: Daemon,
    pod: Pod,
    sandbox: v1.PodSandboxConfig,
    config: v1.ContainerConfig,
    trace: Trace,
    name: str,
) -> str:
    container_id = ids.new_object_id()
    with trace.step(f"{name}.image"):
        image = await daemon.images.runnable(daemon.find_image(config.image.image))
    wanted = await with_cdi_devices(config)
    resources = config.linux.resources
    oci_resources.check(resources)
    async with growth.room(daemon, pod, sandbox, {container_id: resources}, more=True):
        return await _make(daemon, pod, sandbox, config, wanted, image, trace, name, container_id)


async def _make(
    daemon: Daemon,
    pod: Pod,
    sandbox: v1.PodSandboxConfig,
    config: v1.ContainerConfig,
    wanted: v1.ContainerConfig,
    image: Image,
    trace: Trace,
    name: str,
    container_id: str,
) -> str:
    """The container in a VM that has room for it. `wanted` is `config` with its CDI devices."""
    cpus = guest_cpus(daemon, pod, config.linux.resources)
    built = oci_spec.build(
        container_id,
        sandbox,
        wanted,
        image.config,
        hostname=pod.record.hostname,
        cpus=cpus,
        target=_target(daemon, pod, config.linux.security_context.namespace_options),
    )
    if (chosen := choice.choose(config.linux.security_context)) is not None:
        with trace.step(f"{name}.seccomp"):
            built.spec["linux"]["seccomp"] = await in_thread(
                choice.program,
                chosen,
                built.spec["process"]["capabilities"]["bounding"],
                daemon.config.guest.dir,
            )
    record = _record(container_id, pod, config, image, cpus)
    await check_log(record.log_path)
    await failpoint.hit("container.create")
    shim = daemon.shim_of(pod)
    sources = Sources()
    try:
        with trace.step(f"{name}.volume images"):
            volumes = await image_volumes(daemon, built.images)
        record = dataclasses.replace(record, volume_images=tuple(each.id for each in volumes))
        for mount, volume in zip(built.images, volumes, strict=True):
            record.config["mounts"][mount.number]["image"]["image_ref"] = volume.id
        daemon.hold_images(record)
        with trace.step(f"{name}.host paths"):
            await in_thread(sources.add, built.spec, built.mounts, built.devices)

        async def ask() -> None:
            nonlocal record
            begun = trace.elapsed()
            for mount, volume in zip(built.images, volumes, strict=True):
                mount.entry["source"] = ":".join(each["name"] for each in layers(volume))
            answer = await shim.container_create(
                record,
                built.spec,
                layers(image),
                [layer for volume in volumes for layer in layers(volume)],
                sources,
            )
            record = dataclasses.replace(record, user=answer.get("user") or {})
            trace.add_parts(name, begun, answer.get("timings") or {})

        try:
            await ask()
        except ResourceExhausted:
            if all(len(each.mounts) == 1 for each in (image, *volumes)):
                raise
            # Other containers have the slots. Merged, an image needs one.
            with trace.step(f"{name}.merge"):
                image = await daemon.images.merge(image.id)
                volumes = [await daemon.images.merge(each.id) for each in volumes]
            await ask()
        await failpoint.hit("container.created")
    except BaseException:
        daemon.release_images(record)
        raise
    finally:
        sources.close()
    daemon.index.add_container(Container(record, built.spec["process"]))
    return container_id


async def with_cdi_devices(config: v1.ContainerConfig) -> v1.ContainerConfig:
    """The config with what its CDI devices add. Raises what `cdi.edits` does."""
    if not config.CDI_devices:
        return config
    found = await in_thread(cdi.edits, [each.name for each in config.CDI_devices])
    edited = v1.ContainerConfig()
    edited.CopyFrom(config)
    edited.mounts.extend(found.mounts)
    edited.envs.extend(v1.KeyValue(key=key, value=value.encode()) for key, value in found.env)
    return edited


async def image_volumes(daemon: Daemon, mounts: Sequence[ImageMount]) -> list[Image]:
    """The images that are mounted as volumes. Raises `NotFound` for one that is not here."""
    found = []
    for mount in mounts:
        try:
            image = daemon.find_image(mount.image.image)
        except NotFound as error:
            raise NotFound(f"{mount.where}: {error.message}", hint="pull it first") from error
        found.append(await daemon.images.runnable(image))
    return found


def _target(daemon: Daemon, pod: Pod, options: v1.NamespaceOption) -> str:
    """The id of the container whose PID namespace is asked for, "" when none is. Raises
    `InvalidArgument`, `NotFound`, `FailedPrecondition`."""
    if options.pid != v1.TARGET:
        return ""
    if not options.target_id:
        raise InvalidArgument(
            "the PID namespace of which container?", hint="set target_id to a container of the pod"
        )
    found = daemon.index.containers.find(options.target_id)
    if found.record.pod_id != pod.id:
        raise InvalidArgument(f"target container {found.id} belongs to another pod")
    if found.record.state != "running":
        raise FailedPrecondition(f"target container {found.id} is {found.record.state}")
    return found.id


def layers(image: Image) -> list[dict[str, str]]:
    """The image's layers, or what they are merged into, as the shim wants them, lowest first. A
    name fits the agent's pattern and is the same for the same content, so that containers of a pod
    share its slot."""
    return [
        {"name": layer.diff_id.rpartition(":")[2][:64], "path": str(layer.path)}
        for layer in image.mounts
    ]


def guest_cpus(
    daemon: Daemon, pod: Pod, wanted: v1.LinuxContainerResources, container_id: str = ""
) -> str:
    """The processors of its VM that a container gets. Raises `InvalidArgument`."""
    others = [
        each.record.guest_cpus
        for each in daemon.index.containers_of(pod.id)
        if each.id != container_id and each.record.state != "exited"
    ]
    return cpusets.guest_cpus(wanted.cpuset_cpus, pod.vm.size.vcpus, others)


def _record(
    container_id: str, pod: Pod, config: v1.ContainerConfig, image: Image, cpus: str
) -> ContainerRecord:
    stop_signal = signals.of_request(config.stop_signal) or image.config.stop_signal or "SIGTERM"
    signals.number(stop_signal)
    body = json_format.MessageToDict(config, preserving_proto_field_name=True)
    return ContainerRecord(
        id=container_id,
        pod_id=pod.id,
        metadata=ContainerMetadata(config.metadata.name, config.metadata.attempt),
        created_at=time.time_ns(),
        image=ImageRecord(config.image.user_specified_image or config.image.image, image.id),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        mounts=tuple(body.get("mounts", ())),
        log_path=log_path(pod.record.log_directory, config.log_path),
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        tty=config.tty,
        stop_signal=stop_signal,
        config=body,
        guest_cpus=cpus,
    )


def log_path(folder: str, name: str) -> str:
    """Where the log goes; "" when the pod or the container asks for none.

    Raises `InvalidArgument` when it would lie outside the pod's folder.
    """
    if not folder or not name:
        return ""
    path = os.path.normpath(os.path.join(folder, name))
    if not path.startswith(os.path.normpath(folder) + "/"):
        raise InvalidArgument(f"log path {name!r} lies outside the pod's log directory {folder}")
    return path


async def check_log(path: str) -> None:
    """Make the log's folder, and show that the log can be written. Raises `PermissionDenied`,
    `FailedPrecondition`."""
    if not path:
        return

    def attempt() -> None:
        Path(path).parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640))

    try:
        await in_thread(attempt)
    except OSError as error:
        kind = PermissionDenied if isinstance(error, PermissionError) else FailedPrecondition
        raise kind(
            f"log {path} cannot be written: {error.strerror}",
            hint="set log_directory and log_path to a place that can be written",
        ) from error
