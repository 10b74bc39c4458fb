"""Images of odd forms, pushed and pulled, and what a store holds of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any, Final

import httpx

from cri.api import v1_pb2
from demo import oci
from e2e.harness.command import thaw
from e2e.harness.daemon import Daemon
from e2e.harness.registry import Registry
from images.tests.build import sha

DOCKER: Final = "application/vnd.docker.distribution.manifest.v2+json"


def put(registry: Registry, repository: str, tag: str, data: bytes, media_type: str) -> None:
    """Push a manifest."""
    done = httpx.put(
        f"{registry.url}/v2/{repository}/manifests/{tag}",
        content=data, headers={"content-type": media_type}, trust_env=False,
    )  # fmt: skip
    assert done.status_code == 201, done.text


def of(
    base: oci.Image,
    layers: list[tuple[str, bytes, bytes]],
    manifest: str = oci.MANIFEST,
    kind: str = oci.CONFIG,
    **more: Any,
) -> oci.Image:
    """`base` with layers on top (media type, blob, uncompressed tar), with manifest and
    configuration of these types, and `more` in the configuration."""
    document = json.loads(base.config.data) | more
    document["rootfs"]["diff_ids"] += [sha(plain) for _, _, plain in layers]
    blobs = (*base.layers, *(oci.Blob(kind, blob) for kind, blob, _ in layers))
    if manifest == DOCKER:
        zipped = "application/vnd.docker.image.rootfs.diff.tar.gzip"
        blobs = tuple(
            replace(each, media_type=zipped) if each.media_type == oci.LAYER_GZIP else each
            for each in blobs
        )
    head = oci.Blob(kind, json.dumps(document).encode())
    body = {
        "schemaVersion": 2, "mediaType": manifest, "config": head.descriptor,
        "layers": [each.descriptor for each in blobs],
    }  # fmt: skip
    return oci.Image(oci.Blob(manifest, json.dumps(body).encode()), head, blobs)


def pull(daemon: Daemon, reference: str, **auth: str) -> v1_pb2.Image:
    request = v1_pb2.PullImageRequest(
        image=v1_pb2.ImageSpec(image=reference), auth=v1_pb2.AuthConfig(**auth)
    )
    daemon.client.image("PullImage", request, v1_pb2.PullImageResponse, 120)
    found = daemon.client.image_status(reference)
    assert found is not None
    return found


def pulled(daemon: Daemon, *argv: str, **environment: str) -> v1_pb2.Image:
    """What `thaw pull` brings, by the id that it prints."""
    done = thaw(daemon, "pull", *argv, environment=environment)
    assert done.returncode == 0, done.stderr
    found = daemon.client.image_status(done.stdout.strip())
    assert found is not None
    return found


def store(daemon: Daemon) -> list[str]:
    """The image store's files and folders; what tags meant a moment ago is of no image."""
    folder = daemon.root / "images"
    found = {str(path.relative_to(folder)) for path in folder.rglob("*")}
    return sorted(found - {"tags.json"})
