from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

from cli import main, verb_run
from cli.client import Client
from hostlib import errors

NOWHERE = "unix:///no/such/thawd.sock"


def run(*argv: str) -> int:
    with pytest.raises(SystemExit) as caught:
        main.main(argv)
    return int(caught.value.code or 0)


@pytest.mark.parametrize("verb", main.VERBS)
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(verb, "--help") == 0
    assert verb in capsys.readouterr().out


@pytest.mark.parametrize("argv", [(), ("nonsense",), ("run",), ("images", "--nonsense")])
def test_wrong_usage_is_exit_code_2(argv: tuple[str, ...]) -> None:
    assert run(*argv) == 2


def test_no_daemon_is_said_with_a_hint(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--address", NOWHERE, "pods") == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"error: thawd does not answer at {NOWHERE}" in captured.err
    assert "hint: " in captured.err


def test_the_address_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("THAW_ADDRESS", NOWHERE)
    assert main.parser().parse_args(["pods"]).address == NOWHERE


def test_the_default_configuration_is_printed_and_judged_good(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("config", "default") == 0
    file = tmp_path / "config.toml"
    file.write_text(capsys.readouterr().out)
    assert run("config", "check", str(file)) == 0
    file.write_text("nonsense = 1\n")
    assert run("config", "check", str(file)) == 1
    assert "nonsense" in capsys.readouterr().err


def test_doctor_finds_a_daemon_that_does_not_answer(capsys: pytest.CaptureFixture[str]) -> None:
    run("--address", NOWHERE, "doctor", "--json")
    found = {item["name"]: item for item in json.loads(capsys.readouterr().out)}
    assert found["thawd"]["level"] == "warning"
    assert found["thawd"]["hint"]


def test_rm_wants_names_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("rm") == 1
    assert run("rm", "--all", "x") == 1
    assert "hint: " in capsys.readouterr().err


@pytest.mark.parametrize("text", ["NAME", "=x", ""])
def test_run_refuses_bad_variables(text: str) -> None:
    arguments = main.parser().parse_args(["--address", NOWHERE, "run", "-e", text, "image"])
    with pytest.raises(errors.InvalidArgument):
        verb_run.run(arguments)


def test_run_takes_all_that_follows_the_image_as_the_command() -> None:
    arguments = main.parser().parse_args(["run", "-w", "/x", "image", "sh", "-c", "echo --pull"])
    assert isinstance(arguments, argparse.Namespace)
    assert arguments.command == ["sh", "-c", "echo --pull"]


def test_a_client_that_never_connected_closes() -> None:
    with Client(NOWHERE) as client, pytest.raises(errors.Unavailable):
        client.version()


@pytest.mark.parametrize("argv", [["--address", "logs", "pods"], ["--address=logs", "pods"]])
def test_only_the_named_verb_is_loaded(argv: list[str]) -> None:
    found = main.parser(argv)
    assert found.parse_args(argv).run
    with pytest.raises(SystemExit):
        found.parse_args(["logs", "container"])
