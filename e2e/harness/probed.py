"""A program for containers that are probed by network: HTTP, TCP, and gRPC's health protocol."""

from __future__ import annotations

from typing import Final

HTTP, TCP, GRPC = 8080, 8081, 8082
"""Its ports. What it answers follows files in /probes; a path below /note is noted there."""

SOURCE: Final = r'''
import http.server, os, socket, socketserver, struct, threading, time


def there(name):
    return os.path.exists("/probes/" + name)


class Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path.startswith("/note/"):
            open("/probes/notes", "a").write(self.path + "\n")
        known = self.path.startswith("/note/") or there(self.path[1:])
        self.send_response(200 if known else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


def literal(name, value):
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


class Health(socketserver.BaseRequestHandler):
    """grpc.health.v1.Health/Check, whatever is asked (RFC 9113; no header is looked at)."""

    def send(self, kind, flags, stream, payload=b""):
        head = struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream)
        self.request.sendall(head + payload)

    def handle(self):
        file = self.request.makefile("rb")
        file.read(24)
        self.send(4, 0, 0)
        while len(head := file.read(9)) == 9:
            kind, flags, stream = struct.unpack(">BBI", head[3:])
            payload = file.read(int.from_bytes(head[:3], "big"))
            if kind == 4 and not flags & 1:
                self.send(4, 1, 0)
            if kind == 6 and not flags & 1:
                self.send(6, 1, 0, payload)
            if kind in (0, 1) and flags & 1:
                status = 1 if there("serving") else 2
                self.send(1, 4, stream, b"\x88" + literal(b"content-type", b"application/grpc"))
                self.send(0, 0, stream, struct.pack(">BIBB", 0, 2, 8, status))
                self.send(1, 5, stream, literal(b"grpc-status", b"0"))


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True


for port, handler in ((8080, Web), (8082, Health)):
    threading.Thread(target=Server(("", port), handler).serve_forever).start()
while True:
    with socket.create_server(("", 8081)):
        while not there("deaf"):
            time.sleep(0.1)
    while there("deaf"):
        time.sleep(0.1)
'''
