from pathlib import Path

import pytest

from hostlib import records
from hostlib.errors import DataLoss, FailedPrecondition


@pytest.mark.parametrize("durable", [True, False])
def test_a_record_is_read_as_it_was_written(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "pod.json"
    records.write(path, "pod", 1, {"id": "a"}, durable=durable)
    records.write(path, "pod", 1, {"id": "b"}, durable=durable)
    assert records.read(path, "pod", 1) == {"id": "b"}
    assert [entry.name for entry in tmp_path.iterdir()] == ["pod.json"]


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    records.write(tmp_path / "r", "pod", 2, {}, durable=False)
    with pytest.raises(FailedPrecondition, match="version 2"):
        records.read(tmp_path / "r", "pod", 1)


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"kind":"vm","version":1}', b'{"kind":"pod"}']
)
def test_what_is_no_such_record_is_data_loss(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "r").write_bytes(data)
    with pytest.raises(DataLoss):
        records.read(tmp_path / "r", "pod", 1)


def test_a_failed_write_keeps_the_old_record(tmp_path: Path) -> None:
    path = tmp_path / "r"
    records.write(path, "pod", 1, {"id": "a"}, durable=False)
    with pytest.raises(TypeError):
        records.write(path, "pod", 1, {"id": object()}, durable=False)
    assert records.read(path, "pod", 1) == {"id": "a"}


def test_sweep_removes_what_a_crash_left(tmp_path: Path) -> None:
    (tmp_path / f".r.1{records.TEMPORARY_SUFFIX}").write_bytes(b"half")
    (tmp_path / "r").write_bytes(b"whole")
    records.sweep(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["r"]
