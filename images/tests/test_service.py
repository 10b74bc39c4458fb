"""The whole path, against a registry in this process."""

from __future__ import annotations

import asyncio
import random
import shutil
import subprocess
from pathlib import Path

import pytest

from hostlib import errors, failpoint, process
from images.manifest import architecture
from images.service import Auth, Image, Images, Limits, Progress
from images.tests.build import OCI_INDEX, Entry, folder, image, index, tar
from images.tests.fake_registry import Answer, FakeRegistry, Request


def listing(path: Path) -> str:
    found = subprocess.run(["unsquashfs", "-lln", "-d", "", path], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout


def leftovers(root: Path) -> list[str]:
    folder = root / "images"
    return sorted(str(item.relative_to(folder)) for item in folder.rglob("*") if not item.is_dir())


async def test_an_image_is_pulled_and_found(
    images: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    built = registry.add(
        image(
            tar(folder("etc"), Entry("etc/motd", b"hello")),
            tar(Entry("etc/.wh.motd"), Entry("bin/sh", b"#!", mode=0o755)),
            config={"User": "web", "Labels": {"a": "b"}, "ExposedPorts": {"80/tcp": {}}},
        ),
        "1.0",
    )
    seen: list[Progress] = []
    found = await images.pull(f"{registry.host}/a/b:1.0", progress=seen.append)
    assert found.id == built.config_digest
    assert found.repo_tags == (f"{registry.host}/a/b:1.0",)
    assert found.repo_digests == (f"{registry.host}/a/b@{built.digest}",)
    assert found.size > 0
    assert (found.config.user, found.config.labels) == ("web", (("a", "b"),))
    assert "etc/motd" in listing(found.layers[0].path)
    assert "c---------" in listing(found.layers[1].path)
    assert all(item.state == "done" for item in seen[-1].layers)
    assert images.pulling() == []
    hexadecimal = found.id[7:]
    for name in (found.repo_tags[0], found.repo_digests[0], found.id, hexadecimal, hexadecimal[:8]):
        assert images.get(name) == found, name
    assert images.get(f"{registry.host}/a/b:2.0") is None
    with pytest.raises(errors.InvalidArgument):
        images.get("Bad//Name")
    assert not list((tmp_path / "root/images/ingest").iterdir())
    assert (await images.usage()).bytes >= found.size


@pytest.mark.parametrize("form", ["", "+gzip", "+zstd"])
async def test_each_compression(images: Images, registry: FakeRegistry, form: str) -> None:
    registry.add(image(tar(Entry("x" * 50, b"y" * 3_000_000)), form=form))
    found = await images.pull(f"{registry.host}/a")
    assert "x" * 50 in listing(found.layers[0].path)


async def test_an_index_gives_this_machines_image(images: Images, registry: FakeRegistry) -> None:
    mine, other = image(tar(Entry("mine"))), image(tar(Entry("other")))
    for built in (mine, other):
        registry.add(built, "")
    data = index(("s390x", other), (architecture(), mine))
    registry.add_manifest(data, OCI_INDEX, "latest")
    assert (await images.pull(f"{registry.host}/a")).id == mine.config_digest
    registry.add_manifest(index(("s390x", other)), OCI_INDEX, "other")
    with pytest.raises(errors.NotFound, match="linux/"):
        await images.pull(f"{registry.host}/a:other")


async def test_a_second_pull_fetches_no_blob(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(tar(Entry("a"))))
    first = await images.pull(f"{registry.host}/a")
    registry.requests.clear()
    assert await images.pull(f"{registry.host}/a") == first
    assert registry.paths("/manifests/") and not registry.paths("/blobs/")


async def test_pulls_at_once_share_one_transfer(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(tar(Entry("a", b"x" * 100_000)), tar(Entry("b"))))
    registry.add(built, "other")
    names = ["a", "a", "a:other", "b"]
    found = await asyncio.gather(*(images.pull(f"{registry.host}/{name}") for name in names))
    assert {item.id for item in found} == {built.config_digest}
    for digest in built.layers:
        assert len(registry.paths(digest)) == 1
    kept = images.get(built.config_digest)
    assert kept is not None and len(kept.repo_tags) == 3


async def test_a_tag_moves(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(tar(Entry("a"))))
    first = await images.pull(f"{registry.host}/a")
    registry.add(image(tar(Entry("b"))))
    second = await images.pull(f"{registry.host}/a")
    assert second.id != first.id
    old = images.get(first.id)
    assert old is not None and old.repo_tags == () and old.repo_digests
    assert images.get(f"{registry.host}/a") == second


async def test_removal_frees_what_nobody_uses(
    images: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    shared = tar(Entry("shared", b"x" * 10000))
    registry.add(image(shared, tar(Entry("a"))), "a")
    registry.add(image(shared, tar(Entry("b"))), "b")
    a = await images.pull(f"{registry.host}/x:a")
    b = await images.pull(f"{registry.host}/x:b")
    assert a.layers[0] == b.layers[0]
    images.hold(a.id, "container")
    await images.remove(a.repo_tags[0])
    await images.remove(a.repo_tags[0])
    assert images.get(a.id) is None and images.list() == [b]
    assert a.layers[1].path.exists()
    again = Images(tmp_path / "root", registry_config=None, limits=Limits())
    await again.open()
    assert again.list() == [b]
    again.hold(a.id, "container")
    await again.close()
    images.release("container")
    assert await images.collect() > 0
    assert not a.layers[1].path.exists() and a.layers[0].path.exists()
    await images.remove(b.id)
    assert leftovers(tmp_path / "root") == []
    with pytest.raises(errors.NotFound):
        images.hold(b.id, "other")


async def test_a_restart_finds_the_images(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add(image(tar(Entry("a")), config={"Entrypoint": ["/a"]}))
    found: list[Image] = []
    for _ in range(2):
        service = Images(tmp_path, registry_config=None, limits=Limits())
        await service.open()
        if not service.list():
            await service.pull(f"{registry.host}/a")
        found += service.list()
        await service.close()
    assert len(found) == 2 and found[0] == found[1]


async def test_a_lost_layer_drops_the_image(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add(image(tar(Entry("a"))))
    service = Images(tmp_path, registry_config=None, limits=Limits())
    await service.open()
    found = await service.pull(f"{registry.host}/a")
    await service.close()
    found.layers[0].path.unlink()
    await service.open()
    assert await service.pull(f"{registry.host}/a") == found
    await service.close()


async def test_a_file_named_twice(images: Images, registry: FakeRegistry) -> None:
    layer = tar(
        Entry("a", b"old"), Entry("b", b"b"), Entry("a", b"newer"), folder("b"), Entry("b/c", b"c")
    )
    built = registry.add(image(layer))
    found = await images.pull(f"{registry.host}/a")
    lines = listing(found.layers[0].path)
    assert " 5 " in next(line for line in lines.splitlines() if line.endswith("/a"))
    assert "/b/c" in lines
    assert len(registry.paths(built.layers[0])) == 2


async def test_disk_full(images: Images, registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add(image(tar(Entry("a", b"x" * 1000))))
    failpoint.arm("pull.disk_full=error")
    with pytest.raises(errors.ResourceExhausted, match="no space left") as caught:
        await images.pull(f"{registry.host}/a")
    assert caught.value.hint
    assert leftovers(tmp_path / "root") == []
    failpoint.disarm()
    assert await images.pull(f"{registry.host}/a")


@pytest.mark.parametrize(
    "point",
    ["registry.request", "pull.resolve", "pull.config", "pull.chunk", "convert.start",
     "convert.verified", "pull.commit", "layer.sync", "layer.rename", "layer.renamed",
     "pull.record", "store.blobs", "store.record", "store.written"],
)  # fmt: skip
async def test_a_failure_at_each_step_leaves_a_sound_store(
    images: Images, registry: FakeRegistry, tmp_path: Path, point: str
) -> None:
    registry.add(image(tar(Entry("a", b"x" * 1000))))
    failpoint.arm(f"{point}=1*error")
    with pytest.raises(failpoint.Injected):
        await images.pull(f"{registry.host}/a")
    assert not list((tmp_path / "root/images/ingest").iterdir())
    assert images.pulling() == []
    found = await images.pull(f"{registry.host}/a")
    assert found.layers[0].path.exists()
    await images.remove(found.id)
    assert leftovers(tmp_path / "root") == []


async def test_a_cancelled_pull_leaves_nothing(
    images: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    built = registry.add(image(tar(Entry("a", b"x" * 1000)), form=""))

    def behave(request: Request) -> Answer | None:
        if built.layers[0] in request.path:
            return Answer(body=b"x" * 10, length=10240)
        return None

    asked = asyncio.Event()

    async def hang(_: asyncio.StreamWriter) -> None:
        asked.set()
        await asyncio.sleep(3600)

    def hanging(request: Request) -> Answer | None:
        answer = behave(request)
        if answer is not None:
            answer.chunks = hang
        return answer

    registry.behave = hanging
    task = asyncio.create_task(images.pull(f"{registry.host}/a"))
    await asyncio.wait_for(asked.wait(), 30)
    assert [item.ref for item in images.pulling()] == [f"{registry.host}/a:latest"]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # A pull that comes now waits for no remains of the one that was given up.
    registry.behave = lambda _: None
    found = await images.pull(f"{registry.host}/a")
    await images.remove(found.id)
    assert images.pulling() == []
    assert leftovers(tmp_path / "root") == []


async def test_sqfstar_that_dies_is_reported(
    images: Images, registry: FakeRegistry, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    registry.add(image(tar(Entry("a", b"x" * 1000))))
    monkeypatch.setattr("images.squashfs._ARGV", ("-no-such-option",))
    with pytest.raises(errors.Internal, match="sqfstar failed"):
        await images.pull(f"{registry.host}/a")
    assert leftovers(tmp_path / "root") == []


async def test_credentials_that_are_no_base64(images: Images, registry: FakeRegistry) -> None:
    with pytest.raises(errors.InvalidArgument, match="base64"):
        await images.pull(f"{registry.host}/a", auth=Auth(auth="!"))


def test_the_tools_are_here() -> None:
    assert shutil.which("sqfstar") and shutil.which("unsquashfs")


async def test_a_disk_that_is_really_full(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add(image(tar(Entry("a", random.Random(1).randbytes(6_000_000)))))
    root = tmp_path / "small"
    root.mkdir()
    await process.run("mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(root))
    try:
        service = Images(root, registry_config=None, limits=Limits())
        await service.open()
        with pytest.raises(errors.ResourceExhausted, match="no space left"):
            await service.pull(f"{registry.host}/a")
        assert leftovers(root) == []
        await service.close()
    finally:
        await process.run("umount", str(root))


async def test_a_layer_that_fails_another_pull_is_fetched_again(
    images: Images, registry: FakeRegistry
) -> None:
    """What the one repository has of it is damaged; the other pull waited for that."""
    built = registry.add(image(tar(Entry("a", b"x" * 1000)), form=""))
    layer = built.layers[0]
    asked, go = asyncio.Event(), asyncio.Event()

    async def damaged(writer: asyncio.StreamWriter) -> None:
        asked.set()
        await go.wait()
        writer.write(b"?" * len(built.blobs[layer]))
        await writer.drain()

    def behave(request: Request) -> Answer | None:
        if request.path.startswith("/v2/bad/blobs/") and layer in request.path:
            return Answer(length=len(built.blobs[layer]), chunks=damaged)
        return None

    registry.behave = behave
    bad = asyncio.create_task(images.pull(f"{registry.host}/bad"))
    await asyncio.wait_for(asked.wait(), 30)
    good = asyncio.create_task(images.pull(f"{registry.host}/good"))
    while len(images.pulling()) < 2 or not images.pulling()[1].progress.layers:  # noqa: ASYNC110
        await asyncio.sleep(0.01)
    assert not registry.paths(f"/v2/good/blobs/{layer}")
    go.set()
    with pytest.raises(errors.ThawError):
        await bad
    found = await good
    assert found.id == built.config_digest
    assert found.repo_tags == (f"{registry.host}/good:latest",)
    assert len(registry.paths(f"/v2/good/blobs/{layer}")) == 1
