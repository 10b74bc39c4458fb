from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from hostlib.errors import DataLoss, InvalidArgument
from shim import records
from shim.records import (
    ContainerMetadata,
    ContainerRecord,
    PodMetadata,
    PodNetworkRecord,
    PodRecord,
    VMRecord,
)

POD = "a" * 64
CONTAINER = "b" * 64


def pod() -> PodRecord:
    return PodRecord(
        POD,
        PodMetadata("web", "uid-1", "default", 2),
        123,
        labels={"app": "web"},
        network=PodNetworkRecord("eth0", ("10.88.0.2",), {"any": ["thing"]}),
        port_mappings=({"host_port": 80},),
        config={"deep": {"er": [1, None]}},
    )


def container() -> ContainerRecord:
    return ContainerRecord(CONTAINER, POD, ContainerMetadata("c"), 5, log_path="/l", tty=True)


@pytest.mark.parametrize("record", [pod(), container(), VMRecord("abcd1234", 1, 2)])
def test_a_record_survives_the_disk(
    tmp_path: Path, record: PodRecord | ContainerRecord | VMRecord
) -> None:
    records.write(tmp_path, record)
    found = records.read_vm_folder(tmp_path)
    assert record in (found.vm, found.pod, *found.containers)
    assert not found.broken


def test_one_broken_record_does_not_hide_the_others(tmp_path: Path) -> None:
    records.write(tmp_path, pod())
    records.write(tmp_path, container())
    (tmp_path / "vm.json").write_text('{"kind":"vm","version":1,"id":')
    (tmp_path / "containers" / "bad.json").write_text('{"kind":"container","version":1}')
    found = records.read_vm_folder(tmp_path)
    assert (found.vm, found.pod, found.containers) == (None, pod(), (container(),))
    assert {one.path.name for one in found.broken} == {"vm.json", "bad.json"}


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "vm.json").write_text('{"kind":"vm","version":99}')
    assert "upgrade" in str(records.read_vm_folder(tmp_path).broken[0].error)


def test_an_empty_folder_is_no_error(tmp_path: Path) -> None:
    assert records.read_vm_folder(tmp_path) == records.VMFolder(tmp_path)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"id": "short"}, "short"),
        ({"created_at": "now"}, "created_at"),
        ({"created_at": True}, "created_at"),
        ({"labels": {"a": 1}}, "labels.a"),
        ({"metadata": {"name": "x"}}, "metadata.uid"),
        ({"state": "odd"}, "state"),
        ({"network": {"ips": [1]}}, "ips"),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, object], names: str) -> None:
    with pytest.raises(InvalidArgument, match=names):
        records.from_dict(PodRecord, {**records.to_dict(pod()), **change})


def test_unknown_members_are_passed_over_and_absent_ones_take_their_default() -> None:
    data = {"id": POD, "metadata": {"name": "a", "uid": "u", "namespace": "n"}, "created_at": 1}
    found = records.from_dict(PodRecord, {**data, "later": 1})
    assert found == PodRecord(POD, PodMetadata("a", "u", "n"), 1)


def test_a_container_id_cannot_leave_the_folder(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument):
        records.container_path(tmp_path, "../../etc/passwd")


def test_a_damaged_record_is_data_loss(tmp_path: Path) -> None:
    (tmp_path / "pod.json").write_text('{"kind":"pod","version":1,"id":5}')
    with pytest.raises(DataLoss, match="id"):
        records.read(PodRecord, tmp_path / "pod.json")


def test_records_do_not_change() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        pod().id = "x"  # type: ignore[misc]
