"""Real traffic, from and to anywhere: an echo server that says whom it sees, its client, a DNS
server. The standard library alone, since this very text is run in pods (`SOURCE`)."""

from __future__ import annotations

import json
import socket
import struct
import sys
import threading

SOURCE = ""
"""This module, for ``python3 -c``."""

if "__file__" in globals():
    with open(__file__, encoding="utf-8") as own:
        SOURCE = own.read()

SECONDS = 5.0
"""How long a probe waits for an answer."""

_PLAIN = "::ffff:"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _told(peer: str, data: bytes) -> bytes:
    return f"{peer.removeprefix(_PLAIN)} ".encode() + data


def _bound(kind: int, port: int) -> socket.socket:
    """A socket on all addresses of both families, or of IPv4 where there is no other."""
    for family, place in ((socket.AF_INET6, "::"), (socket.AF_INET, "")):
        try:
            made = socket.socket(family, kind)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            made.bind((place, port))
        except OSError:
            continue
        return made
    raise OSError(f"port {port} cannot be bound")


def serve(port: int) -> None:
    """Answer each line, by TCP and by UDP, with the sender's address and the line; never ends."""
    datagrams, server = _bound(socket.SOCK_DGRAM, port), _bound(socket.SOCK_STREAM, port)
    server.listen()

    def answer() -> None:
        while True:
            data, peer = datagrams.recvfrom(65536)
            datagrams.sendto(_told(peer[0], data), peer)

    threading.Thread(target=answer, daemon=True).start()
    _say("serving")
    while True:
        connection, peer = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            try:
                connection.sendall(_told(peer[0], connection.recv(65536)))
            except OSError:
                continue


def probe(kind: str, address: str, port: int, line: str = "hello") -> str:
    """What a server behind the address answers. Raises OSError when it does not."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    number = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, number) as client:
        client.settimeout(SECONDS)
        client.connect((address, port))
        client.sendall(line.encode())
        return client.recv(65536).decode()


def names(table: dict[str, str]) -> None:
    """A DNS server on port 53 that knows the A records of `table` and nothing else (RFC 1035)."""
    server = _bound(socket.SOCK_DGRAM, 53)
    _say("serving")
    while True:
        query, peer = server.recvfrom(512)
        end = query.index(b"\0", 12)
        labels, place = [], 12
        while place < end:
            labels.append(query[place + 1 : place + 1 + query[place]].decode())
            place += 1 + query[place]
        address = table.get(".".join(labels).lower())
        wants_a = query[end + 1 : end + 3] == b"\0\1"
        answers = [address] if address and wants_a else []
        flags = 0x8180 if address else 0x8183
        reply = query[:2] + struct.pack("!HHHHH", flags, 1, len(answers), 0, 0)
        reply += query[12 : end + 5]
        for each in answers:
            reply += struct.pack("!HHHIH", 0xC00C, 1, 1, 60, 4) + socket.inet_aton(each)
        server.sendto(reply, peer)


def main(verb: str, *rest: str) -> None:
    if verb == "serve":
        serve(int(rest[0]))
    elif verb == "probe":
        _say(probe(rest[0], rest[1], int(rest[2]), *rest[3:]))
    elif verb == "names":
        names(json.loads(rest[0]))
    elif verb == "lookup":
        _say(socket.gethostbyname(rest[0]))


if __name__ == "__main__":
    main(*sys.argv[1:])
