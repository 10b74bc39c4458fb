"""Merging as the image service does it: when, in which order, and what a failure leaves."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from hostlib import errors, failpoint, process
from images import merging
from images.model import Image, Layer, MergeMode, Progress
from images.service import Images, Limits
from images.store import chain_id
from images.tests.build import Built, Entry, folder, image, tar
from images.tests.fake_registry import FakeRegistry
from images.tests.test_service import leftovers, listing


def built(count: int = 4, seed: int = 0, size: int = 1000) -> Built:
    """An image in which each layer replaces one file, deletes another, and adds a third."""
    noise = random.Random(seed)
    layers = []
    for n in range(count):
        entries = [
            folder("d"),
            Entry("d/top", b"%d" % n),
            Entry(f"d/own{n}", noise.randbytes(size)),
        ]
        if n:
            entries.append(Entry(f"d/.wh.own{n - 1}"))
        layers.append(tar(*entries))
    return image(*layers)


def check(found: Image, count: int = 4) -> None:
    """The merged file is what the last layers make of it."""
    assert found.merged is not None and found.mounts == (found.merged,)
    lines = listing(found.merged.path)
    assert f"d/own{count - 1}" in lines and f"d/own{count - 2}" not in lines
    assert "c---------" not in lines


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():  # noqa: ASYNC110 (files and logs have no events)
            await asyncio.sleep(0.01)


async def until_merged(images: Images, ref: str) -> Image:
    def merged() -> bool:
        found = images.get(ref)
        return found is not None and found.merged is not None

    await until(merged)
    found = images.get(ref)
    assert found is not None
    return found


async def service(root: Path, merge: MergeMode = "auto", slots: int = 12) -> Images:
    made = Images(root, registry_config=None, limits=Limits(), merge=merge, slots=slots)
    await made.open()
    return made


@pytest.fixture
async def auto(tmp_path: Path) -> AsyncIterator[Images]:
    made = await service(tmp_path / "root")
    yield made
    await made.close()


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Images]:
    """Pods of two slots; nothing is merged that need not be."""
    made = await service(tmp_path / "root", "needed", slots=2)
    yield made
    await made.close()


def test_the_chain_id_is_the_specifications() -> None:
    # Computed with sha256sum: `printf '%s %s' sha256:aa.. sha256:bb.. | sha256sum`.
    a, b = f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"
    assert chain_id((a,)) == a
    assert chain_id((a, b)) != chain_id((b, a))
    assert chain_id((a, b, a)) == chain_id((chain_id((a, b)), a))


def test_a_layer_that_comes_twice_is_mounted_once() -> None:
    a, b = (Layer(f"sha256:{n}", Path(n), 1) for n in "ab")
    found = Image("", (), (), 1, None, (a, b, a, b, b))  # type: ignore[arg-type]
    assert found.mounts == (a, b)
    assert Image("", (), (), 1, None, (b, a, b), merged=a).mounts == (a,)  # type: ignore[arg-type]


async def test_an_image_with_more_layers_than_slots_is_merged_in_its_pull(
    small: Images, registry: FakeRegistry
) -> None:
    registry.add(built())
    seen: list[Progress] = []
    found = await small.pull(f"{registry.host}/a", progress=seen.append)
    check(found)
    assert found.merged is not None
    assert found.size > sum(layer.size for layer in found.layers) + found.merged.size
    assert seen[-1].merging is not None
    assert await small.runnable(found) == found


async def test_other_images_are_not_when_that_is_not_wanted(
    small: Images, registry: FakeRegistry
) -> None:
    registry.add(built(2))
    found = await small.pull(f"{registry.host}/a")
    small.merge_rest()
    await asyncio.sleep(0.2)
    assert small.get(found.id) == found and found.merged is None
    assert await small.runnable(found) == found
    assert found.mounts == found.layers


async def test_images_are_merged_after_their_pull(
    auto: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add(built())
    ref = f"{registry.host}/a"
    first = await auto.pull(ref)
    assert first.layers == first.mounts or first.merged
    found = await until_merged(auto, ref)
    check(found)
    assert await auto.collect() == 0
    assert (await auto.usage()).bytes >= found.size
    assert not list((tmp_path / "root/images/ingest").iterdir())
    again = await service(tmp_path / "root")
    assert again.list() == [found]
    await again.close()
    await auto.remove(ref)
    assert leftovers(tmp_path / "root") == []


async def test_an_image_of_one_layer_is_left_alone(auto: Images, registry: FakeRegistry) -> None:
    registry.add(image(tar(Entry("a"))))
    found = await auto.pull(f"{registry.host}/a")
    await asyncio.sleep(0.1)
    assert auto.get(found.id) == found and found.merged is None


async def test_a_start_merges_what_is_not_merged_yet(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add(built())
    ref = f"{registry.host}/a"
    first = await service(tmp_path, "needed")
    found = await first.pull(ref)
    assert found.merged is None
    await first.close()
    # Fewer slots than before: it does not run until it is merged.
    second = await service(tmp_path, "needed", slots=2)
    check(await second.runnable(found))
    await second.close()
    for path in (tmp_path / "images/merged").iterdir():
        path.unlink()
    third = await service(tmp_path)
    third.merge_rest()
    check(await until_merged(third, ref))
    await third.close()


async def test_two_images_of_the_same_layers_share_the_merged_file(
    small: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    layers = [tar(Entry(f"f{n}")) for n in range(4)]
    registry.add(image(*layers), "a")
    registry.add(image(*layers, config={"Cmd": ["other"]}), "b")
    a, b = await asyncio.gather(*(small.pull(f"{registry.host}/x:{tag}") for tag in "ab"))
    assert a.id != b.id and a.merged == b.merged
    await small.remove(a.id)
    assert b.merged is not None and b.merged.path.exists()
    await small.remove(b.id)
    assert leftovers(tmp_path / "root") == []


async def test_those_who_wait_share_one_merge(
    small: Images, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "images.merging")
    registry.add(built(2))
    found = await small.pull(f"{registry.host}/a")
    results = await asyncio.gather(*(small.merge(found.id) for _ in range(3)))
    assert len({one.merged for one in results}) == 1
    assert len([one for one in caplog.messages if one.startswith("merged 2 layers")]) == 1


async def test_a_background_merge_gives_way(auto: Images, registry: FakeRegistry) -> None:
    registry.add(built(3, seed=1), "a")
    registry.add(built(3, seed=2), "b")
    failpoint.arm("merge.start=1*delay(3600)")
    await auto.pull(f"{registry.host}/x:a")
    b = await auto.pull(f"{registry.host}/x:b")
    async with asyncio.timeout(60):
        check(await auto.merge(b.id), 3)
    check(await until_merged(auto, f"{registry.host}/x:a"), 3)


async def test_a_removal_gives_up_the_merge(
    auto: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add(built())
    failpoint.arm("merge.written=delay(3600)")
    found = await auto.pull(f"{registry.host}/a")
    ingest = tmp_path / "root/images/ingest"
    await until(lambda: list(ingest.glob("merge-*")))
    async with asyncio.timeout(60):
        await auto.remove(found.id)
    assert leftovers(tmp_path / "root") == []


async def test_a_removal_ends_those_who_wait(auto: Images, registry: FakeRegistry) -> None:
    registry.add(built())
    failpoint.arm("merge.start=delay(3600)")
    found = await auto.pull(f"{registry.host}/a")
    waiting = asyncio.create_task(auto.merge(found.id))
    await asyncio.sleep(0.05)
    await auto.remove(found.id)
    with pytest.raises(errors.NotFound, match="removed"):
        await waiting
    with pytest.raises(errors.NotFound):
        await auto.merge(found.id)


async def test_layers_that_a_container_holds_outlive_a_removal(
    auto: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add(built())
    failpoint.arm("merge.start=delay(3600)")
    found = await auto.pull(f"{registry.host}/a")
    auto.hold(found.id, "container")
    await auto.remove(found.id)
    assert all(layer.path.exists() for layer in found.layers)
    failpoint.disarm()
    # It comes back, and is merged while the container still has the single layers.
    merged = await auto.merge((await auto.pull(f"{registry.host}/a")).id)
    check(merged)
    assert all(layer.path.exists() for layer in found.layers)
    await auto.remove(found.id)
    auto.release("container")
    assert await auto.collect() > 0
    assert leftovers(tmp_path / "root") == []


async def test_a_pull_that_is_given_up_gives_up_its_merge(
    small: Images, registry: FakeRegistry, tmp_path: Path
) -> None:
    registry.add(built())
    failpoint.arm("merge.written=delay(3600)")
    task = asyncio.create_task(small.pull(f"{registry.host}/a"))
    ingest = tmp_path / "root/images/ingest"
    await until(lambda: list(ingest.glob("merge-*")))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    failpoint.disarm()
    check(await small.pull(f"{registry.host}/a"))
    assert not list(ingest.iterdir())


POINTS = ("merge.start", "merge.stream", "merge.written", "merge.sync", "merge.rename",
          "merge.renamed")  # fmt: skip


@pytest.mark.parametrize("point", POINTS)
async def test_a_failure_at_each_step_of_a_pulls_merge(
    small: Images, registry: FakeRegistry, tmp_path: Path, point: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    registry.add(built())
    failpoint.arm(f"{point}=error")
    monkeypatch.setenv(failpoint.ENV, f"{point}=error")
    with pytest.raises(errors.Internal, match="fired"):
        await small.pull(f"{registry.host}/a")
    assert not list((tmp_path / "root/images/ingest").iterdir())
    assert small.list() == [] and small.pulling() == []
    failpoint.disarm()
    monkeypatch.delenv(failpoint.ENV)
    found = await small.pull(f"{registry.host}/a")
    check(found)
    await small.remove(found.id)
    assert leftovers(tmp_path / "root") == []


@pytest.mark.parametrize("point", [*POINTS, "merge.disk_full"])
async def test_a_failure_in_the_background_is_a_line_in_the_log(
    auto: Images, registry: FakeRegistry, tmp_path: Path, point: str,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    registry.add(built())
    failpoint.arm(f"{point}=error")
    monkeypatch.setenv(failpoint.ENV, f"{point}=error")
    found = await auto.pull(f"{registry.host}/a")
    await until(lambda: any("are not merged" in one for one in caplog.messages))
    assert not list((tmp_path / "root/images/ingest").iterdir())
    assert auto.get(found.id) == found and found.merged is None
    failpoint.disarm()
    monkeypatch.delenv(failpoint.ENV)
    await auto.pull(f"{registry.host}/a")
    check(await until_merged(auto, found.id))


async def test_a_stream_that_is_killed(
    small: Images, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(built(size=300_000))
    monkeypatch.setenv(failpoint.ENV, "merge.stream=kill")
    with pytest.raises(errors.Internal, match="ended with -9"):
        await small.pull(f"{registry.host}/a")
    assert not list((tmp_path / "root/images/ingest").iterdir())
    assert not list((tmp_path / "root/images/merged").iterdir())


async def test_sqfstar_that_fails(
    small: Images, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await small.pull(f"{registry.add(built(2)) and registry.host}/a")
    monkeypatch.setattr("images.squashfs._ARGV", ("-no-such-option",))
    with pytest.raises(errors.Internal, match="sqfstar failed"):
        await small.merge(first.id)
    assert small.get(first.id) == first


async def test_a_damaged_layer(
    auto: Images, registry: FakeRegistry, caplog: pytest.LogCaptureFixture
) -> None:
    registry.add(built())
    failpoint.arm("merge.start=error")
    found = await auto.pull(f"{registry.host}/a")
    # The merge in the background has had its turn.
    await until(lambda: [each for each in caplog.messages if "are not merged" in each])
    failpoint.disarm()
    path = found.layers[1].path
    path.chmod(0o600)
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(errors.DataLoss, match="pull it again"):
        await auto.merge(found.id)


async def test_too_many_files(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add(image(*(tar(Entry(f"a{n}"), Entry(f"b{n}")) for n in range(3))))
    images = Images(tmp_path, registry_config=None, limits=Limits(layer_entries=4), slots=2)
    await images.open()
    with pytest.raises(errors.ResourceExhausted, match="more than 4 files"):
        await images.pull(f"{registry.host}/a")
    await images.close()


async def test_a_disk_with_no_room_for_the_merged_file(
    registry: FakeRegistry, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    registry.add(built(3, size=1_500_000))
    root = tmp_path / "small"
    root.mkdir()
    await process.run("mount", "-t", "tmpfs", "-o", "size=5500k", "tmpfs", str(root))
    try:
        images = await service(root, slots=2)
        with pytest.raises(errors.ResourceExhausted, match="no space left") as caught:
            await images.pull(f"{registry.host}/a")
        assert caught.value.hint and images.list() == []
        await images.close()
        images = await service(root)
        await images.collect()
        found = await images.pull(f"{registry.host}/a")
        await until(lambda: any("no space left" in one for one in caplog.messages))
        assert images.get(found.id) == found and not list((root / "images/ingest").iterdir())
        await images.close()
    finally:
        await process.run("umount", str(root))


async def test_the_room_that_stays_free_is_not_merged_into(
    registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry.add(built())
    images = Images(tmp_path, registry_config=None, limits=Limits(min_free_bytes=1000))
    await images.open()
    found = await images.pull(f"{registry.host}/a")
    size = sum(layer.size for layer in found.layers)
    monkeypatch.setattr(images._store, "free", lambda: size + 999)
    with pytest.raises(errors.ResourceExhausted, match="no room to merge"):
        await images.merge(found.id)
    monkeypatch.setattr(images._store, "free", lambda: size + 1000)
    check(await images.merge(found.id))
    await images.close()


async def test_a_file_that_is_there_is_found_though_its_commit_failed(
    small: Images, registry: FakeRegistry
) -> None:
    registry.add(built(2))
    found = await small.pull(f"{registry.host}/a")
    failpoint.arm("merge.renamed=1*error")
    with pytest.raises(failpoint.Injected):
        await small.merge(found.id)
    check(await small.merge(found.id), 2)


async def test_the_children_are_nice(
    small: Images, registry: FakeRegistry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both processes of a merge run with the niceness that is promised."""
    seen: list[tuple[str, ...]] = []
    run = process.run

    async def spy(*argv: str, **more: object) -> process.Result:
        seen.append(argv)
        return await run(*argv, **more)  # type: ignore[arg-type]

    registry.add(built(2))
    found = await small.pull(f"{registry.host}/a")
    monkeypatch.setattr(process, "run", spy)
    await small.merge(found.id)
    assert len(seen) == 2
    for argv in seen:
        assert argv[0].endswith("/nice") and argv[1:3] == ("-n", str(merging.NICE))
        assert "--pdeathsig" in argv


async def test_close_gives_up_everything(registry: FakeRegistry, tmp_path: Path) -> None:
    registry.add(built())
    images = await service(tmp_path)
    failpoint.arm("merge.start=delay(3600)")
    found = await images.pull(f"{registry.host}/a")
    waiting = asyncio.create_task(images.merge(found.id))
    await asyncio.sleep(0.05)
    await images.close()
    await images.close()
    with pytest.raises(errors.ThawError):
        await waiting
    with pytest.raises(errors.ThawError):
        await images.merge(found.id)
