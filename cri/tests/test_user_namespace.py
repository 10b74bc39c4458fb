from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cri import guest_kernel
from cri.api import v1_pb2 as v1
from cri.oci import spec as oci_spec
from cri.oci import user_namespace
from cri.oci.user_namespace import Mappings, Range
from hostlib.errors import FailedPrecondition, InvalidArgument
from images.model import ImageConfig

LINE = v1.IDMapping(host_id=1000, container_id=0, length=100)


def options(**users: Any) -> v1.NamespaceOption:
    given: dict[str, Any] = {"mode": v1.POD, "uids": [LINE], "gids": [LINE]} | users
    return v1.NamespaceOption(userns_options=v1.UserNamespace(**given))


def build(
    pod: v1.NamespaceOption, container: v1.NamespaceOption | None, *mounts: v1.Mount
) -> dict[str, Any]:
    sandbox, config = v1.PodSandboxConfig(), v1.ContainerConfig(command=["x"], mounts=mounts)
    sandbox.linux.security_context.namespace_options.CopyFrom(pod)
    if container is not None:
        config.linux.security_context.namespace_options.CopyFrom(container)
    oci_spec.check_sandbox(sandbox)
    return oci_spec.build("c" * 64, sandbox, config, ImageConfig(), hostname="pod").spec


def test_a_pods_mappings() -> None:
    found = user_namespace.of_pod(options())
    assert found == Mappings(Range(0, 1000, 100), Range(0, 1000, 100))
    line = [{"containerID": 0, "hostID": 1000, "size": 100}]
    assert found.to_oci() == {"uidMappings": line, "gidMappings": line}
    node = v1.NamespaceOption(userns_options=v1.UserNamespace(mode=v1.NODE))
    assert user_namespace.of_pod(node) is None
    assert user_namespace.of_pod(v1.NamespaceOption()) is None


def test_a_spec_names_the_pods_namespace() -> None:
    own = {"type": "user", "path": "pod"}
    for container in (options(), None, v1.NamespaceOption(pid=v1.POD)):
        assert own in build(options(), container)["linux"]["namespaces"]
    assert own not in build(v1.NamespaceOption(), None)["linux"]["namespaces"]
    node = v1.NamespaceOption(userns_options=v1.UserNamespace(mode=v1.NODE))
    assert own not in build(v1.NamespaceOption(), node)["linux"]["namespaces"]
    other = options(uids=[v1.IDMapping(host_id=1, length=100)])
    for pod, container in ((options(), node), (options(), other), (node, options())):
        with pytest.raises(InvalidArgument, match="not its pod's"):
            build(pod, container)


def test_mounts_are_mapped_as_they_say() -> None:
    mount = v1.Mount(container_path="/a", host_path="/b", uidMappings=[LINE], gidMappings=[LINE])
    plain = v1.Mount(container_path="/c", host_path="/d")
    spec = build(options(), options(), mount, plain)
    entries = {each["destination"]: each for each in spec["mounts"]}
    assert entries["/a"]["uidMappings"] == [{"containerID": 0, "hostID": 1000, "size": 100}]
    assert "uidMappings" not in entries["/c"]
    assert "gid=5" in entries["/dev/pts"]["options"]
    few = options(gids=[v1.IDMapping(host_id=1, length=5)])
    entries = {each["destination"]: each for each in build(few, few)["mounts"]}
    assert "gid=5" not in entries["/dev/pts"]["options"]
    image = v1.Mount(
        container_path="/i",
        image=v1.ImageSpec(image="x"),
        readonly=True,
        uidMappings=[LINE],
        gidMappings=[LINE],
    )
    build(options(), options(), image)
    for pod in (few, v1.NamespaceOption()):
        with pytest.raises(InvalidArgument, match="mount at /i"):
            build(pod, None, image)


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 1),
    st.integers(0, 9),
)
def test_any_mapping_is_taken_or_refused(host: int, inside: int, length: int, mode: int) -> None:
    line = v1.IDMapping(host_id=host, container_id=inside, length=length)
    try:
        found = user_namespace.of_pod(options(mode=mode, uids=[line], gids=[line]))
    except InvalidArgument:
        return
    assert mode == v1.POD
    assert inside == 0 and length > 0 and host + length <= 2**32 - 1
    assert found is not None


def test_a_kernel_that_maps_no_files(tmp_path: Path) -> None:
    for text, has in (("6.12.9+bpo", True), ("6.3", True), ("6.1.0-30", False), ("5.19", False)):
        (tmp_path / "guest.json").write_text(json.dumps({"kernel_version": text}))
        assert guest_kernel.has_user_namespaces(tmp_path) is has, text
    assert guest_kernel.version(tmp_path) == (5, 19)
    (tmp_path / "guest.json").write_text(json.dumps({"kernel_version": "x"}))
    assert not guest_kernel.has_user_namespaces(tmp_path)
    with pytest.raises(FailedPrecondition):
        guest_kernel.version(tmp_path / "none")
