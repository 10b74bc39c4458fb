"""The model that judges clients who call at once: what it must accuse of, and what it must not."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping

import pytest

from cri.api import v1_pb2 as v1
from e2e.harness.model import KEPT, Call, Model


@pytest.fixture
def model() -> Model:
    """A pod with a container, made within the first second."""
    made = Model()
    made.made_pod("pod", Call(0.0, 0.4))
    made.made_container("one", "pod", Call(0.5, 1.0))
    return made


def do(model: Model, kind: str, thing: str, call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as clock:
        clock.setattr(time, "monotonic", lambda: call.begun)
        model.asked(kind, thing)
    model.did(kind, thing, call)


def listed(model: Model, states: Iterable[str] | Mapping[str, int], call: Call) -> list[str]:
    """What is wrong with a list of containers."""
    found = states if isinstance(states, Mapping) else dict.fromkeys(states, v1.CONTAINER_CREATED)
    model.listed(model.containers, found, call)
    for thing, state in found.items():
        model.told(thing, state, call)
    wrong, model.wrong = model.wrong, []
    return wrong


def test_what_was_made_before_the_question_must_be_listed(model: Model) -> None:
    assert not listed(model, [], Call(0.9, 2.0))
    assert listed(model, [], Call(1.1, 2.0)) == ["one is not listed"]
    assert not listed(model, ["one"], Call(1.1, 2.0))


def test_what_was_removed_before_the_question_must_not(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(model, "removed", "one", Call(3.0, 4.0), monkeypatch)
    for states in (["one"], []):
        assert not listed(model, states, Call(3.5, 5.0))
    assert listed(model, ["one"], Call(4.5, 5.0)) == ["one was removed and is listed"]
    assert not listed(model, [], Call(4.5, 5.0))


def test_states_only_go_forward(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert listed(model, {"one": v1.CONTAINER_RUNNING}, Call(1.1, 1.2)) == [
        "one runs, and nobody started it"
    ]
    do(model, "started", "one", Call(2.0, 3.0), monkeypatch)
    assert listed(model, {"one": v1.CONTAINER_CREATED}, Call(3.5, 3.6)) == [
        "one went back from state 1 to 0",
        "one was started and is created",
    ]
    assert listed(model, {"one": v1.CONTAINER_EXITED}, Call(3.7, 3.8)) == [
        "one ended, and nobody stopped it"
    ]
    do(model, "stopped", "pod", Call(4.0, 5.0), monkeypatch)
    assert listed(model, {"one": v1.CONTAINER_RUNNING}, Call(5.1, 5.2)) == [
        "one went back from state 2 to 1",
        "one was stopped and is in state 1",
    ]


def test_commands_run_between_start_and_end(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    model.ran("one", Call(1.1, 1.2))
    do(model, "started", "one", Call(2.0, 3.0), monkeypatch)
    model.ran("one", Call(2.5, 2.6))
    do(model, "stopped", "one", Call(4.0, 5.0), monkeypatch)
    model.ran("one", Call(4.5, 5.5))
    model.ran("one", Call(5.1, 5.5))
    assert model.wrong == [
        "one ran a command before its start",
        "one ran a command after its end",
    ]


def test_pods_that_are_long_gone_are_forgotten_and_still_gone(
    model: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    do(model, "started", "one", Call(1.5, 1.6), monkeypatch)
    do(model, "removed", "pod", Call(2.0, 3.0), monkeypatch)
    for number in range(KEPT):
        name = f"pod{number}"
        model.made_pod(name, Call(4.0, 5.0))
        model.made_container(f"in {name}", name, Call(5.0, 6.0))
        do(model, "removed", name, Call(7.0, 8.0), monkeypatch)
        do(model, "removed", name, Call(8.0, 9.0), monkeypatch)
    assert "pod" not in model.pods
    assert "one" not in model.containers
    assert len(model.pods) == len(model.containers) == KEPT
    assert model.made == {"pods": KEPT + 1, "containers": KEPT + 1}
    # Answers that were long under way do not bring it back.
    model.made_pod("pod", Call(0.0, 10.0))
    model.made_container("one", "pod", Call(0.0, 10.0))
    model.ran("one", Call(2.5, 10.0))
    assert not listed(model, ["one"], Call(2.5, 10.0))
    assert model.pods.keys() == {f"pod{number}" for number in range(KEPT)}
    assert listed(model, ["one"], Call(9.5, 10.0)) == ["one was removed long ago and is listed"]
    model.ran("one", Call(9.5, 10.0))
    assert model.wrong == ["one ran a command after its end"]
