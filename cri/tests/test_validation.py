from __future__ import annotations

import pytest
from google.protobuf.descriptor import FieldDescriptor

from cri.api import v1_pb2 as v1
from cri.validation import MAX_ENTRIES, MAX_MAP, MAX_TEXT, check
from hostlib.errors import InvalidArgument


def refused(request: object) -> str:
    with pytest.raises(InvalidArgument) as caught:
        check(request)  # type: ignore[arg-type]
    return caught.value.message


def created(**fields: object) -> v1.CreateContainerRequest:
    return v1.CreateContainerRequest(config=v1.ContainerConfig(**fields))  # type: ignore[arg-type]


def test_an_enum_of_another_protocol() -> None:
    request = v1.RunPodSandboxRequest()
    request.config.linux.security_context.namespace_options.pid = 9  # type: ignore[assignment]
    place = "config.linux.security_context.namespace_options.pid"
    assert refused(request) == f"{place}: 9 is no NamespaceMode"


@pytest.mark.parametrize(
    ("request_", "place"),
    [
        (created(command=["sh", "a\0b"]), "config.command[1]"),
        (created(envs=[v1.KeyValue(key="A", value=b"\0")]), "config.envs[0].value"),
        (created(labels={"a\0": "b"}), "config.labels: the key 'a\\x00'"),
        (created(annotations={"a": "\0"}), "config.annotations['a']"),
        (v1.ContainerStatusRequest(container_id="\0"), "container_id"),
    ],
)
def test_a_nul_byte(request_: object, place: str) -> None:
    assert refused(request_) == f"{place}: a NUL byte is in the text"


@pytest.mark.parametrize("text", ["x" * (MAX_TEXT + 1), "ä" * (MAX_TEXT // 2 + 1)])
def test_a_text_that_is_too_long(text: str) -> None:
    assert refused(created(working_dir=text)).startswith("config.working_dir: the text is longer")


@pytest.mark.parametrize("text", ["x" * MAX_TEXT, "ä" * (MAX_TEXT // 2)])
def test_a_long_text(text: str) -> None:
    check(created(working_dir=text, args=["ä\n\t"], tty=True))


def test_lists_and_maps_that_are_too_long() -> None:
    many = {f"k{n}": "" for n in range(MAX_ENTRIES + 1)}
    assert refused(created(args=[""] * (MAX_ENTRIES + 1))) == (
        f"config.args: it has {MAX_ENTRIES + 1} entries, more than {MAX_ENTRIES}"
    )
    assert refused(created(envs=[v1.KeyValue()] * (MAX_ENTRIES + 1))).startswith("config.envs: it")
    assert refused(created(labels=many)).startswith("config.labels: it has")
    del many["k0"]
    check(created(args=[""] * MAX_ENTRIES, labels=many))


def test_maps_that_are_too_large() -> None:
    value = "ä" * (MAX_TEXT // 2)
    parts = MAX_MAP // MAX_TEXT
    large = {str(n): value for n in range(parts)}
    assert refused(created(annotations=large)) == (
        "config.annotations: keys and values are over 1024 KiB together"
    )
    large["0"] = value[:-parts]
    check(created(annotations=large))


def test_every_map_is_of_texts() -> None:
    for message in v1.DESCRIPTOR.message_types_by_name.values():
        for entry in message.nested_types:
            if entry.GetOptions().map_entry:
                assert {field.type for field in entry.fields} == {FieldDescriptor.TYPE_STRING}
