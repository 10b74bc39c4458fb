"""A proxy before thawd that takes one field out of every message, or answers that an RPC is not
there, so that a test shows whether it would notice a runtime that ignores it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, Self, cast

import grpc
from google.protobuf.message import Message

from cri.api import v1_pb2
from cri.api.coverage import RPC
from e2e.harness import wrong

ENVIRONMENT: Final = "THAW_E2E_DROP"
"""Set, every daemon of the tests is behind a proxy. It may name what they are to do without:
Message.field, or rpc.Name."""

_OPTIONS: Final = (
    ("grpc.default_authority", "localhost"),
    ("grpc.max_receive_message_length", 64 << 20),
    ("grpc.max_send_message_length", 64 << 20),
    # Tests kill thawd and start it again.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
)
_YEAR: Final = 365 * 86400.0


class _Dropped:
    name: str = os.environ.get(ENVIRONMENT, "")


def proxied() -> bool:
    """Whether daemons are to be behind a proxy."""
    return ENVIRONMENT in os.environ


@contextlib.contextmanager
def without(name: str) -> Iterator[None]:
    """Every proxy does without Message.field or rpc.Name meanwhile; an empty name is nothing."""
    before, _Dropped.name = _Dropped.name, name
    try:
        yield
    finally:
        _Dropped.name = before


def drop(message: Message, kind: str, name: str) -> None:
    """Clear the field `name` of each message of type `kind`, however deep it lies."""
    if message.DESCRIPTOR.name == kind:
        message.ClearField(name)
    for field, value in message.ListFields():
        inner = field.message_type
        if inner is None:
            continue
        if inner.GetOptions().map_entry:
            continue
        for each in value if field.is_repeated else (value,):
            drop(each, kind, name)


class Proxy(grpc.GenericRpcHandler):  # type: ignore[type-arg]  # not so at run time
    """Serves `front` with what `behind` answers, both paths of sockets."""

    def __init__(self, front: Path, behind: Path) -> None:
        self._methods = {f"/{name}": method for name, method in wrong.methods().items()}
        self._channel = grpc.insecure_channel(f"unix://{behind}", options=_OPTIONS)
        self._server = grpc.server(ThreadPoolExecutor(32), options=_OPTIONS)
        self._server.add_generic_rpc_handlers((self,))
        self._server.add_insecure_port(f"unix://{front}")

    def start(self) -> Self:
        self._server.start()
        return self

    def stop(self) -> None:
        self._server.stop(0).wait()
        self._channel.close()

    def service(self, details: Any) -> Any:
        method = self._methods.get(details.method)
        kind, _, name = _Dropped.name.partition(".")
        if kind == RPC and method is not None and method.name == name:
            # The server says UNIMPLEMENTED.
            return None
        # Thaw's own service passes as it is.
        kinds = (method.input_type.name, method.output_type.name) if method else ("", "")
        read, write = (_codec(each) for each in kinds)
        call = self._channel.unary_stream(details.method, None, None)

        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            left = context.time_remaining()
            # Without a deadline there are years, more than a deadline can be made of.
            answer = call(read(request), timeout=None if left is None or left > _YEAR else left)
            context.add_callback(answer.cancel)
            try:
                for each in answer:
                    yield write(each)
            except grpc.RpcError as error:
                # Every RpcError of a call that was made is a Call too.
                failed = cast("grpc.Call", error)
                context.abort(failed.code(), failed.details() or "")

        def single(request: bytes, context: grpc.ServicerContext) -> bytes:
            return next(stream(request, context))

        if method is None or method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(single)


def _codec(message: str) -> Any:
    """What takes the field out of the bytes of a message of this type: the one that is to be done
    without now, not when the call began."""
    if not message:
        return bytes
    factory = getattr(v1_pb2, message)

    def work(data: bytes) -> bytes:
        kind, _, name = _Dropped.name.partition(".")
        if kind not in v1_pb2.DESCRIPTOR.message_types_by_name:
            return data
        found = factory.FromString(data)
        drop(found, kind, name)
        return bytes(found.SerializeToString())

    return work
