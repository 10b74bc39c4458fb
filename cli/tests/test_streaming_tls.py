"""TLS between the command and the streaming server, with real certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from cli.streaming import Tls, connect
from cli.tests.streaming_fixtures import thaw
from cri.streaming.certificates import CertificateFiles
from cri.streaming.tests.guests import ALL, Guest, exec_url
from cri.streaming.tests.test_certificates import authority, certificate
from hostlib.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable


async def hello(guest: Guest) -> int:
    await guest.stdout.write(b"hello")
    return 4


async def test_the_server_is_verified_by_the_authority_that_is_named(tmp_path: Path) -> None:
    authority(tmp_path, "ca")
    files = CertificateFiles(*certificate(tmp_path, "server", "ca"))
    async with thaw(tmp_path, files) as it:
        it.backend.program = hello
        done = await it.run("exec", "--streaming-ca", str(tmp_path / "ca.pem"), "c", "x")
        assert (done.code, done.out, done.err) == (4, b"hello", "")
        done = await it.run("exec", "c", "x")
        assert (done.code, done.out) == (1, b"")
        assert done.err.startswith("error: no TLS with the streaming server at 127.0.0.1:")
        assert "hint: --streaming-ca" in done.err


async def test_a_server_that_asks_for_a_certificate_gets_one(tmp_path: Path) -> None:
    ca = authority(tmp_path, "ca")
    files = CertificateFiles(*certificate(tmp_path, "server", "ca"), ca)
    cert, key = certificate(tmp_path, "user", "ca")
    async with thaw(tmp_path, files) as it:
        it.backend.program = hello
        options = ["--streaming-ca", str(ca)]
        done = await it.run("exec", *options, "c", "x")
        assert done.code == 1
        assert "error: " in done.err
        assert "--streaming-cert" in done.err
        options += ["--streaming-cert", str(cert), "--streaming-key", str(key)]
        done = await it.run("exec", *options, "c", "x")
        assert (done.code, done.out) == (4, b"hello")


async def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="nowhere"):
        Tls(authority=str(tmp_path / "nowhere")).context()


async def test_a_url_serves_once(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        url = exec_url(it.server, ALL)
        async with connect(url, "v4.channel.k8s.io", Tls()):
            pass
        with pytest.raises(NotFound, match="404"):
            async with connect(url, "v4.channel.k8s.io", Tls()):
                pass
        with pytest.raises(FailedPrecondition, match="403"):
            async with connect(exec_url(it.server, ALL), "v9", Tls()):
                pass


async def test_nobody_listens(tmp_path: Path) -> None:
    async with thaw(tmp_path) as it:
        url = exec_url(it.server, ALL)
    with pytest.raises(Unavailable, match="does not answer"):
        async with connect(url, "v4.channel.k8s.io", Tls()):
            pass
