"""Leases: unique, in turn, and the same after a restart."""

from __future__ import annotations

import ipaddress
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cri.network.ipam import Address, Leases, paired, parse_subnet, parse_subnet6
from hostlib.errors import InvalidArgument, ResourceExhausted

NET = ipaddress.IPv4Network("10.1.2.0/29")


def leases(folder: Path) -> Leases:
    made = Leases(folder, NET)
    made.load()
    return made


def test_addresses_are_not_used_again_at_once(tmp_path: Path) -> None:
    mine = leases(tmp_path)
    first = mine.allocate("a", "vm1")
    assert first == Address("10.1.2.2")
    mine.release(first)
    mine.release(first)
    assert leases(tmp_path).allocate("b", "vm2") == Address("10.1.2.3")


def test_exhaustion(tmp_path: Path) -> None:
    mine = leases(tmp_path)
    held = {mine.allocate(str(n), "vm") for n in range(5)}
    assert len(held) == 5
    with pytest.raises(ResourceExhausted, match="all 5 addresses"):
        mine.allocate("x", "vm")


def test_a_damaged_record_keeps_its_address_out_of_use(tmp_path: Path) -> None:
    (tmp_path / "10.1.2.2.json").write_text("{")
    assert leases(tmp_path).allocate("a", "vm") == Address("10.1.2.3")


@pytest.mark.parametrize("text", ["10.0.0.1/16", "x", "10.0.0.0/30", "::/64"])
def test_bad_subnets(text: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_subnet(text)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(st.none(), st.just("restart"), st.integers(0, 4)), max_size=30))
def test_no_address_has_two_holders(steps: list[int | str | None]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        mine = leases(Path(folder))
        held: dict[Address, str] = {}
        for number, step in enumerate(steps):
            if step == "restart":
                mine = leases(Path(folder))
            elif isinstance(step, int):
                for address in list(held)[step : step + 1]:
                    mine.release(address)
                    del held[address]
            elif len(held) < 5:
                address = mine.allocate(str(number), "vm")
                assert address in NET
                assert address not in held
                held[address] = str(number)
            assert {lease.address: lease.pod for lease in mine.all()} == held


@given(st.integers(2, 6))
def test_an_ipv6_address_goes_with_each_ipv4_one(offset: int) -> None:
    six = parse_subnet6("fd00:1::/64", NET)
    assert str(paired(NET[offset], NET, six)) == f"fd00:1::{offset}"


@pytest.mark.parametrize("text", ["", "10.0.0.0/8", "fd00::1/64", "fd00::/126"])
def test_a_bad_ipv6_subnet_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="subnet6"):
        parse_subnet6(text, NET)
