"""Images as volumes: read-only at a path, whole or a part, and never more than the image."""

from __future__ import annotations

from pathlib import Path

import pytest

from cri.api import v1_pb2
from demo import oci
from e2e.harness.daemon import Daemon
from e2e.harness.layered import layered
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import Registry
from hostlib import errors


def image(path: str, ref: str, sub: str = "", **more: object) -> v1_pb2.Mount:
    return v1_pb2.Mount(
        container_path=path,
        image=v1_pb2.ImageSpec(image=ref),
        image_sub_path=sub,
        **({"readonly": True} | more),  # type: ignore[arg-type]
    )


@pytest.fixture(scope="module")
def data(registry: Registry) -> str:
    """An image of two layers, whose links try to leave it."""
    low, high = oci.Layer(), oci.Layer()
    low.file("model/weights", "low").file("model/gone", "x").file(
        "bin/tool", "#!/bin/sh\necho ran", 0o755
    )
    high.file("model/weights", "high").delete("model/gone").file("etc/passwd", "the image's own")
    high.symlink("inside", "/model").symlink("up", "../../../../etc").symlink("host", "/etc/passwd")
    high.symlink("loop", "loop").symlink("proc", "/proc/self/root")
    return registry.push(oci.image([low, high], {}), "e2e/data")


def test_an_image_is_a_volume(daemon: Daemon, data: str) -> None:
    client = daemon.client
    image_id = client.pull_image(data)
    pod = Pod.run(daemon)
    container = pod.start(
        SHELL,
        SLEEP,
        mounts=[
            image("/data", data),
            image("/etc/model", image_id, "model"),
            image("/inside", data, "inside/"),
            image("/up", data, "up"),
            image("/file", data, "host"),
            image("/shell", SHELL, mount_options=["noexec"]),
        ],
    )
    assert container.sh("cat /data/model/weights; ls /data/model /etc/model /inside") == (
        "high/data/model:\nweights\n\n/etc/model:\nweights\n\n/inside:\nweights"
    )
    assert container.sh("/data/bin/tool") == "ran"
    assert container.sh("cat /up/passwd /file") == "the image's ownthe image's own"
    assert "permission denied" in container.sh("/shell/bin/sh -c : 2>&1 || true").lower()
    for path in ("/data/x", "/etc/model/x", "/file", "/shell/x"):
        assert "read-only" in container.sh(f"(echo > {path}) 2>&1 || true").lower(), path
    assert [each.image.image_ref for each in container.status().mounts][:2] == [image_id] * 2
    # The container still has it when it is removed; who comes later has not.
    client.remove_image(data)
    assert container.sh("cat /data/model/weights") == "high"
    with pytest.raises(errors.NotFound, match="pull"):
        pod.create(SHELL, SLEEP, name="late", mounts=[image("/data", data)])


def test_images_that_take_too_many_slots_are_merged(
    puller: Daemon, registry: Registry, built: dict[str, oci.Image]
) -> None:
    """A container that mounts three whole images: those that fit no more, layer by layer."""
    client = puller.client
    client.pull_image(SHELL)
    refs = []
    for name in "abc":
        layers = [oci.Layer().file(f"{name}/{n}", f"{name}{n}") for n in range(6)]
        refs.append(registry.push(layered(built["demo/shell"], layers), f"e2e/volume{name}"))
        client.pull_image(refs[-1])
    assert [puller.merged(ref) for ref in refs] == [False] * 3
    mounts = [image(f"/{name}", ref, name) for name, ref in zip("abc", refs, strict=True)]
    container = Pod.run(puller).start(SHELL, SLEEP, mounts=mounts)
    assert container.sh("cat /a/* /b/* /c/*") == "".join(f"{a}{n}" for a in "abc" for n in range(6))
    assert any(puller.merged(ref) for ref in refs)


def test_what_is_not_in_the_image_is_refused(daemon: Daemon, data: str) -> None:
    daemon.client.pull_image(data)
    pod = Pod.run(daemon)
    for mount, error, words in (
        (image("/v", data, "none"), errors.NotFound, "sub path"),
        (image("/v", data, "etc/passwd/below"), errors.NotFound, "sub path"),
        (image("/v", data, "loop"), errors.FailedPrecondition, "sub path"),
        (image("/v", data, "proc/etc"), errors.FailedPrecondition, "sub path"),
        (image("/v", data, "../etc"), errors.InvalidArgument, "relative path"),
        (image("/v", data, "/etc"), errors.InvalidArgument, "relative path"),
        (image("/v", data, readonly=False), errors.InvalidArgument, "read-only alone"),
        (image("/v", data, host_path="/tmp"), errors.InvalidArgument, "host_path and an image"),
        (image("/v", "registry.test/not/here:1"), errors.NotFound, "not here"),
        (image("/v", ""), errors.InvalidArgument, "no name"),
    ):
        with pytest.raises(error, match=words):
            pod.create(SHELL, SLEEP, mounts=[mount])
    assert pod.start(SHELL, SLEEP, mounts=[image("/v", data)]).sh("ls /v/model") == "weights"


def test_folders_that_an_image_calls_volumes(
    daemon: Daemon, registry: Registry, built: dict[str, oci.Image], tmp_path: Path
) -> None:
    """As in a container whose root is read-only; links and paths of /proc open nothing."""
    paths = ("/data", "made/deep/", "/covered", "/way/out", "/proc/sys/vm", "/out/vm", "/", "/a/..")
    layer = oci.Layer().directory("data", 0o750, 1000, 1000).file("data/there", "the image's")
    layer.symlink("way", "/etc").symlink("out", "/proc/sys")
    made = oci.derived(built["demo/shell"], {"Volumes": {path: {} for path in paths}}, [layer])
    ref = registry.push(made, "e2e/volumes")
    daemon.client.pull_image(ref)
    users = [v1_pb2.IDMapping(host_id=131072, container_id=0, length=65536)]
    own = v1_pb2.UserNamespace(mode=v1_pb2.POD, uids=users, gids=users)
    (tmp_path / "mine").write_text("the host's")
    (tmp_path / "mine").chmod(0o644)
    for space in (None, own):
        options = v1_pb2.NamespaceOption(pid=v1_pb2.CONTAINER, userns_options=space)
        context = v1_pb2.LinuxSandboxSecurityContext(namespace_options=options)
        pod = Pod.run(daemon, linux=v1_pb2.LinuxPodSandboxConfig(security_context=context))

        def start(name: str, *mounts: v1_pb2.Mount, pod: Pod = pod, **fields: object) -> Container:
            security = v1_pb2.LinuxContainerSecurityContext(
                readonly_rootfs=True,
                readonly_paths=["/proc/sys"],
                namespace_options=pod.config.linux.security_context.namespace_options,
                **fields,  # type: ignore[arg-type]
            )
            linux = v1_pb2.LinuxContainerConfig(security_context=security)
            return pod.start(ref, SLEEP, name=name, mounts=mounts, linux=linux)

        covered = v1_pb2.Mount(
            container_path="/covered",
            host_path=str(tmp_path),
            readonly=True,
            uidMappings=users if space else [],
            gidMappings=users if space else [],
        )
        root = start("root", covered)
        user = start("user", run_as_user=v1_pb2.Int64Value(value=1000))
        assert user.sh("stat -c '%u %a' /data; cat /data/there; echo mine > /data/mine") == (
            "1000 750\nthe image's"
        )
        assert root.sh("cat /data/there /covered/mine; echo x > /data/x") == "the image'sthe host's"
        root.sh("echo x > /made/deep/x; echo x > /etc/out/x")
        assert (
            user.sh("cat /data/mine; ls /data /made/deep")
            == "mine\n/data:\nmine\nthere\n\n/made/deep:"
        )
        shut = ("/x", "/made/x", "/covered/x", "/etc/x", "/proc/sys/vm/swappiness")
        for path in shut:
            assert "read-only" in root.sh(f"(echo 1 > {path}) 2>&1 || true").lower(), path
        pod.remove()
