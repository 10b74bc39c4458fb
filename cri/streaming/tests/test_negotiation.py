"""Which protocol is chosen, and what is answered when there is none."""

from __future__ import annotations

import pytest

from cri.streaming.negotiation import (
    MAX_OFFERS,
    PORT_FORWARD,
    REMOTE_COMMAND,
    WEBSOCKET_PORT_FORWARD,
    WEBSOCKET_REMOTE_COMMAND,
    ChannelProtocol,
    NoCommonProtocol,
    choose_channel_protocol,
    choose_stream_protocol,
    offers,
)


@pytest.mark.parametrize(
    ("values", "chosen"),
    [
        (["v4.channel.k8s.io", "v3.channel.k8s.io"], "v4.channel.k8s.io"),
        (["v2.channel.k8s.io, v4.channel.k8s.io"], "v2.channel.k8s.io"),
        (["v9.channel.k8s.io , ,channel.k8s.io"], "channel.k8s.io"),
    ],
)
def test_the_clients_first_that_is_known(values: list[str], chosen: str) -> None:
    assert choose_stream_protocol(values, REMOTE_COMMAND).name == chosen


def test_what_each_version_brings() -> None:
    v4, v3, v2, v1 = REMOTE_COMMAND
    assert [v.json_status for v in (v4, v3, v2, v1)] == [True, False, False, False]
    assert [v.resize for v in (v4, v3, v2, v1)] == [True, True, False, False]
    assert [v.closes_stdin for v in (v4, v3, v2, v1)] == [False, False, False, True]


def test_no_common_spdy_protocol() -> None:
    with pytest.raises(NoCommonProtocol) as found:
        choose_stream_protocol(["v9.channel.k8s.io"], PORT_FORWARD)
    assert found.value.http_status == 403
    assert found.value.headers == (("X-Accepted-Stream-Protocol-Versions", "portforward.k8s.io"),)
    for values in ([], ["", " , "]):
        with pytest.raises(NoCommonProtocol) as found:
            choose_stream_protocol(values, REMOTE_COMMAND)
        assert found.value.http_status == 400


@pytest.mark.parametrize(
    ("values", "supported", "expected"),
    [
        ([], WEBSOCKET_REMOTE_COMMAND, ChannelProtocol("")),
        (
            ["v5.channel.k8s.io"],
            WEBSOCKET_REMOTE_COMMAND,
            ChannelProtocol("v5.channel.k8s.io", json_status=True, half_close=True),
        ),
        (
            ["v9.channel.k8s.io, base64.channel.k8s.io"],
            WEBSOCKET_REMOTE_COMMAND,
            ChannelProtocol("base64.channel.k8s.io", base64=True),
        ),
        (
            ["SPDY/3.1+portforward.k8s.io"],
            WEBSOCKET_PORT_FORWARD,
            ChannelProtocol("SPDY/3.1+portforward.k8s.io", tunnel=True),
        ),
        (
            ["v4.base64.channel.k8s.io"],
            WEBSOCKET_PORT_FORWARD,
            ChannelProtocol("v4.base64.channel.k8s.io", base64=True),
        ),
    ],
)
def test_websocket_protocols(
    values: list[str], supported: tuple[ChannelProtocol, ...], expected: ChannelProtocol
) -> None:
    assert choose_channel_protocol(values, supported) == expected


def test_no_common_websocket_protocol() -> None:
    with pytest.raises(NoCommonProtocol) as found:
        choose_channel_protocol(["portforward.k8s.io"], WEBSOCKET_PORT_FORWARD)
    assert found.value.http_status == 403


def test_a_list_of_offers_has_an_end() -> None:
    assert len(offers(["a," * 1000, "b"])) == MAX_OFFERS
