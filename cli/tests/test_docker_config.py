from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cli import docker_config
from hostlib import errors
from images import reference

ENCODED = base64.b64encode(b"u:p").decode()


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.delenv("REGISTRY_AUTH_FILE", raising=False)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    return lambda body: (tmp_path / "config.json").write_text(json.dumps(body))


def test_nothing_is_nothing(config: Any, tmp_path: Path) -> None:
    assert docker_config.find("nginx") == {}
    config({"auths": {"other.example": {"auth": ENCODED}, "r.example": {}}})
    assert docker_config.find("nginx") == docker_config.find("r.example/a") == {}
    # The daemon says what is wrong with it.
    assert docker_config.find("Bad//Name") == {}


@pytest.mark.parametrize(
    ("key", "image"),
    [
        ("https://index.docker.io/v1/", "nginx"),
        ("docker.io", "docker.io/team/app"),
        ("r.example", "r.example/a/b:1"),
        ("https://r.example", "r.example/a"),
        ("https://r.example/v2/", "r.example/a"),
        ("r.example:5000", "r.example:5000/a"),
        ("r.example/team", "r.example/team/app"),
        ("r.example/team/app", "r.example/team/app@sha256:" + "0" * 64),
    ],
)
def test_keys(config: Any, key: str, image: str) -> None:
    config({"auths": {key: {"auth": ENCODED}}})
    found = docker_config.find(image)
    assert found["auth"] == ENCODED
    assert found["server_address"] in ("docker.io", "r.example", "r.example:5000")


def test_the_longest_path_counts(config: Any) -> None:
    config({"auths": {"r.example": {"username": "a"}, "r.example/team": {"username": "b"}}})
    assert docker_config.find("r.example/team/x")["username"] == "b"
    assert docker_config.find("r.example/teams/x")["username"] == "a"


def test_tokens(config: Any) -> None:
    config({"auths": {"r.example": {"identitytoken": "I", "registrytoken": "R"}}})
    assert docker_config.find("r.example/a") == {
        "identity_token": "I", "registry_token": "R", "server_address": "r.example"
    }  # fmt: skip


def test_a_helper(config: Any, tmp_path: Path) -> None:
    helper = tmp_path / "docker-credential-x"
    answer = json.dumps({"Username": "<token>", "Secret": "I"})
    helper.write_text(f"#!/bin/sh\ncat > {tmp_path}/asked\necho '{answer}'\n")
    helper.chmod(0o755)
    config({"credHelpers": {"r.example": "x"}, "credsStore": "none"})
    assert docker_config.find("r.example/a") == {
        "identity_token": "I", "server_address": "r.example"
    }  # fmt: skip
    assert (tmp_path / "asked").read_text() == "r.example"
    with pytest.raises(errors.FailedPrecondition, match="docker-credential-none cannot be run"):
        docker_config.find("nginx")
    config({"credsStore": "x"})
    docker_config.find("nginx")
    assert (tmp_path / "asked").read_text() == "https://index.docker.io/v1/"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(0, 1) | st.sampled_from(["", "r.example", "x/../y"]),
    lambda inner: st.lists(inner, max_size=2)
    | st.dictionaries(st.sampled_from(
        ["auths", "credHelpers", "credsStore", "r.example", "https://r.example/v1", "[", "auth",
         "username", "identitytoken"]), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.sampled_from(["auths", "credHelpers", "credsStore"]), JSON))
def test_odd_files_are_refused(body: dict[str, Any]) -> None:
    ref = reference.parse("r.example/a")
    file = Path("config.json")
    try:
        found = docker_config._from_auths(body, ref, file)
    except errors.InvalidArgument as error:
        assert "config.json" in error.message
    else:
        assert all(isinstance(value, str) for value in found.values())
