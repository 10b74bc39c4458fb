from __future__ import annotations

import dataclasses

import pytest

from cri.index import Container, Index, Names, matches
from hostlib.errors import AlreadyExists, InvalidArgument, NotFound
from shim.records import ContainerMetadata, ContainerRecord


def a_container(first: str) -> Container:
    record = ContainerRecord(
        id=first + "0" * (64 - len(first)),
        pod_id="f" * 64,
        metadata=ContainerMetadata("c"),
        created_at=1,
    )
    return Container(record)


def test_find_by_id_and_unique_prefix() -> None:
    index = Index()
    one, two = a_container("aa1"), a_container("aa2")
    for each in (one, two):
        index.containers.add(each)
    assert index.containers.find(one.id) is one
    assert index.containers.find("aa2") is two
    with pytest.raises(InvalidArgument, match="ambiguous"):
        index.containers.find("aa")
    with pytest.raises(NotFound):
        index.containers.find("b")
    with pytest.raises(InvalidArgument):
        index.containers.find("")


def test_an_exit_is_final() -> None:
    index = Index()
    entry = a_container("a")
    index.containers.add(entry)
    ended = dataclasses.replace(entry.record, state="exited", exit_code=3)
    index.update_container(ended)
    index.update_container(dataclasses.replace(entry.record, state="running"))
    assert entry.record == ended


def test_a_name_is_held_for_its_call_alone() -> None:
    names = Names()
    with names.claim("pod x", ("x",)), pytest.raises(AlreadyExists):
        names.claim("pod x", ("x",)).__enter__()
    with pytest.raises(ZeroDivisionError), names.claim("pod x", ("x",)):
        raise ZeroDivisionError
    with names.claim("pod x", ("x",)):
        pass


def test_selectors() -> None:
    assert matches({}, {"a": "b"})
    assert matches({"a": "b"}, {"a": "b", "c": "d"})
    assert not matches({"a": "b"}, {"a": "c"})
