"""TLS with real certificates, made by openssl, that are replaced while the server runs."""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import ssl
import subprocess
from pathlib import Path

import pytest

from cri.streaming.certificates import CertificateFiles
from cri.streaming.server import StreamingServer
from cri.streaming.tests.guests import ALL, IN_OUT, FakeBackend, cat, exec_url, serving
from cri.streaming.tests.spdy_client import spdy
from hostlib.errors import FailedPrecondition


def openssl(*arguments: str) -> None:
    subprocess.run(["openssl", *arguments], check=True, capture_output=True, timeout=60)


def authority(folder: Path, name: str) -> Path:
    """A new authority: NAME.pem and NAME.key."""
    openssl(
        *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")),
        *("-days", "2", "-subj", f"/CN={name}"),
    )
    return folder / f"{name}.pem"


def certificate(folder: Path, name: str, signer: str) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and its key."""
    request, key, cert = (folder / f"{name}.{kind}" for kind in ("csr", "key", "pem"))
    openssl(
        *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
        *("-keyout", str(key), "-out", str(request), "-subj", f"/CN={name}"),
    )
    extensions = folder / f"{name}.ext"
    extensions.write_text("subjectAltName=IP:127.0.0.1\n")
    openssl(
        *("x509", "-req", "-in", str(request), "-days", "2", "-extfile", str(extensions)),
        *("-CA", str(folder / f"{signer}.pem"), "-CAkey", str(folder / f"{signer}.key")),
        *("-CAcreateserial", "-out", str(cert)),
    )
    return cert, key


@pytest.fixture
def files(tmp_path: Path) -> CertificateFiles:
    authority(tmp_path, "ca")
    cert, key = certificate(tmp_path, "first", "ca")
    return CertificateFiles(cert, key)


def trusting(files: CertificateFiles) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(files.cert.with_name("ca.pem")))


async def serial(server: StreamingServer, context: ssl.SSLContext) -> str:
    """The serial number of the certificate that a new client is shown."""
    backend_url = exec_url(server, IN_OUT)
    async with spdy(backend_url, context=context) as client:
        shown = client.writer.get_extra_info("ssl_object").getpeercert()
        return str(shown["serialNumber"])


async def test_a_command_over_tls(files: CertificateFiles) -> None:
    backend = FakeBackend()
    backend.program = cat
    payload = os.urandom(4 * 1024 * 1024)
    async with serving(backend, tls=files) as server:
        assert server.base.startswith("https://127.0.0.1:")
        async with spdy(exec_url(server, IN_OUT), context=trusting(files)) as client:
            ids = await client.command("stdin", "stdout")
            sender = asyncio.create_task(client.send(ids["stdin"], payload, fin=True))
            assert await client.finished(ids["stdout"]) == payload
            await sender
            assert b"Success" in await client.finished(ids["error"])


async def test_plain_clients_get_nothing_from_a_tls_port(files: CertificateFiles) -> None:
    async with serving(FakeBackend(), tls=files) as server:
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            async with spdy(exec_url(server, ALL).replace("https", "http")):
                pass


async def test_files_that_change_are_used_and_bad_ones_are_not(
    files: CertificateFiles, caplog: pytest.LogCaptureFixture
) -> None:
    folder = files.cert.parent
    context = trusting(files)
    async with serving(FakeBackend(), tls=files) as server:
        first = await serial(server, context)
        assert await serial(server, context) == first
        # In the midst of a rotation, certificate and key do not belong together.
        cert, key = certificate(folder, "second", "ca")
        shutil.copy(cert, files.cert)
        with caplog.at_level(logging.ERROR):
            assert await serial(server, context) == first
            assert await serial(server, context) == first
        assert len([each for each in caplog.records if "stays in use" in each.message]) == 1
        shutil.copy(key, files.key)
        second = await serial(server, context)
        assert second != first
        # As Kubernetes' secrets are replaced: a new file takes the name.
        files.cert.unlink()
        assert await serial(server, context) == second
        cert, key = certificate(folder, "third", "ca")
        os.replace(cert, files.cert)
        os.replace(key, files.key)
        assert await serial(server, context) not in (first, second)


async def test_clients_must_show_a_certificate_where_an_authority_is_named(
    files: CertificateFiles,
) -> None:
    folder = files.cert.parent
    authorities = {name: authority(folder, name) for name in ("mine", "others")}
    named = CertificateFiles(files.cert, files.key, folder / "clients.pem")
    shutil.copy(authorities["mine"], folder / "clients.pem")
    backend = FakeBackend()
    backend.program = cat

    def showing(signer: str) -> ssl.SSLContext:
        context = trusting(files)
        context.load_cert_chain(*certificate(folder, f"client-{signer}", signer))
        return context

    async with serving(backend, tls=named) as server:
        await serial(server, showing("mine"))
        for refused in (trusting(files), showing("others")):
            with pytest.raises((OSError, asyncio.IncompleteReadError)):
                await serial(server, refused)
        # Another authority: the former one's clients are refused.
        shutil.copy(authorities["others"], folder / "clients.pem")
        await serial(server, showing("others"))
        with pytest.raises((OSError, asyncio.IncompleteReadError)):
            await serial(server, showing("mine"))


@pytest.mark.parametrize("what", ["missing", "garbage", "encrypted"])
async def test_a_start_without_good_files_is_refused(files: CertificateFiles, what: str) -> None:
    if what == "missing":
        files.key.unlink()
    elif what == "garbage":
        files.cert.write_text("no certificate")
    else:
        openssl(
            *("ec", "-in", str(files.key), "-out", str(files.key), "-aes256"),
            *("-passout", "pass:secret"),
        )
    with pytest.raises(FailedPrecondition) as caught:
        async with serving(FakeBackend(), tls=files):
            pass
    assert "streaming.tls_cert" in (caught.value.hint or "")
