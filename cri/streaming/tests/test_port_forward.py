"""Streams and channels of forwarded ports."""

from __future__ import annotations

import pytest

from cri.streaming.port_forward import (
    MAX_PORTS,
    BadStream,
    ForwardStream,
    data_channel,
    first_message,
    parse_ports,
    parse_stream,
)


def test_streams_are_paired_by_their_request() -> None:
    headers = {"streamtype": "error", "port": "8080", "requestid": "7"}
    assert parse_stream(1, headers) == ForwardStream("7", 8080, is_error=True)
    assert parse_stream(3, headers | {"streamtype": "data"}) == ForwardStream("7", 8080, False)


def test_streams_of_old_clients_are_paired_by_their_ids() -> None:
    error = parse_stream(5, {"streamtype": "error", "port": "80"})
    data = parse_stream(7, {"streamtype": "data", "port": "80"})
    assert error.request_id == data.request_id == "5"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"port": "80"},
        {"streamtype": "stdin", "port": "80"},
        {"streamtype": "data"},
        *(
            {"streamtype": "data", "port": port}
            for port in ("", "0", "65536", "-1", " 1", "8o", "\u0661")
        ),
    ],
)
def test_streams_that_are_wrong(headers: dict[str, str]) -> None:
    with pytest.raises(BadStream):
        parse_stream(1, headers)


def test_ports_of_a_query() -> None:
    assert parse_ports(["80,443", "65535"]) == [80, 443, 65535]
    for values in ([""], ["80,"], ["80,x"]):
        with pytest.raises(BadStream):
            parse_ports(values)


def test_the_channels_of_a_port() -> None:
    assert [data_channel(index) for index in range(3)] == [0, 2, 4]
    assert first_message(0x1234) == b"\x34\x12"
    assert data_channel(MAX_PORTS - 1) + 1 == 253
    with pytest.raises(BadStream):
        data_channel(MAX_PORTS)
