"""What no well-made client does to the streaming server, by httpx and websockets."""

from __future__ import annotations

import base64
import struct

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from e2e.harness.daemon import Daemon
from e2e.harness.pods import Container, Pod
from e2e.harness.refs import NGINX, SHELL, SLEEP
from e2e.harness.streams import (
    CLOSE,
    ERROR,
    RESIZE,
    STDERR,
    STDIN,
    STDOUT,
    V4,
    V5,
    attach_url,
    channels,
    connections,
    exec_url,
    forward_url,
    listening,
    run,
)
from e2e.harness.waiting import until
from hostlib import errors

UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "SPDY/3.1",
    "X-Stream-Protocol-Version": "v4.channel.k8s.io",
}


@pytest.fixture
def box(daemon: Daemon) -> Container:
    return Pod.run(daemon).start(SHELL, SLEEP)


def ask(url: str, method: str = "GET", **headers: str) -> httpx.Response:
    return httpx.request(method, url, headers=headers, trust_env=False, timeout=30)


def test_a_url_works_once(box: Container) -> None:
    url = exec_url(box, "echo once")
    with channels(url) as client:
        client.rest()
        assert (client.code, client.said(STDOUT)) == (0, b"once\n")
    with pytest.raises(InvalidStatus) as caught, channels(url):
        pass
    assert caught.value.response.status_code == 404
    # A refused upgrade has used it up, too.
    url = exec_url(box, "echo twice")
    assert ask(url).status_code == 400
    assert ask(url, **UPGRADE).status_code == 404


def test_urls_that_were_never_given(box: Container) -> None:
    url = exec_url(box, "true")
    base, _, token = url.rpartition("/")
    other = token[:-1] + ("A" if token[-1] != "A" else "B")
    for wrong in (f"{base}/{other}", f"{base}/", f"{base}/x", url.replace("/exec/", "/attach/")):
        assert ask(wrong, **UPGRADE).status_code == 404
    assert ask(base.rpartition("/")[0] + "/", **UPGRADE).status_code == 404
    # None of them has used up the real one.
    with channels(url) as client:
        client.rest()
        assert client.code == 0


def test_methods_that_are_not_allowed(box: Container) -> None:
    url = exec_url(box, "true")
    for method in ("PUT", "DELETE", "HEAD", "OPTIONS"):
        answer = ask(url, method, **UPGRADE)
        assert answer.status_code == 405
        assert set(answer.headers["allow"].split(", ")) == {"GET", "POST"}
    with channels(url) as client:
        client.rest()
        assert client.code == 0


WEBSOCKET = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": base64.b64encode(bytes(16)).decode(),
}


def test_upgrades_that_cannot_be(box: Container) -> None:
    for headers, status in [
        ({}, 400),
        ({"Connection": "Upgrade"}, 400),
        ({**UPGRADE, "Connection": "close"}, 400),
        ({**UPGRADE, "Upgrade": "h2c"}, 400),
        ({**UPGRADE, "X-Stream-Protocol-Version": "v9.channel.k8s.io"}, 403),
        ({**WEBSOCKET, "Sec-WebSocket-Version": "12"}, 426),
        ({**WEBSOCKET, "Sec-WebSocket-Key": "short"}, 400),
        ({**WEBSOCKET, "Sec-WebSocket-Protocol": "v9.channel.k8s.io"}, 403),
        ({**UPGRADE, "X-Filler": "x" * 500_000}, 431),
    ]:
        answer = ask(exec_url(box, "true"), **headers)
        assert answer.status_code == status, headers
        assert answer.text


def test_channels_of_every_version(box: Container) -> None:
    for protocol in ("", "channel.k8s.io", V4, V5, "base64.channel.k8s.io"):
        url = exec_url(box, "head -c 6; echo bad >&2; exit 5", stdin=True)
        with channels(url, protocol) as client:
            # The first message is empty: it tells that the connection stands.
            assert client.step() == (STDOUT, b"")
            client.send(STDIN)
            client.send(STDIN, b"ab\0")
            client.send(STDIN, b"c\xff\n")
            client.rest()
            assert client.said(STDOUT) == b"ab\0c\xff\n"
            assert client.said(STDERR) == b"bad\n"
            if protocol in (V4, V5):
                assert client.code == 5
            else:
                assert client.said(ERROR).endswith(b"non-zero exit code: 5")
            assert client.close_code == 1000


def test_messages_for_nobody_are_dropped(box: Container) -> None:
    with channels(exec_url(box, "cat", stdin=True), V5) as client:
        client.send(STDOUT, b"not yours")
        client.send(ERROR, b"not yours")
        client.send(RESIZE, b'{"Width":1,"Height":1}')
        client.send(77, b"nobody's")
        client.socket.send(b"")
        client.send(STDIN, b"mine\n")
        client.until(STDOUT, b"mine\n")
        client.send(CLOSE, bytes([STDIN]))
        client.rest()
        assert (client.code, client.said(STDOUT)) == (0, b"mine\n")


def test_base64_that_is_none_ends_the_connection(box: Container) -> None:
    with channels(exec_url(box, "cat", stdin=True), "base64.channel.k8s.io") as client:
        client.step()
        client.socket.send("0!!!")
        client.rest()
        assert client.close_code == 1002
    assert box.sh("echo up") == "up"


def port(number: int) -> bytes:
    return struct.pack("<H", number)


@pytest.mark.parametrize("named", ["in CRI's request", "in the query"])
def test_a_websocket_forwards_ports(daemon: Daemon, named: str) -> None:
    pod = Pod.run(daemon)
    pod.start(NGINX)
    pod.get()
    if named == "in the query":
        url = forward_url(pod) + "?port=80&port=81"
    else:
        url = forward_url(pod, 80, 81)
    with channels(url) as client:
        # Each data channel and its error channel begin with the port.
        while len(client.received) < 4 or any(len(v) < 2 for v in client.received.values()):
            client.step()
        assert [client.said(n)[:2] for n in range(4)] == [port(80)] * 2 + [port(81)] * 2
        while len(client.said(3)) == 2:
            client.step()
        assert b"connection refused" in client.said(3)
        client.send(0, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        client.until(0, b"Thawed")
        client.send(0, b"GET /none HTTP/1.1\r\nHost: a\r\n\r\n")
        assert b"404 Not Found" in client.until(0, b"404 Not Found")
        assert client.said(1) == port(80)


def test_ports_that_are_none(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    for query in ("", "?port=0", "?port=70000", "?port=http", "?port="):
        with pytest.raises(InvalidStatus) as caught, channels(forward_url(pod) + query):
            pass
        assert caught.value.response.status_code == 400


def alive(box: Container, mark: str) -> bool:
    """Whether a process has the mark in its command line; the shell that looks has it, too."""
    # The pattern does not match itself.
    return box.sh(f"ps | grep -c '[{mark[0]}]{mark[1:]}' || true") != "0"


@pytest.mark.parametrize("tty", [False, True])
def test_a_client_that_vanishes_takes_its_writer_with_it(box: Container, tty: bool) -> None:
    # `yes` learns it by SIGPIPE, or as its terminal hangs up.
    url = exec_url(box, "yes vanishing", tty=tty, stdin=tty)
    with channels(url) as client:
        client.until(STDOUT, b"vanishing")
        assert alive(box, "yes vanishing")
        client.vanish()
    until("the writer has ended", lambda: not alive(box, "yes vanishing"))
    assert run(box, "echo up") == (0, b"up\n")


def test_an_attached_client_that_vanishes_harms_nobody(daemon: Daemon) -> None:
    script = "n=0; while read a; do n=$((n+1)); echo $n $a; done; echo over"
    container = Pod.run(daemon).start(SHELL, ["/bin/sh", "-c", script], stdin=True)
    with channels(attach_url(container, stdin=True)) as stays:
        url = attach_url(container, stdin=True)
        with channels(url) as leaves:
            leaves.send(STDIN, b"a\n")
            leaves.until(STDOUT, b"1 a\n")
            leaves.vanish()
        stays.send(STDIN, b"b\n")
        stays.until(STDOUT, b"1 a\n2 b\n")
    until("all of it is logged", lambda: container.output() == "1 a\n2 b\n")


def test_a_forwarding_client_that_vanishes_leaves_no_connection(daemon: Daemon) -> None:
    pod = Pod.run(daemon)
    server = pod.start(SHELL, ["nc", "-ll", "-p", "7000", "-e", "cat"])
    listening(server, 7000)
    with channels(forward_url(pod, 7000)) as client:
        client.send(0, b"echo")
        client.until(0, b"echo")
        assert connections(server) == 2
        client.vanish()
    until("the guest has no connection left", lambda: connections(server) == 0)


def test_nothing_is_given_for_what_does_not_run(daemon: Daemon) -> None:
    box = Pod.run(daemon).start(SHELL, ["/bin/true"])
    box.wait()
    daemon.client.stop_pod(box.pod.id)
    with pytest.raises(errors.FailedPrecondition):
        exec_url(box, "true")
    with pytest.raises(errors.FailedPrecondition):
        attach_url(box)
    with pytest.raises(errors.FailedPrecondition):
        forward_url(box.pod)


def test_requests_that_make_no_sense(box: Container) -> None:
    with pytest.raises(errors.InvalidArgument):
        exec_url(box, "true", stdout=False, stderr=False)
    with pytest.raises(errors.InvalidArgument):
        exec_url(box, [])
    box.id = "0" * 64
    with pytest.raises(errors.NotFound):
        exec_url(box, "true")


def test_a_command_that_was_there_when_it_was_asked_for(box: Container) -> None:
    url = exec_url(box, "true")
    box.pod.daemon.client.stop_container(box.id)
    with channels(url) as client:
        client.rest()
        assert client.status["status"] == "Failure"
        assert "not running" in client.status["message"]
