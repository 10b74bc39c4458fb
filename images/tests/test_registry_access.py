"""Registries that want credentials, lead elsewhere, or are reached by hosts.toml."""

from __future__ import annotations

import base64
import json
import ssl
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from hostlib import errors, process
from images.auth import Tokens, applies
from images.hosts import Host
from images.manifest import architecture
from images.service import Auth, Images, Limits
from images.tests.build import OCI_INDEX, Entry, image, index, tar
from images.tests.fake_registry import Answer, Behaviour, FakeRegistry, Request, running

LAYER = tar(Entry("a", b"x" * 200_000))


def bearer(registry: FakeRegistry, *, good: str) -> Behaviour:
    """Wants a token from its own token server, and `good` as credentials for it."""

    def behave(request: Request) -> Answer | None:
        sent = request.headers.get("authorization", "")
        if request.path.startswith("/token"):
            if sent != good:
                return Answer(401)
            return Answer(body=json.dumps({"token": "T", "expires_in": 300}).encode())
        if sent == "Bearer T":
            return None
        challenge = f'Bearer realm="http://{registry.host}/token",service="s"'
        return Answer(401, headers={"WWW-Authenticate": challenge})

    return behave


def basic(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


async def test_a_bearer_token(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))
    registry.behave = bearer(registry, good=basic("u", "p"))
    name = f"{registry.host}/a"
    with pytest.raises(errors.Unauthenticated, match="without credentials"):
        await images.pull(name)
    with pytest.raises(errors.Unauthenticated, match="refused the credentials"):
        await images.pull(name, auth=Auth("u", "wrong"))
    with pytest.raises(errors.Unauthenticated):
        await images.pull(name, auth=Auth("u", "p", server_address="other.example"))
    encoded = base64.b64encode(b"u:p").decode()
    registry.requests.clear()
    assert await images.pull(name, auth=Auth(auth=encoded, server_address=registry.host))
    assert len(registry.paths("/token")) == 1
    assert "scope=repository%3Aa%3Apull" in registry.paths("/token")[0].path


async def test_an_anonymous_token(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))
    registry.behave = bearer(registry, good="")
    assert await images.pull(f"{registry.host}/a")


async def test_an_identity_token(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))

    def behave(request: Request) -> Answer | None:
        if request.path.startswith("/token") and b"refresh_token=I" not in request.body:
            return Answer(401)
        return bearer(registry, good="")(request)

    registry.behave = behave
    assert await images.pull(f"{registry.host}/a", auth=Auth(identity_token="I"))


async def test_basic_credentials(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))

    def behave(request: Request) -> Answer | None:
        if request.headers.get("authorization") == basic("u", "p"):
            return None
        return Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    registry.behave = behave
    with pytest.raises(errors.Unauthenticated, match="wants credentials"):
        await images.pull(f"{registry.host}/a")
    assert await images.pull(f"{registry.host}/a", auth=Auth("u", "p"))


async def test_a_redirect_gets_no_credentials(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(LAYER))
    async with running() as elsewhere:
        elsewhere.add(built)

        def behave(request: Request) -> Answer | None:
            if request.headers.get("authorization") != basic("u", "p"):
                return Answer(401, headers={"WWW-Authenticate": "Basic"})
            if "/blobs/" in request.path:
                return Answer(307, headers={"Location": f"http://{elsewhere.host}{request.path}"})
            return None

        registry.behave = behave
        assert await images.pull(f"{registry.host}/a", auth=Auth("u", "p"))
        assert len(elsewhere.requests) == 2
        assert not any("authorization" in item.headers for item in elsewhere.requests)


async def test_redirects_without_end(images: Images, registry: FakeRegistry) -> None:
    registry.behave = lambda r: Answer(302, headers={"Location": r.path})
    with pytest.raises(errors.Unavailable, match="redirects"):
        await images.pull(f"{registry.host}/a")


async def test_a_mirror_is_asked_first_and_passed_over(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    config = tmp_path / "hosts"
    (config / "example.com").mkdir(parents=True)
    service = Images(tmp_path / "root", registry_config=config, limits=Limits())
    await service.open()
    built = registry.add(image(LAYER))
    async with running() as mirror:
        (config / "example.com/hosts.toml").write_text(
            f'server = "http://{registry.host}"\n'
            f'[host."http://{mirror.host}"]\ncapabilities = ["pull", "resolve"]\n'
            '[host."http://' + mirror.host + '".header]\nx-who = "thaw"\n'
        )
        found = await service.pull("example.com/team/app")
        assert found.repo_tags == ("example.com/team/app:latest",)
        assert mirror.requests and registry.requests
        assert "ns=example.com" in mirror.requests[0].path
        assert mirror.requests[0].headers["x-who"] == "thaw"
        await service.remove(found.id)
        registry.requests.clear()
        mirror.add(built)
        await service.pull("example.com/team/app", auth=Auth("u", "p"))
        assert not registry.requests
        assert not any("authorization" in item.headers for item in mirror.requests)
    await service.close()


async def test_a_bad_hosts_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default/hosts.toml").write_text("servr = 1\n")
    service = Images(tmp_path / "root", registry_config=tmp_path, limits=Limits())
    await service.open()
    with pytest.raises(errors.InvalidArgument, match=r"hosts.toml: servr: unknown key"):
        await service.pull("example.com/a")
    await service.close()


async def test_a_private_authority(tmp_path: Path) -> None:
    await process.run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj",
        "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "ca.pem"),
    )  # fmt: skip
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(tmp_path / "ca.pem", tmp_path / "key.pem")
    service = Images(tmp_path / "root", registry_config=tmp_path, limits=Limits())
    await service.open()
    (tmp_path / "_default").mkdir()
    hosts = tmp_path / "_default/hosts.toml"
    async with running(tls) as secure:
        secure.add(image(LAYER))
        server = f'server = "https://{secure.host}"\n'
        hosts.write_text(server)
        with pytest.raises(errors.Unavailable, match="certificate"):
            await service.pull("example.com/a")
        for extra in ('ca = "../ca.pem"\n', "skip_verify = true\n"):
            hosts.write_text(server + extra)
            found = await service.pull("example.com/a")
            await service.remove(found.id)
    await service.close()


async def test_the_challenge_says_for_which_repository(
    images: Images, registry: FakeRegistry
) -> None:
    """A mirror may have it under another path; and no token is asked for that can do more."""
    registry.add(image(LAYER))
    named = "repository:proxy/a:pull,push repository:a:pull registry:catalog:*"

    def behave(request: Request) -> Answer | None:
        if request.path.startswith("/token"):
            return Answer(body=json.dumps({"access_token": "T"}).encode())
        if request.headers.get("authorization") == "Bearer T":
            return None
        challenge = f'Bearer realm="http://{registry.host}/token?x=1",scope="{named}"'
        return Answer(401, headers={"WWW-Authenticate": challenge})

    registry.behave = behave
    assert await images.pull(f"{registry.host}/a")
    (asked,) = registry.paths("/token")
    query = parse_qs(urlsplit(asked.path).query)
    assert query["scope"] == ["repository:proxy/a:pull", "repository:a:pull"]
    assert query["x"] == ["1"]


async def test_a_token_that_ends_within_a_pull(images: Images, registry: FakeRegistry) -> None:
    built = registry.add(image(LAYER))
    given: list[str] = []

    def behave(request: Request) -> Answer | None:
        if request.path.startswith("/token"):
            given.append(f"T{len(given)}")
            return Answer(body=json.dumps({"token": given[-1], "expires_in": 300}).encode())
        if given and request.headers.get("authorization") == f"Bearer {given[-1]}":
            if built.layers[0] in request.path and len(given) == 1:
                given[-1] = "revoked"
                return Answer(401, headers={"WWW-Authenticate": challenge})
            return None
        return Answer(401, headers={"WWW-Authenticate": challenge})

    challenge = f'Bearer realm="http://{registry.host}/token"'
    registry.behave = behave
    assert await images.pull(f"{registry.host}/a")
    assert len(given) == 2


async def test_tokens_live_as_long_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1000.0
    monkeypatch.setattr("images.auth.time.monotonic", lambda: now)
    asked = 0

    async def fetch(request: httpx.Request) -> tuple[int, bytes]:
        nonlocal asked
        asked += 1
        return 200, json.dumps({"token": f"T{asked}", "expires_in": 100}).encode()

    tokens = Tokens(None)
    header = 'Bearer realm="https://auth.example/token"'
    await tokens.answer(header, "https://r.example/v2", "s", trusted=True, fetch=fetch)
    assert tokens.kept("https://r.example/v2", "s") == "Bearer T1"
    # Neither for another host nor for another scope.
    assert tokens.kept("https://other.example/v2", "s") is None
    assert tokens.kept("https://r.example/v2", "other") is None
    now += 94
    assert tokens.kept("https://r.example/v2", "s") == "Bearer T1"
    now += 2
    assert tokens.kept("https://r.example/v2", "s") is None


async def test_a_registry_token(images: Images, registry: FakeRegistry) -> None:
    registry.add(image(LAYER))

    def behave(request: Request) -> Answer | None:
        if request.headers.get("authorization") == "Bearer mine":
            return None
        return Answer(401, headers={"WWW-Authenticate": "Bearer"})

    registry.behave = behave
    assert await images.pull(f"{registry.host}/a", auth=Auth(registry_token="mine"))
    with pytest.raises(errors.Unauthenticated, match="refused access"):
        await images.pull(f"{registry.host}/a", auth=Auth(registry_token="other"))
    elsewhere = Auth(registry_token="mine", server_address="other.example")
    with pytest.raises(errors.Unauthenticated):
        await images.pull(f"{registry.host}/a", auth=elsewhere)


HUB = "https://registry-1.docker.io/v2"


@pytest.mark.parametrize(
    ("address", "base", "domain", "mirror", "may"),
    [
        ("", "https://r.example/v2", "r.example", False, True),
        ("", "http://10.0.0.1:5000/v2", "r.example", False, True),
        ("", "https://m.example/v2", "r.example", True, False),
        ("r.example", "https://r.example/v2", "r.example", False, True),
        ("https://r.example/v1/", "https://r.example/v2", "r.example", False, True),
        ("R.Example:443", "https://r.example/v2", "r.example", False, True),
        ("r.example:5000", "https://r.example/v2", "r.example", False, False),
        ("r.example", "http://10.0.0.1:5000/v2", "r.example", False, True),
        ("r.example", "https://m.example/v2", "r.example", True, False),
        ("m.example", "https://m.example/v2", "r.example", True, True),
        ("r.example.evil", "https://r.example/v2", "r.example", False, False),
        ("https://index.docker.io/v1/", HUB, "docker.io", False, True),
        ("docker.io", "https://m.example/v2", "docker.io", True, False),
        ("[::1]:5000", "http://[::1]:5000/v2", "[::1]:5000", False, True),
    ],
)  # fmt: skip
def test_whom_credentials_are_for(
    address: str, base: str, domain: str, mirror: bool, may: bool
) -> None:
    host = Host(base, domain, is_mirror=mirror)
    assert applies(Auth("u", "p", server_address=address), host, domain) is may
    assert not applies(None, host, domain)


def test_credentials_have_no_text() -> None:
    """They are in the name of a task, and could come into a log."""
    fields = ("username", "password", "auth", "identity_token", "registry_token")
    assert "secret" not in repr(Auth(**dict.fromkeys(fields, "secret")))


async def authority(folder: Path, name: str) -> tuple[Path, Path]:
    key, certificate = folder / f"{name}.key", folder / f"{name}.pem"
    await process.run(
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
        "-days", "2", "-subj", f"/CN={name}", "-addext", "subjectAltName=IP:127.0.0.1",
        "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    return certificate, key


async def test_where_a_registry_leads_is_verified_and_sees_no_certificate(tmp_path: Path) -> None:
    front, storage, client = [await authority(tmp_path, name) for name in ("a", "b", "c")]
    contexts = []
    for certificate, key in (front, storage):
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(certificate, key)
        tls.load_verify_locations(client[0])
        tls.verify_mode = ssl.CERT_OPTIONAL
        contexts.append(tls)
    service = Images(tmp_path / "root", registry_config=tmp_path, limits=Limits())
    await service.open()
    (tmp_path / "_default").mkdir()
    hosts = tmp_path / "_default/hosts.toml"
    async with running(contexts[0]) as registry, running(contexts[1]) as elsewhere:
        built = registry.add(image(LAYER))
        elsewhere.add(built)

        def behave(request: Request) -> Answer | None:
            if "/blobs/" in request.path:
                return Answer(307, headers={"Location": f"https://{elsewhere.host}{request.path}"})
            return None

        registry.behave = behave
        server = f'server = "https://{registry.host}"\nclient = [["c.pem", "c.key"]]\n'
        for name in ("c.pem", "c.key"):
            (tmp_path / "_default" / name).write_bytes((tmp_path / name).read_bytes())
        # skip_verify is said of the registry alone.
        hosts.write_text(f"{server}skip_verify = true\n")
        with pytest.raises(errors.Unavailable, match="certificate") as caught:
            await service.pull("example.com/a")
        assert elsewhere.host in caught.value.message
        assert not elsewhere.requests
        hosts.write_text(f'{server}ca = ["../a.pem", "../b.pem"]\n')
        assert await service.pull("example.com/a")
        assert all(item.certificate for item in registry.requests)
        assert elsewhere.requests and not any(item.certificate for item in elsewhere.requests)
    await service.close()


async def test_who_may_not_say_what_a_tag_means_gives_what_has_a_digest(
    registry: FakeRegistry, tmp_path: Path
) -> None:
    (tmp_path / "example.com").mkdir()
    service = Images(tmp_path / "root", registry_config=tmp_path, limits=Limits())
    await service.open()
    made, lie = image(LAYER), image(tar(Entry("lie")))
    data = index((architecture(), made))
    registry.add_manifest(data, OCI_INDEX, "latest")
    async with running() as mirror:
        mirror.add(made)
        mirror.add(lie)
        (tmp_path / "example.com/hosts.toml").write_text(
            f'server = "http://{registry.host}"\n'
            f'[host."http://{mirror.host}"]\ncapabilities = ["pull"]\n'
        )
        found = await service.pull("example.com/a")
        assert found.id == made.config_digest
        assert [item.path for item in registry.requests] == ["/v2/a/manifests/latest"]
        assert mirror.paths(f"/manifests/{made.digest}")
    await service.close()


async def test_a_host_that_does_not_answer_has_its_time(
    images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[float | None] = []
    original = httpx.AsyncClient

    def client(**options: Any) -> httpx.AsyncClient:
        seen.append(options["timeout"].connect)
        return original(**options)

    monkeypatch.setattr("images.registry.httpx.AsyncClient", client)
    (tmp_path / "example.com").mkdir()
    (tmp_path / "example.com/hosts.toml").write_text(
        'server = "http://127.0.0.1:1"\n[host."http://127.0.0.1:2"]\ndial_timeout = "250ms"\n'
    )
    service = Images(tmp_path / "root", registry_config=tmp_path, limits=Limits())
    await service.open()
    with pytest.raises(errors.Unavailable):
        await service.pull("example.com/a")
    assert seen == [0.25, 15.0]
    await service.close()
