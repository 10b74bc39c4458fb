from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bench import peer
from bench.node import Place, cni_config

_KEYS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1)
_VALUES = st.booleans() | st.integers(-(2**62), 2**62) | st.lists(_KEYS, max_size=3) | _KEYS
_TREES = st.recursive(
    st.dictionaries(_KEYS, _VALUES, max_size=4),
    lambda inner: st.dictionaries(_KEYS, _VALUES | inner, max_size=4),
    max_leaves=12,
)


@given(_TREES)
def test_toml_reads_back(settings: dict[str, Any]) -> None:
    assert tomllib.loads(peer.toml(settings)) == settings


def test_the_configuration() -> None:
    read = tomllib.loads(peer.toml(peer.config(Path("/x"), "registry.test/pause:latest")))
    plugins = read["plugins"]
    runtime = plugins["io.containerd.cri.v1.runtime"]
    assert plugins["io.containerd.cri.v1.images"]["pinned_images"] == {
        "sandbox": "registry.test/pause:latest"
    }
    assert runtime["containerd"]["runtimes"]["runc"]["options"]["SystemdCgroup"] is False
    assert runtime["restrict_oom_score_adj"] is True
    assert read["root"] == "/x/root"


def test_a_listener_on_loopback() -> None:
    text = (
        "  sl  local_address rem_address   st tx_queue\n"
        "   0: 0100007F:1388 00000000:0000 0A 00000000\n"
        "   1: 0100007F:1389 0100007F:1388 01 00000000\n"
    )
    assert peer.listens(text, 5000)
    assert not peer.listens(text, 5001)
    assert not peer.listens("  sl  local_address\n", 5000)


def test_both_networks_have_one_form() -> None:
    one, other = (
        cni_config(bridge, subnet, Path(f"/{bridge}"))
        for bridge, subnet in (("a", "10.1.0.0/16"), ("b", "10.2.0.0/16"))
    )
    assert one["plugins"][0]["ipam"]["ranges"] == [[{"subnet": "10.1.0.0/16"}]]
    one["plugins"][0]["bridge"] = "b"
    one["plugins"][0]["ipam"] |= {"dataDir": "/b", "ranges": [[{"subnet": "10.2.0.0/16"}]]}
    assert one == other


def test_names_of_bridges_fit() -> None:
    place = Place.new(Path("/x"))
    assert place.mark != Place.new(Path("/x")).mark
    assert all(len(place.bridge(who)) <= 15 for who in ("thaw", "containerd"))
    assert place.bridge("thaw") != place.bridge("containerd")
