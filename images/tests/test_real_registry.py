"""Against Debian's docker-registry, a process of the test's own on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from hostlib import errors, process
from images.manifest import architecture
from images.service import Auth, Images
from images.tests.build import OCI_INDEX, Built, Entry, folder, image, index, tar

CONFIG = """
version: 0.1
log: {{level: error}}
storage:
  filesystem: {{rootdirectory: {root}}}
http:
  addr: 127.0.0.1:{port}
{auth}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def registry(folder: Path, auth: str = "") -> AsyncIterator[str]:
    port = free_port()
    config = folder / "config.yml"
    config.write_text(CONFIG.format(root=folder / "data", port=port, auth=auth))
    program = process.find("docker-registry", package="docker-registry")
    server = await asyncio.create_subprocess_exec(
        program, "serve", str(config), stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    try:
        async with asyncio.timeout(30), httpx.AsyncClient(trust_env=False) as client:
            while True:
                with contextlib.suppress(httpx.TransportError):
                    await client.get(f"http://127.0.0.1:{port}/v2/")
                    break
                await asyncio.sleep(0.05)
        yield f"127.0.0.1:{port}"
    finally:
        server.kill()
        await server.wait()


async def push(
    host: str, name: str, built: Built, tag: str, credentials: tuple[str, str] | None = None
) -> None:
    auth = httpx.BasicAuth(*credentials) if credentials else None
    async with httpx.AsyncClient(base_url=f"http://{host}", trust_env=False, auth=auth) as client:
        for digest, data in built.blobs.items():
            started = await client.post(f"/v2/{name}/blobs/uploads/")
            place = httpx.URL(started.headers["Location"]).copy_merge_params({"digest": digest})
            (await client.put(place, content=data)).raise_for_status()
        await push_manifest(client, name, built.manifest, built.media_type, tag or built.digest)


async def push_manifest(
    client: httpx.AsyncClient, name: str, data: bytes, media_type: str, tag: str
) -> None:
    headers = {"Content-Type": media_type}
    done = await client.put(f"/v2/{name}/manifests/{tag}", content=data, headers=headers)
    done.raise_for_status()


async def test_pull_from_a_real_registry(images: Images, tmp_path: Path) -> None:
    layers = [
        tar(folder("etc"), Entry("etc/a", b"a" * 2_000_000)),
        tar(Entry("etc/.wh.a"), Entry("etc/b", b"b")),
        tar(Entry("etc/c", b"c")),
        tar(folder("new"), Entry("new/d", b"d")),
    ]
    built, other = image(*layers), image(tar(Entry("other")))
    async with registry(tmp_path) as host:
        await push(host, "team/app", built, "1.0")
        found = await images.pull(f"{host}/team/app:1.0")
        assert found.id == built.config_digest and len(found.layers) == 4
        assert found.repo_digests == (f"{host}/team/app@{built.digest}",)
        assert (await images.pull(found.repo_digests[0])).id == found.id
        with pytest.raises(errors.NotFound):
            await images.pull(f"{host}/team/app:2.0")
        await push(host, "team/app", other, "")
        many = index(("s390x", built), (architecture(), other))
        async with httpx.AsyncClient(base_url=f"http://{host}", trust_env=False) as client:
            await push_manifest(client, "team/app", many, OCI_INDEX, "many")
        assert (await images.pull(f"{host}/team/app:many")).id == other.config_digest
    with pytest.raises(errors.Unavailable, match="refused the connection"):
        await images.pull(f"{host}/team/app:1.0")
    assert images.get(f"{host}/team/app:1.0") == found


async def test_a_registry_with_passwords(images: Images, tmp_path: Path) -> None:
    # bcrypt of "secret": the only form that docker-registry takes.
    line = "user:$2b$05$gtaaEt3xRVX9.bTaCyk2fOp4.MxpoeFThtxxzXOfmuoTl898MD3pK"
    (tmp_path / "htpasswd").write_text(line + "\n")
    auth = f"auth:\n  htpasswd: {{realm: test, path: {tmp_path}/htpasswd}}\n"
    built = image(tar(Entry("a")))
    async with registry(tmp_path, auth) as host:
        await push(host, "a", built, "1", ("user", "secret"))
        with pytest.raises(errors.Unauthenticated):
            await images.pull(f"{host}/a:1")
        with pytest.raises(errors.Unauthenticated):
            await images.pull(f"{host}/a:1", auth=Auth("user", "wrong"))
        found = await images.pull(f"{host}/a:1", auth=Auth("user", "secret"))
        assert found.id == built.config_digest
