"""Images of many layers: more than a pod has slots for, and before and after their merge."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cri.api import v1_pb2
from demo import oci
from e2e.harness import leaks
from e2e.harness.daemon import Daemon
from e2e.harness.layered import layered
from e2e.harness.pods import Pod
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import Registry
from e2e.harness.waiting import until
from hostlib import errors


def many(count: int) -> list[oci.Layer]:
    """Each layer adds a file of its own, deletes that of the layer before, replaces a folder's
    content and one file, and links two names of which the next layer deletes the first."""
    made = []
    for n in range(count):
        layer = oci.Layer(zstd=n % 2 == 0)
        layer.file("data/top", f"{n}").file(f"data/own{n}", f"{n}")
        layer.file(f"data/kept{n}", f"kept {n}")
        layer.replace("data/folder").file(f"data/folder/f{n}", f"{n}")
        if n:
            layer.delete(f"data/own{n - 1}")
        made.append(layer)
    return made


def expected(count: int) -> list[str]:
    kept = [f"kept{n}" for n in range(count)]
    return sorted(["folder", f"own{count - 1}", "top", *kept])


LIST = "cd /data; ls; cat top; echo; ls folder; find / -xdev -type c | grep -v ^/dev; true"


def listing(count: int) -> str:
    return "\n".join([*expected(count), f"{count - 1}", f"f{count - 1}"])


@pytest.mark.parametrize("count", [20, 127])
def test_an_image_with_more_layers_than_slots_runs(
    daemon: Daemon, registry: Registry, built: dict[str, oci.Image], count: int
) -> None:
    """127 is images.max_layers, and Docker's own limit."""
    top = count - 1
    ref = registry.push(layered(built["demo/shell"], many(top)), f"e2e/layers{count}")
    phases = [message.phase for message in daemon.client.pull(ref)]
    assert "merging" in phases
    assert daemon.merged(ref)
    pod = Pod.run(daemon)
    container = pod.start(ref, SLEEP)
    assert container.sh(LIST) == listing(top)
    last = f"kept{top - 1}"
    assert container.sh(f"cat /data/kept0 /data/{last}") == f"kept 0kept {top - 1}"
    container.sh("echo new > /data/top && rm /data/kept0")
    assert pod.start(ref, SLEEP, name="second").sh(LIST) == listing(top)
    pod.remove()
    daemon.client.remove_image(ref)


@pytest.mark.parametrize("slots", [12, 8])
def test_an_image_runs_before_and_after_its_merge(
    make_daemon: Callable[..., Daemon], registry: Registry, built: dict[str, oci.Image], slots: int
) -> None:
    layers = many(5)
    # An empty layer that comes twice, as those of commands that change no file do.
    stack = [*layers[:3], oci.Layer(), *layers[3:], oci.Layer()]
    ref = registry.push(layered(built["demo/shell"], stack), "e2e/layers8")
    # The same layers in another order.
    other = registry.push(layered(built["demo/shell"], layers[3::-1]), "e2e/other")
    own = [oci.Layer().file(f"data/x{n}", f"{n}") for n in range(4)]
    strange = registry.push(layered(built["demo/shell"], own), "e2e/strange")
    settings = {"images": {"merge": "needed"}, "vm": {"slots": slots}}
    daemon = make_daemon(settings=settings).start()
    for image in (SHELL, ref, other, strange):
        daemon.client.pull_image(image)
        assert not daemon.merged(image)
    pod = Pod.run(daemon)
    before = pod.start(ref, SLEEP, name="before")
    assert before.sh(LIST) == listing(5)
    shared = pod.start(other, SLEEP, name="shared")
    assert shared.sh("cat /data/top; echo; ls /data/folder") == "0\nf0"
    assert pod.start(SHELL, SLEEP, name="base").sh("ls -d /[d]*") == "/dev"
    # 7 slots are in use: with 8 there is no room for 4 more layers, but for what they merge into.
    beside = pod.start(strange, SLEEP, name="beside")
    assert beside.sh("ls /data") == "\n".join(f"x{n}" for n in range(4))
    assert daemon.merged(strange) == (slots == 8)
    daemon.client.remove_container(beside.id)

    daemon.terminate()
    config = daemon.config.read_text()
    daemon.config.write_text(config.replace('merge = "needed"', 'merge = "auto"'))
    daemon.start()
    for image in (ref, other, strange):
        until(f"{image} is merged", partial(daemon.merged, image), 60)
    assert before.sh(LIST) == listing(5)
    after = pod.start(ref, SLEEP, name="after")
    assert after.sh(LIST) == listing(5)
    usage = daemon.client.image(
        "ImageFsInfo", v1_pb2.ImageFsInfoRequest(), v1_pb2.ImageFsInfoResponse
    ).image_filesystems[0]
    folder = Path(usage.fs_id.mountpoint) / "merged"
    sizes = [path.stat().st_size for path in folder.iterdir()]
    assert len(sizes) == 3
    assert usage.used_bytes.value > sum(sizes)
    # The containers that are left keep what they were made of.
    daemon.client.remove_image(ref)
    assert before.sh(LIST) == after.sh(LIST) == listing(5)
    pod.remove()
    until("what nobody needs is gone", lambda: len(list(folder.iterdir())) == 2)


@pytest.mark.parametrize("point", ["merge.written", "merge.renamed", ""])
def test_a_daemon_killed_while_it_merges(
    make_daemon: Callable[..., Daemon], registry: Registry, built: dict[str, oci.Image], point: str
) -> None:
    """Its children end with it, and the next daemon merges what it finds. Without a failpoint the
    daemon is killed from outside as the merge's file grows."""
    own = [oci.Layer().file(f"data/x{n}", random.Random(n).randbytes(20_000_000)) for n in range(3)]
    ref = registry.push(layered(built["demo/shell"], own), "e2e/large")
    daemon = make_daemon(settings={"images": {"merge": "auto"}}).start()
    assert daemon.process is not None
    images = daemon.root / "images/images"
    if point:
        daemon.arm(f"{point}=kill")
    with contextlib.suppress(errors.ThawError):
        daemon.client.pull_image(ref)
    if point:
        daemon.process.wait(60)
    else:
        until("the merge has begun", lambda: list(images.glob("ingest/merge-*")), 60)
        daemon.kill()
    daemon.close_client()
    daemon.arm("")
    merging = "images.merge_stream"
    until("its children ended", lambda: not [
        found for found in leaks.processes(str(images)) if merging in found or "sqfstar" in found
    ])  # fmt: skip
    daemon.start()
    until("the image is merged", partial(daemon.merged, ref), 60)
    assert not list((images / "ingest").iterdir())
    pod = Pod.run(daemon)
    assert pod.start(ref, SLEEP).sh("ls /data | wc -l; wc -c < /data/x2") == "3\n20000000"
    pod.remove()
