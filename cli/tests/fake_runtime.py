"""A CRI server that answers what it is told."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from concurrent import futures
from functools import partial
from pathlib import Path
from typing import Any

import grpc

from cri.api import v1_pb2
from hostlib import errors


class FakeRuntime:
    """Answers what it is told, and remembers what it was asked."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.asked: list[str] = []
        self.requests: dict[str, Any] = {}
        """The last of each method."""
        self.answers: dict[str, Any] = {}
        """By method: a message, an error to raise, or a function of the request."""

    def serve(self, server: grpc.Server) -> None:
        for service in v1_pb2.DESCRIPTOR.services_by_name.values():
            handlers = {
                method.name: grpc.unary_unary_rpc_method_handler(
                    partial(self._answer, method.name),
                    request_deserializer=getattr(v1_pb2, method.input_type.name).FromString,
                    response_serializer=lambda message: message.SerializeToString(),
                )
                for method in service.methods
            }
            server.add_generic_rpc_handlers(
                (grpc.method_handlers_generic_handler(service.full_name, handlers),)
            )

    def _answer(self, name: str, request: Any, context: grpc.ServicerContext) -> Any:
        self.asked.append(name)
        self.requests[name] = request
        found = self.answers.get(name, getattr(v1_pb2, f"{name}Response", v1_pb2.Image)())
        if callable(found):
            found = found(request)
        if isinstance(found, errors.ThawError):
            context.abort(grpc.StatusCode[found.code], str(found))
        return found


@contextlib.contextmanager
def serving_runtime(folder: Path) -> Iterator[FakeRuntime]:
    runtime = FakeRuntime(f"unix://{folder}/s")
    server = grpc.server(futures.ThreadPoolExecutor(2))
    runtime.serve(server)
    server.add_insecure_port(runtime.address)
    server.start()
    try:
        yield runtime
    finally:
        server.stop(None).wait()
