"""Images that come from no registry."""

from __future__ import annotations

import gzip
import io
import json
import os
import queue
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cri.api import thaw_pb2
from demo import oci
from e2e.harness import docker_socket
from e2e.harness.command import THAW, thaw
from e2e.harness.crane import crane
from e2e.harness.daemon import Daemon
from e2e.harness.docker_socket import DockerSocket
from e2e.harness.faulty import FaultyRegistry
from e2e.harness.layered import layered
from e2e.harness.pods import Pod
from e2e.harness.pushed import pulled, store
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import Registry
from e2e.harness.waiting import until
from images.tests.build import Built, Entry, image, sha, tar

NAME = "registry.test/demo/sourced:one"


LAYER = tar(Entry("etc/faulty", b"x" * 200_000))


@pytest.fixture(scope="module")
def sourced(built: dict[str, oci.Image]) -> oci.Image:
    """The shell, with a file of its own and a layer that comes twice."""
    top = oci.Layer().file("etc/sourced", "from elsewhere\n")
    return layered(built["demo/shell"], [oci.Layer(), top, oci.Layer()])


def refused(daemon: Daemon, says: str, *argv: str, **environment: str) -> None:
    before = store(daemon)
    done = thaw(daemon, "pull", *argv, environment=environment)
    assert done.returncode == 1
    assert says in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert store(daemon) == before


def test_each_source_gives_the_same_image_and_it_runs(
    puller: Daemon, registry: Registry, sourced: oci.Image, tmp_path: Path
) -> None:
    """The archive and the layout are crane's, the socket speaks Docker's documented protocol."""
    registry.push(sourced, "e2e/sourced", "one")
    origin = registry.url.removeprefix("http://") + "/e2e/sourced:one"
    wanted = oci.digest(sourced.config.data)
    crane("pull", origin, str(tmp_path / "image.tar"))
    crane("pull", "--format=oci", origin, str(tmp_path / "layout"))
    with tarfile.open(tmp_path / "layout.tar", "w") as archive:
        archive.add(tmp_path / "layout", ".")
    saved = docker_socket.save(sourced, NAME, "docker.io/library/other:two")
    (tmp_path / "saved.tar").write_bytes(saved)
    digest = f"@{sourced.digest}"
    tag = "127.0.0.1"
    cases = [
        (f"docker-archive:{tmp_path}/image.tar", origin, None),
        (f"docker-archive:{tmp_path}/saved.tar", NAME, None),
        (f"docker-archive:{tmp_path}/saved.tar:other:two", "docker.io/library/other:two", None),
        (f"oci-layout:{tmp_path}/layout", "localhost/layout:latest", f"localhost/layout{digest}"),
        (f"oci-archive:{tmp_path}/layout.tar", "localhost/layout:latest",
         f"localhost/layout{digest}"),
    ]  # fmt: skip
    assert tag in origin
    for source, name, known in cases:
        found = pulled(puller, source, "--pin")
        assert (found.id, found.pinned) == (wanted, True), source
        assert name in found.repo_tags, source
        assert list(found.repo_digests) == ([known] if known else []), source
        puller.client.remove_image(name)
        assert puller.client.image_status(wanted) is None
    with DockerSocket(tmp_path / "docker.sock", {"demo/sourced:one": saved}) as docker:
        host = f"unix://{docker.path}"
        found = pulled(puller, "docker-daemon:demo/sourced:one", DOCKER_HOST=host)
        assert docker.asked == ["/images/demo/sourced:one/get"]
        assert (found.id, list(found.repo_tags)) == (wanted, ["docker.io/demo/sourced:one"])
        assert not found.pinned
        refused(puller, "No such image: x:y", "docker-daemon:x:y", DOCKER_HOST=host)
    named = pulled(puller, f"oci-layout:{tmp_path}/layout", "--as", "team/own:2")
    assert "docker.io/team/own:2" in named.repo_tags and named.id == wanted
    pod = Pod.run(puller)
    container = pod.start("team/own:2", SLEEP)
    assert container.sh("cat /etc/sourced") == "from elsewhere"
    assert container.status().image_id == container.status().image_ref == wanted
    pod.remove()
    puller.client.remove_image(wanted)


def test_a_layout_of_several_images(
    puller: Daemon, built: dict[str, oci.Image], tmp_path: Path
) -> None:
    layout = tmp_path / "many"
    oci.save(built["demo/shell"], layout)
    index = json.loads((layout / "index.json").read_text())
    (entry,) = index["manifests"]
    notes = [
        {"org.opencontainers.image.ref.name": "v1"},
        {"org.opencontainers.image.ref.name": "v2", "io.containerd.image.name": "a.example/b:v2"},
    ]
    platform = {"os": "linux", "architecture": "s390x"}
    index["manifests"] = [entry | {"annotations": each} for each in notes]
    (layout / "index.json").write_text(json.dumps(index))
    refused(puller, "name one: :v1, :v2", f"oci-layout:{layout}")
    refused(puller, "has no image v3", f"oci-layout:{layout}:v3")
    first = pulled(puller, f"oci-layout:{layout}:v1")
    assert "localhost/many:v1" in first.repo_tags
    assert "a.example/b:v2" in pulled(puller, f"oci-layout:{layout}:v2").repo_tags
    # Without tags they are one image's platforms, of which an entry without one may be any.
    index["manifests"] = [entry | {"platform": platform}, entry]
    (layout / "index.json").write_text(json.dumps(index))
    found = pulled(puller, f"oci-layout:{layout}", "--as", "platforms")
    assert found.id == first.id
    for name in ("localhost/many:v1", "a.example/b:v2", "platforms"):
        assert name in " ".join(found.repo_tags) or puller.client.image_status(name)


def _member(archive: tarfile.TarFile, name: str, data: bytes, **more: object) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in more.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data) if info.isreg() else None)


def test_sources_that_are_refused(puller: Daemon, sourced: oci.Image, tmp_path: Path) -> None:
    """Each leaves the store as it was."""
    secret = tmp_path / "secret"
    secret.write_text("root only")
    saved = docker_socket.save(sourced, NAME)
    places = {name: tmp_path / name for name in ("cut", "gz", "noise", "lie", "empty", "out")}
    places["cut"].write_bytes(saved[: len(saved) // 2])
    places["gz"].write_bytes(gzip.compress(saved[:100_000]))
    places["noise"].write_bytes(b"no archive at all" * 100)
    config = json.loads(sourced.config.data)
    config["rootfs"]["diff_ids"][0] = sha(b"other")
    lying = oci.Image(
        sourced.manifest, oci.Blob(oci.CONFIG, json.dumps(config).encode()), sourced.layers
    )
    places["lie"].write_bytes(docker_socket.save(lying, NAME))
    with tarfile.open(places["empty"], "w") as archive:
        _member(archive, "manifest.json", b"[]")
    with tarfile.open(places["out"], "w") as archive:
        # A link that leaves the archive leads nowhere.
        link = {"type": tarfile.SYMTYPE, "linkname": f"../../../../../../..{secret}"}
        _member(archive, "c.json", b"", **link)
        entry = [{"Config": "c.json", "RepoTags": [NAME], "Layers": []}]
        _member(archive, "manifest.json", json.dumps(entry).encode())
    for name, says in {
        "cut": "no usable tar archive", "gz": "gunzip", "noise": "no usable tar archive",
        "lie": "configuration says", "empty": "holds 0 images", "out": "has no file c.json",
    }.items():  # fmt: skip
        refused(puller, says, f"docker-archive:{places[name]}")
    refused(puller, "is no OCI image layout", f"oci-archive:{places['empty']}")
    refused(puller, "there is no folder", f"oci-layout:{tmp_path}/nowhere")
    refused(puller, "there is no", f"docker-archive:{tmp_path}/nowhere.tar")
    refused(puller, "cannot be asked", "docker-daemon:a", DOCKER_HOST=f"unix://{tmp_path}/none")
    refused(puller, "only unix:///PATH", "docker-daemon:a", DOCKER_HOST="tcp://127.0.0.1:1")
    refused(puller, "--as names an image", SHELL, "--as", "other")


def write_layout(folder: Path, made: Built) -> str:
    """The image as an OCI layout; what to pull it by."""
    blobs = folder / "blobs/sha256"
    blobs.mkdir(parents=True, exist_ok=True)
    for digest, data in {**made.blobs, made.digest: made.manifest}.items():
        (blobs / digest[7:]).unlink(missing_ok=True)
        (blobs / digest[7:]).write_bytes(data)
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    entry = {"mediaType": made.media_type, "digest": made.digest, "size": len(made.manifest)}
    (folder / "index.json").write_text(json.dumps({"manifests": [entry]}))
    return f"oci-layout:{folder}"


def test_layouts_that_lie(puller: Daemon, tmp_path: Path) -> None:
    """What a client sends is judged as what a registry sends is."""
    made = image(LAYER, tar(Entry("second")), form="")

    def layout(change: Callable[[Path], None]) -> str:
        source = write_layout(tmp_path / "layout", made)
        change(tmp_path / "layout/blobs/sha256")
        return source

    layer, config, manifest = made.layers[0][7:], made.config_digest[7:], made.digest[7:]

    def replaced(name: str, data: bytes) -> Callable[[Path], None]:
        def change(blobs: Path) -> None:
            (blobs / name).write_bytes(data)

        return change

    def fifo(blobs: Path) -> None:
        (blobs / layer).unlink()
        os.mkfifo(blobs / layer)

    def linked(blobs: Path) -> None:
        (blobs / layer).unlink()
        (blobs / layer).symlink_to("/etc/shadow")

    for says, change in (
        ("is sha256:", replaced(layer, LAYER.replace(b"x", b"y", 1))),
        ("is larger than", replaced(layer, LAYER + b"more")),
        ("ends after", replaced(layer, LAYER[:1000])),
        ("is sha256:", replaced(config, made.blobs[made.config_digest].replace(b"A=b", b"A=c"))),
        ("is sha256:", replaced(manifest, made.manifest + b" ")),
        ("larger than 4194304 bytes", replaced(manifest, made.manifest + b" " * 5_000_000)),
        ("there is no", lambda blobs: (blobs / layer).unlink()),
        ("is no file", fifo),
        # Whichever is seen first.
        ("no tar archive|ends after", linked),
    ):
        source = layout(change)
        before = store(puller)
        done = thaw(puller, "pull", source)
        assert done.returncode == 1
        assert any(part in done.stderr for part in says.split("|")), (says, done.stderr)
        assert store(puller) == before
    assert pulled(puller, layout(lambda _: None)).id == made.config_digest
    puller.client.remove_image(made.config_digest)


def stub(daemon: Daemon) -> Callable[[Iterator[thaw_pb2.LoadRequest]], Any]:
    """Load, for clients that are not ours."""
    return daemon.client._channel.stream_stream(
        "/thaw.v1.Thaw/Load",
        request_serializer=thaw_pb2.LoadRequest.SerializeToString,
        response_deserializer=thaw_pb2.LoadResponse.FromString,
    )


def test_clients_that_break_the_protocol(puller: Daemon) -> None:
    made = image(LAYER, form="")
    start = thaw_pb2.LoadStart(
        names=["localhost/a:1"], digest=made.digest, media_type=made.media_type, source="a test"
    )

    def piece(**fields: object) -> thaw_pb2.LoadRequest:
        return thaw_pb2.LoadRequest(data=thaw_pb2.LoadData(**fields))  # type: ignore[arg-type]

    def named(*names: str) -> thaw_pb2.LoadRequest:
        changed = thaw_pb2.LoadStart()
        changed.CopyFrom(start)
        changed.names[:] = names
        return thaw_pb2.LoadRequest(start=changed)

    begin = thaw_pb2.LoadRequest(start=start)
    before = store(puller)
    for sent, code in (
        ([], "INVALID_ARGUMENT"),
        ([piece(last=True)], "INVALID_ARGUMENT"),
        ([named()], "INVALID_ARGUMENT"),
        ([named(*["a:1"] * 65)], "INVALID_ARGUMENT"),
        ([named("a@" + sha(b""))], "INVALID_ARGUMENT"),
        ([named("Bad//name")], "INVALID_ARGUMENT"),
        ([begin], "UNAVAILABLE"),
        ([begin, begin], "INVALID_ARGUMENT"),
        ([begin, piece(data=b"x" * 1_100_000)], "INVALID_ARGUMENT"),
        ([begin, piece(data=b"{}", last=True)], "DATA_LOSS"),
        ([begin, piece(error="gone")], "NOT_FOUND"),
        ([begin, piece(data=made.manifest, last=True), piece(data=b"")], "UNAVAILABLE"),
    ):
        with pytest.raises(Exception) as caught:
            list(stub(puller)(iter(sent)))
        assert caught.value.code().name == code, (sent, caught.value)  # type: ignore[attr-defined]
    assert store(puller) == before
    until("no pull is on", lambda: not puller.client.pulls())


def test_a_layer_of_a_load_that_ends_comes_from_another_pull(
    puller: Daemon, faulty: FaultyRegistry
) -> None:
    made = faulty.registry.add(image(LAYER, form=""))
    sent: queue.Queue[thaw_pb2.LoadRequest | None] = queue.Queue()
    start = thaw_pb2.LoadStart(
        names=["localhost/a:1"], digest=made.digest, media_type=made.media_type, source="a test"
    )
    blobs = {made.digest: made.manifest, **made.blobs}
    sent.put(thaw_pb2.LoadRequest(start=start))
    call = stub(puller)(iter(sent.get, None))
    for answer in call:
        if answer.wanted == made.layers[0]:
            break
        if answer.wanted:
            piece = thaw_pb2.LoadData(data=blobs[answer.wanted], last=True)
            sent.put(thaw_pb2.LoadRequest(data=piece))
    # The layer is under way, and will not come.
    result: list[str] = []
    other = threading.Thread(target=lambda: result.append(puller.client.pull_image(faulty.image)))
    other.start()
    until("the other pull is on", lambda: len(puller.client.pulls()) == 2)
    assert not faulty.registry.paths(made.layers[0])
    call.cancel()
    sent.put(None)
    other.join(120)
    assert result == [made.config_digest]
    assert len(faulty.registry.paths(made.layers[0])) == 1
    until("no pull is on", lambda: not puller.client.pulls())


@pytest.mark.parametrize("point", ["pull.chunk", "layer.renamed", "store.record", "store.written"])
def test_a_daemon_killed_while_it_loads(
    make_daemon: Callable[..., Daemon], tmp_path: Path, point: str
) -> None:
    """The image is whole or not there, and the next load brings it."""
    layout = tmp_path / "layout"
    source = write_layout(layout, made := image(LAYER, form=""))
    settings = {"snapshot": {"on_demand": True}, "pool": {"size": 0}}
    daemon = make_daemon(settings=settings).start()
    daemon.arm(f"{point}=kill")
    assert thaw(daemon, "pull", source).returncode == 1
    daemon.await_end()
    daemon.arm("")
    daemon.start()
    here = [each.id for each in daemon.client.images()]
    assert here == ([made.config_digest] if point == "store.written" else [])
    assert not list((daemon.root / "images/images/ingest").iterdir())
    assert pulled(daemon, source).id == made.config_digest
    daemon.client.remove_image(made.config_digest)
    assert not [path for path in (daemon.root / "images").rglob("*") if path.is_file()]


def test_a_client_that_dies_while_it_sends(puller: Daemon, tmp_path: Path) -> None:
    source = write_layout(
        tmp_path / "layout", image(tar(Entry("large", os.urandom(60_000_000))), form="")
    )
    before = store(puller)
    # The layer's last step waits, so that the client surely dies before the end.
    puller.arm("pull.commit=hold")
    try:
        sending = subprocess.Popen([THAW, "--address", puller.address, "pull", source])
        until("it is on its way", lambda: puller.client.pulls() != [])
        sending.kill()
        sending.wait()
        until("the load is given up", lambda: not puller.client.pulls())
    finally:
        puller.arm("")
    assert puller.client.images() == []
    assert store(puller) == before
