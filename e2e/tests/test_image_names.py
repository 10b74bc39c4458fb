"""What is said of images that are here, and their removal."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cri.api import v1_pb2
from demo import oci
from e2e.harness.command import thaw
from e2e.harness.crane import CraneRegistry
from e2e.harness.crictl import Crictl
from e2e.harness.daemon import Daemon
from e2e.harness.layered import layered
from e2e.harness.pods import Pod
from e2e.harness.pushed import of, pull, pulled
from e2e.harness.refs import SLEEP
from e2e.harness.registry import Registry
from e2e.harness.waiting import until
from hostlib import errors
from images.tests.build import Entry, image, tar

LAYER = tar(Entry("etc/faulty", b"x" * 200_000))


def usage(daemon: Daemon) -> tuple[int, int]:
    """Bytes of the image and of the container filesystem."""
    found = daemon.client.image(
        "ImageFsInfo", v1_pb2.ImageFsInfoRequest(), v1_pb2.ImageFsInfoResponse
    )
    (images,), (containers,) = found.image_filesystems, found.container_filesystems
    assert Path(images.fs_id.mountpoint).is_dir() and images.inodes_used.value > 0
    return images.used_bytes.value, containers.used_bytes.value


def test_removal_by_any_name_removes_every_name(
    puller: Daemon, registry: Registry, built: dict[str, oci.Image]
) -> None:
    made = layered(built["demo/shell"], [oci.Layer().file("etc/names", "n")])
    refs = [registry.push(made, f"e2e/{name}", tag) for name in ("n", "m") for tag in ("1", "2")]
    image_id = oci.digest(made.config.data)
    empty = usage(puller)[0]
    names = [
        refs[0], refs[3], f"registry.test/e2e/m@{made.digest}", image_id, image_id[7:],
        image_id[7:20], f"registry.test/e2e/n:whatever@{made.digest}",
    ]  # fmt: skip
    for name in names:
        for ref in refs:
            pull(puller, ref)
        (found,) = puller.client.images()
        assert sorted(found.repo_tags) == sorted(refs)
        assert len(found.repo_digests) == 2
        assert usage(puller)[0] >= empty + found.size > empty
        puller.client.remove_image(name)
        assert puller.client.images() == [], name
        assert usage(puller)[0] == empty
        puller.client.remove_image(name)
    with pytest.raises(errors.InvalidArgument):
        puller.client.remove_image("Bad//Name")


def test_one_id_in_every_answer(
    puller: Daemon, registry: Registry, built: dict[str, oci.Image]
) -> None:
    config = json.loads(built["demo/shell"].config.data)["config"]
    made = of(built["demo/shell"], [], config={**config, "User": "1234:5"})
    ref = registry.push(made, "e2e/pinned")
    wanted = oci.digest(made.config.data)
    assert puller.client.pull_image(ref) == wanted
    assert thaw(puller, "pull", ref).stdout.strip() == wanted
    for handler, known in (("thaw", True), ("runc", False)):
        spec = v1_pb2.ImageSpec(image=ref, runtime_handler=handler)
        request = v1_pb2.PullImageRequest(image=spec)
        if known:
            puller.client.image("PullImage", request, v1_pb2.PullImageResponse)
        else:
            with pytest.raises(errors.NotFound, match="no runtime for handler 'runc'"):
                puller.client.image("PullImage", request, v1_pb2.PullImageResponse)
    (listed,) = puller.client.images()
    status = puller.client.image_status(ref)
    assert listed == status
    assert (listed.id, listed.spec.image, listed.pinned) == (wanted, wanted, True)
    assert (listed.uid.value, listed.username) == (1234, "")
    pod = Pod.run(puller)
    before = usage(puller)
    made_of = [ref, wanted, wanted[7:19], f"registry.test/e2e/pinned@{made.digest}"]
    containers = [pod.start(name, SLEEP, name=f"c{n}") for n, name in enumerate(made_of)]
    for container, name in zip(containers, made_of, strict=True):
        found = container.status()
        assert (found.image_ref, found.image_id) == (wanted, wanted)
        assert found.image.image == name
    assert {(c.image_ref, c.image_id) for c in puller.client.containers()} == {(wanted, wanted)}
    # What containers write is theirs, and goes with them.
    containers[0].sh("dd if=/dev/urandom of=/tmp/big bs=1M count=20 2>/dev/null && sync", 120)
    until("it is counted", lambda: usage(puller)[1] >= before[1] + 20 * 1024 * 1024)
    assert usage(puller)[0] == before[0]
    # A pinned image goes when it is told to; its containers keep their files.
    puller.client.remove_image(ref)
    assert puller.client.images() == []
    assert containers[1].sh("echo runs") == "runs"
    assert usage(puller)[0] >= listed.size
    pod.remove()
    until(
        "both filesystems shrink",
        lambda: usage(puller)[1] < before[1] and usage(puller)[0] < before[0],
    )


def test_pins(puller: Daemon, registry: Registry, built: dict[str, oci.Image]) -> None:
    """They go with the name, are told to the kubelet, and are true after the daemon's death."""
    old, new = (layered(built["demo/shell"], [oci.Layer().file("v", v)]) for v in "12")
    ref = registry.push(old, "e2e/keep")
    other = registry.push(layered(built["demo/shell"], [oci.Layer().file("v", "3")]), "e2e/other")
    first = pulled(puller, ref, "--pin")
    assert first.pinned
    pull(puller, other)
    shown = [line.split() for line in thaw(puller, "images").stdout.splitlines()]
    assert [line[0] for line in shown if line[-1] == "yes"] == [ref]
    registry.push(new, "e2e/keep")
    second = pull(puller, ref)
    assert second.id != first.id and second.pinned
    puller.kill()
    puller.start()
    assert {each.id: each.pinned for each in puller.client.images()}[second.id]
    # Who clears away what is not needed spares it.
    Crictl(puller).run("rmi", "--prune")
    assert [each.id for each in puller.client.images()] == [second.id]
    assert thaw(puller, "unpin", ref).stderr == ""
    assert [each.pinned for each in puller.client.images()] == [False]
    for wrong, says in (("registry.test/none:1", "no image"), ("Bad//Name", "Bad//Name")):
        done = thaw(puller, "unpin", wrong)
        assert done.returncode == 1 and says in done.stderr
    # What the configuration pins stays so.
    always = registry.push(old, "e2e/pinned")
    assert pull(puller, always).pinned
    assert "images.pinned" in thaw(puller, "unpin", always).stderr
    found = puller.client.image_status(always)
    assert found is not None and found.pinned


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [
        ("", None, ""), ("0", 0, ""), ("web", None, "web"), ("web:staff", None, "web"),
        ("7:staff", 7, ""), ("4294967294", 4294967294, ""), ("²", None, "²"), ("٣", None, "٣"),
        ("99999999999999999999999", None, "99999999999999999999999"), ("-1", None, "-1"),
    ],
)  # fmt: skip
def test_whom_an_image_runs_as(
    puller: Daemon, second: CraneRegistry, user: str, uid: int | None, name: str
) -> None:
    """An image may claim anything; no list of images fails for it."""
    second.write_hosts(puller.folder / "hosts")
    made = image(LAYER, config={"User": user})
    blobs = [oci.Blob("", data) for data in made.blobs.values()]
    config = next(each for each in blobs if oci.digest(each.data) == made.config_digest)
    layers = tuple(each for each in blobs if each is not config)
    ref = second.push(
        oci.Image(oci.Blob(made.media_type, made.manifest), config, layers), "e2e/users"
    )
    pull(puller, ref)
    (found,) = puller.client.images()
    assert (found.uid.value if found.HasField("uid") else None, found.username) == (uid, name)
