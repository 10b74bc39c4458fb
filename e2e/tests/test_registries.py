"""Registries: TLS, credentials, tokens, mirrors, redirects, and one of another make."""

from __future__ import annotations

import base64
import json
import shlex
import shutil
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from demo import oci
from e2e.harness.authority import Authority
from e2e.harness.command import thaw
from e2e.harness.crane import CraneRegistry, crane
from e2e.harness.daemon import Daemon
from e2e.harness.faulty import Answer, FaultyRegistry, Request
from e2e.harness.pods import Pod
from e2e.harness.pushed import pull
from e2e.harness.refs import SHELL, SLEEP
from e2e.harness.registry import Registry
from hostlib import errors
from images.tests.build import Entry, image, tar

LAYER = tar(Entry("etc/faulty", b"x" * 200_000))


# bcrypt of "s3cret-Word": the only form that docker-registry takes.
HTPASSWD = "user:$2b$05$abcdefghijklmnopqrstuuxwmP4QpMhOYPojw/dWE6DJ9CnGV0H32"


SECRET = "s3cret-Word"


@pytest.fixture(scope="module")
def secure(workspace: Path, built: dict[str, oci.Image]) -> Iterator[tuple[Registry, Authority]]:
    """docker-registry with htpasswd, behind TLS that asks for a client's certificate."""
    folder = workspace / "secure"
    authority = Authority(folder / "tls")
    certificate, key = authority.issue("server")
    (folder / "htpasswd").write_text(HTPASSWD + "\n")
    settings = {
        "http": {
            "tls": {
                "certificate": str(certificate),
                "key": str(key),
                "clientcas": [str(authority.certificate)],
            }
        },
        "auth": {"htpasswd": {"realm": "test", "path": str(folder / "htpasswd")}},
    }
    context = ssl.create_default_context(cafile=authority.certificate)
    context.load_cert_chain(*authority.issue("client"))
    client = {"verify": context, "auth": ("user", SECRET)}
    with Registry(
        folder, settings=settings, scheme="https", client=client, host="secure.test"
    ) as running:
        running.push(built["demo/shell"], "e2e/private")
        yield running, authority


@pytest.fixture
def hosts(puller: Daemon) -> Iterator[Callable[[str, str], None]]:
    """Writes the hosts.toml of a name."""
    written: list[Path] = []

    def write(name: str, text: str) -> None:
        place = puller.folder / "hosts" / name
        place.mkdir(parents=True, exist_ok=True)
        (place / "hosts.toml").write_text(text)
        written.append(place / "hosts.toml")

    yield write
    for path in written:
        path.unlink(missing_ok=True)


def test_tls_and_every_form_of_credentials(
    puller: Daemon, secure: tuple[Registry, Authority], hosts: Callable[[str, str], None]
) -> None:
    registry, authority = secure
    tls = authority.path("").parent / "tls"
    ref = "secure.test/e2e/private:latest"
    good = {"username": "user", "password": SECRET}
    server = f'server = "{registry.url}"\n'
    ca = f'ca = "{tls}/ca.pem"\n'
    client = f'client = [["{tls}/client.pem", "{tls}/client.key"]]\n'
    for text, says in (
        (server + client, "certificate"),
        (server + ca, "(?i)ended the TLS connection.*certificate"),
        (server + client + "skip_verify = false\n", "certificate"),
    ):
        hosts("secure.test", text)
        with pytest.raises(errors.Unavailable, match=says):
            pull(puller, ref, **good)
    hosts("secure.test", server + ca + 'client = "/nowhere.pem"\n')
    with pytest.raises(errors.InvalidArgument, match="TLS files of registry host"):
        pull(puller, ref, **good)
    hosts("secure.test", server + client + "skip_verify = true\n")
    puller.client.remove_image(pull(puller, ref, **good).id)

    hosts("secure.test", server + ca + client)
    encoded = base64.b64encode(f"user:{SECRET}".encode()).decode()
    for auth in (
        good,
        {"auth": encoded},
        {"auth": encoded, "server_address": "secure.test"},
        {**good, "server_address": "https://secure.test/v1/"},
        {**good, "server_address": registry.url},
    ):
        puller.client.remove_image(pull(puller, ref, **auth).id)
    for auth, says in (
        ({}, "wants credentials"),
        ({**good, "password": "wrong"}, "refused access"),
        ({**good, "server_address": "other.test"}, "wants credentials; .* for other.test"),
        # This registry knows no tokens.
        ({"identity_token": SECRET}, "wants credentials|refused access"),
        ({"registry_token": SECRET}, "refused access"),
    ):
        with pytest.raises(errors.Unauthenticated, match=says) as caught:
            pull(puller, ref, **auth)
        assert caught.value.hint and SECRET not in str(caught.value)
    for auth in (
        {"auth": "!"},
        {"auth": base64.b64encode(b"no colon").decode()},
        {**good, "username": "a:b"},
        {**good, "server_address": "http://[bad"},
        {"registry_token": "two\nlines"},
    ):
        with pytest.raises(errors.InvalidArgument, match="credentials"):
            pull(puller, ref, **auth)
    log = puller.log_text()
    assert SECRET not in log and encoded not in log


def test_folders_of_certificates(puller: Daemon, secure: tuple[Registry, Authority]) -> None:
    """As docker has them: /etc/docker/certs.d can be the folder of registries."""
    registry, authority = secure
    host = f"127.0.0.1:{registry.port}"
    ref = f"{host}/e2e/private:latest"
    place = puller.folder / "hosts" / host
    place.mkdir()
    files = {
        "site.crt": authority.certificate,
        "node.key": authority.path("client.key"),
        "node.cert": authority.path("client.pem"),
    }
    says: list[tuple[type[errors.ThawError], str]] = [
        (errors.ThawError, host),
        (errors.Unavailable, "(?i)ended the TLS connection.*certificate"),
        (errors.InvalidArgument, "node.key has no certificate"),
    ]
    try:
        for (name, source), (error, words) in zip(files.items(), says, strict=True):
            with pytest.raises(error, match=words):
                pull(puller, ref, username="user", password=SECRET)
            shutil.copy(source, place / name)
        found = pull(puller, ref, username="user", password=SECRET)
        assert Pod.run(puller).start(found.id, SLEEP).sh("echo runs") == "runs"
    finally:
        shutil.rmtree(place)


def test_tokens(puller: Daemon, mirrors: tuple[FaultyRegistry, FaultyRegistry]) -> None:
    """A token server that takes passwords and identity tokens, and gives short-lived tokens for
    this repository; a registry token needs no server."""
    front, server = mirrors
    made = front.registry.add(image(LAYER, tar(Entry("second"))))
    token = "T-" + SECRET
    good = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()
    realm = f"http://{server.registry.host}/token"
    challenge = f'Bearer realm="{realm}",service="images",scope="repository:team/app:pull,push"'

    def registry(request: Request) -> Answer | None:
        if request.headers.get("authorization") == f"Bearer {token}":
            return None
        return Answer(401, headers={"WWW-Authenticate": challenge})

    def tokens(request: Request) -> Answer | None:
        known = request.headers.get("authorization") == good
        body = {"token": token, "expires_in": 60}
        if request.method == "POST":
            known = f"refresh_token={SECRET}" in request.body.decode()
            body = {"access_token": token}
        return Answer(body=json.dumps(body).encode()) if known else Answer(401)

    front.registry.behave, server.registry.behave = registry, tokens
    scope = "scope=repository%3Ateam%2Fapp%3Apull"
    for auth, method in (
        ({"username": "user", "password": SECRET}, "GET"),
        ({"identity_token": SECRET}, "POST"),
        ({"registry_token": token}, ""),
    ):
        puller.client.remove_image(pull(puller, front.image, **auth).id)
        asked = server.registry.requests
        assert [each.method for each in asked] == ([method] if method else [])
        for each in asked:
            text = each.path if method == "GET" else each.body.decode()
            assert text.endswith(scope) or f"{scope}&" in text, text
            assert "service=images" in text
        asked.clear()
    for auth in ({}, {"identity_token": "wrong"}, {"registry_token": "wrong"}):
        with pytest.raises(errors.Unauthenticated):
            pull(puller, front.image, **auth)
    elsewhere = {"identity_token": SECRET, "server_address": "other.test"}
    server.registry.requests.clear()
    with pytest.raises(errors.Unauthenticated, match="those given are for other"):
        pull(puller, front.image, **elsewhere)
    assert all(not each.body for each in server.registry.requests)
    assert puller.client.image_status(made.config_digest) is None
    assert SECRET not in puller.log_text()


def test_thaw_pull_uses_dockers_credentials(
    puller: Daemon, secure: tuple[Registry, Authority], hosts: Callable[[str, str], None],
    tmp_path: Path,
) -> None:  # fmt: skip
    registry, authority = secure
    tls = authority.path("").parent / "tls"
    hosts(
        "secure.test",
        f'server = "{registry.url}"\nca = "{tls}/ca.pem"\n'
        f'client = [["{tls}/client.pem", "{tls}/client.key"]]\n',
    )
    ref = "secure.test/e2e/private:latest"
    asked = tmp_path / "asked"
    helper = tmp_path / "bin/docker-credential-test"
    helper.parent.mkdir()
    answer = json.dumps({"ServerURL": "secure.test", "Username": "user", "Secret": SECRET})
    path = f"{helper.parent}:/usr/bin:/bin"

    def script(text: str) -> None:
        helper.write_text(f'#!/bin/sh\necho "$1 $(cat)" >> {asked}\n{text}\n')
        helper.chmod(0o755)

    def run(config: object) -> Any:
        data = config if isinstance(config, str) else json.dumps(config)
        (tmp_path / "config.json").write_text(data)
        environment = {"DOCKER_CONFIG": str(tmp_path), "PATH": path}
        return thaw(puller, "pull", "--refresh", ref, environment=environment)

    encoded = base64.b64encode(f"user:{SECRET}".encode()).decode()
    script(f"echo {shlex.quote(answer)}")
    good: list[dict[str, Any]] = [
        {"auths": {"secure.test": {"auth": encoded}}},
        {"auths": {"https://secure.test/v2/": {"username": "user", "password": SECRET}}},
        {"auths": {"secure.test": {"auth": "bm86"}, "secure.test/e2e": {"auth": encoded}}},
        {"credHelpers": {"secure.test": "test"}, "auths": {"secure.test": {}}},
        {"credsStore": "test"},
    ]
    for config in good:
        done = run(config)
        assert done.returncode == 0, (config, done.stderr)
        puller.client.remove_image(done.stdout.strip())
    assert asked.read_text() == "get secure.test\n" * 2

    # A store that has none leaves it to auths.
    script("echo credentials not found in native keychain; exit 1")
    assert run({"credsStore": "test", **good[0]}).returncode == 0
    puller.client.remove_image(ref)
    shown = []
    bad: list[tuple[Any, str]] = [
        ({}, "wants credentials"),
        ({"auths": {"other.test": {"auth": encoded}}}, "wants credentials"),
        ({"credsStore": "test"}, "wants credentials"),
        (
            {"credHelpers": {"secure.test": "none-such"}},
            "none-such cannot be run",
        ),
        ({"credHelpers": {"secure.test": "../x"}}, "bad name"),
        ({"auths": {"secure.test": {"auth": SECRET}}}, "is no base64"),
        ('{"auths": ' + SECRET, "is no JSON object"),
        ({"auths": [SECRET]}, "auths is no object"),
    ]
    for each, says in bad:
        done = run(each)
        assert done.returncode == 1
        assert says in done.stderr, (each, done.stderr)
        shown.append(done.stderr)
    script(f"echo {SECRET}; echo {SECRET} >&2; exit 3")
    failing = run({"credsStore": "test"})
    assert "failed with 3" in failing.stderr
    script(f"echo {SECRET}")
    silent = run({"credsStore": "test"})
    assert "answered no credentials" in silent.stderr
    said = "".join([*shown, failing.stderr, silent.stderr, puller.log_text()])
    assert SECRET not in said and encoded not in said


@pytest.fixture
def mirrors() -> Iterator[tuple[FaultyRegistry, FaultyRegistry]]:
    with FaultyRegistry() as first, FaultyRegistry() as other:
        yield first, other


def test_mirrors_are_asked_in_their_order_for_what_they_may(
    puller: Daemon, registry: Registry, mirrors: tuple[FaultyRegistry, FaultyRegistry],
    hosts: Callable[[str, str], None],
) -> None:  # fmt: skip
    """One that is down, one that only resolves, one under a path of its own that has only blobs,
    then the registry."""
    resolver, store = mirrors
    made = image(LAYER, tar(Entry("second")))
    moved = image(tar(Entry("moved")))
    resolver.registry.add(made, "1")
    store.registry.add(moved, "1")
    store.registry.blobs |= made.blobs

    def mirror(url: str, *lines: str) -> str:
        return "\n".join([f'[host."{url}"]', *lines, ""])

    header = f'[host."http://{store.registry.host}/cache/x".header]\nX-Team = ["a", "b"]\n'
    hosts(
        "mirrored.test",
        f'server = "{registry.url}"\n'
        + mirror("http://127.0.0.1:1", 'dial_timeout = "500ms"')
        + mirror(f"http://{resolver.registry.host}", 'capabilities = ["resolve"]')
        + mirror(
            f"http://{store.registry.host}/cache/x",
            'capabilities = ["pull"]',
            "override_path = true",
        )
        + header,
    )
    found = pull(puller, "mirrored.test/team/app:1", username="u", password="p")
    assert found.id == made.config_digest
    assert list(found.repo_tags) == ["mirrored.test/team/app:1"]
    assert [r.path for r in resolver.registry.requests] == [
        "/v2/team/app/manifests/1?ns=mirrored.test"
    ]
    paths = sorted(r.path for r in store.registry.requests)
    assert paths == sorted(
        f"/cache/x/team/app/blobs/{digest}?ns=mirrored.test" for digest in made.blobs
    )
    # Its headers, and nobody's credentials.
    for request in (*resolver.registry.requests, *store.registry.requests):
        assert "authorization" not in request.headers
    assert all(r.headers.get("x-team") == "b" for r in store.registry.requests)
    # All of them without it: what the registry has.
    for each in mirrors:
        each.reset()
    with pytest.raises(errors.NotFound, match="has no manifest 2"):
        pull(puller, "mirrored.test/team/app:2")
    assert "is passed over for mirrored.test" in puller.log_text()


def test_redirects_and_their_credentials(
    puller: Daemon, mirrors: tuple[FaultyRegistry, FaultyRegistry],
    hosts: Callable[[str, str], None],
) -> None:  # fmt: skip
    """A registry that keeps its blobs elsewhere: neither credentials nor headers go there."""
    front, storage = mirrors
    made = front.registry.add(image(LAYER))
    storage.registry.add(made)
    good = "Basic " + base64.b64encode(f"user:{SECRET}".encode()).decode()

    def behave(request: Request) -> Answer | None:
        if request.headers.get("authorization") != good:
            return Answer(401, headers={"WWW-Authenticate": 'Basic realm="x"'})
        if "/blobs/" in request.path:
            target = f"http://{storage.registry.host}{request.path}"
            return Answer(307, headers={"Location": target})
        return None

    front.registry.behave = behave
    hosts(
        "front.test",
        f'server = "http://{front.registry.host}"\n[header]\nX-Key = "{SECRET}"\n',
    )
    found = pull(puller, "front.test/team/app", username="user", password=SECRET)
    assert found.id == made.config_digest
    assert front.registry.requests and len(storage.registry.requests) == 2
    assert all(r.headers.get("x-key") == SECRET for r in front.registry.requests)
    for request in storage.registry.requests:
        assert not {"authorization", "x-key", "cookie"} & set(request.headers)


def test_a_second_registry_with_its_own_tool(
    puller: Daemon, second: CraneRegistry, registry: Registry
) -> None:
    """What crane copies from registry to registry is the same image, and runs."""
    second.write_hosts(puller.folder / "hosts")
    source = registry.url.removeprefix("http://") + "/demo/shell:latest"
    target = second.url.removeprefix("http://") + "/team/deep/shell:v1"
    crane("copy", source, target)
    assert crane("digest", target) == crane("digest", source)
    found = pull(puller, "crane.test/team/deep/shell:v1")
    assert found.id == pull(puller, SHELL).id
    assert list(found.repo_digests) == [f"crane.test/team/deep/shell@{crane('digest', target)}"]
    pod = Pod.run(puller)
    assert pod.start("crane.test/team/deep/shell:v1", SLEEP).sh("echo runs") == "runs"
    pod.remove()
