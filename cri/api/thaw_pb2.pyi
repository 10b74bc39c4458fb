from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PullRequest(_message.Message):
    __slots__ = ("image", "username", "password", "auth", "identity_token", "registry_token", "server_address", "refresh", "pin")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    USERNAME_FIELD_NUMBER: _ClassVar[int]
    PASSWORD_FIELD_NUMBER: _ClassVar[int]
    AUTH_FIELD_NUMBER: _ClassVar[int]
    IDENTITY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    SERVER_ADDRESS_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    image: str
    username: str
    password: str
    auth: str
    identity_token: str
    registry_token: str
    server_address: str
    refresh: bool
    pin: bool
    def __init__(self, image: _Optional[str] = ..., username: _Optional[str] = ..., password: _Optional[str] = ..., auth: _Optional[str] = ..., identity_token: _Optional[str] = ..., registry_token: _Optional[str] = ..., server_address: _Optional[str] = ..., refresh: _Optional[bool] = ..., pin: _Optional[bool] = ...) -> None: ...

class PullProgress(_message.Message):
    __slots__ = ("layer", "phase", "current", "total", "image_ref")
    LAYER_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    IMAGE_REF_FIELD_NUMBER: _ClassVar[int]
    layer: str
    phase: str
    current: int
    total: int
    image_ref: str
    def __init__(self, layer: _Optional[str] = ..., phase: _Optional[str] = ..., current: _Optional[int] = ..., total: _Optional[int] = ..., image_ref: _Optional[str] = ...) -> None: ...

class LoadRequest(_message.Message):
    __slots__ = ("start", "data")
    START_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    start: LoadStart
    data: LoadData
    def __init__(self, start: _Optional[_Union[LoadStart, _Mapping]] = ..., data: _Optional[_Union[LoadData, _Mapping]] = ...) -> None: ...

class LoadStart(_message.Message):
    __slots__ = ("names", "digest", "media_type", "registry_digest", "source", "pin")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_DIGEST_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PIN_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    digest: str
    media_type: str
    registry_digest: bool
    source: str
    pin: bool
    def __init__(self, names: _Optional[_Iterable[str]] = ..., digest: _Optional[str] = ..., media_type: _Optional[str] = ..., registry_digest: _Optional[bool] = ..., source: _Optional[str] = ..., pin: _Optional[bool] = ...) -> None: ...

class LoadData(_message.Message):
    __slots__ = ("data", "last", "error")
    DATA_FIELD_NUMBER: _ClassVar[int]
    LAST_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    data: bytes
    last: bool
    error: str
    def __init__(self, data: _Optional[bytes] = ..., last: _Optional[bool] = ..., error: _Optional[str] = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("wanted", "progress")
    WANTED_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    wanted: str
    progress: PullProgress
    def __init__(self, wanted: _Optional[str] = ..., progress: _Optional[_Union[PullProgress, _Mapping]] = ...) -> None: ...

class PullsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PullsResponse(_message.Message):
    __slots__ = ("pulls",)
    PULLS_FIELD_NUMBER: _ClassVar[int]
    pulls: _containers.RepeatedCompositeFieldContainer[PullUnderWay]
    def __init__(self, pulls: _Optional[_Iterable[_Union[PullUnderWay, _Mapping]]] = ...) -> None: ...

class PullUnderWay(_message.Message):
    __slots__ = ("image", "started_at", "progress")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    image: str
    started_at: int
    progress: _containers.RepeatedCompositeFieldContainer[PullProgress]
    def __init__(self, image: _Optional[str] = ..., started_at: _Optional[int] = ..., progress: _Optional[_Iterable[_Union[PullProgress, _Mapping]]] = ...) -> None: ...

class UnpinRequest(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: str
    def __init__(self, image: _Optional[str] = ...) -> None: ...

class UnpinResponse(_message.Message):
    __slots__ = ("pinned",)
    PINNED_FIELD_NUMBER: _ClassVar[int]
    pinned: bool
    def __init__(self, pinned: _Optional[bool] = ...) -> None: ...

class BakeRequest(_message.Message):
    __slots__ = ("shape",)
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    shape: str
    def __init__(self, shape: _Optional[str] = ...) -> None: ...

class BakeProgress(_message.Message):
    __slots__ = ("phase", "fraction", "key", "path", "accelerator", "accelerator_reason", "warnings")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    KEY_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_REASON_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    fraction: float
    key: str
    path: str
    accelerator: str
    accelerator_reason: str
    warnings: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, phase: _Optional[str] = ..., fraction: _Optional[float] = ..., key: _Optional[str] = ..., path: _Optional[str] = ..., accelerator: _Optional[str] = ..., accelerator_reason: _Optional[str] = ..., warnings: _Optional[_Iterable[str]] = ...) -> None: ...

class PoolRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PoolResponse(_message.Message):
    __slots__ = ("shapes", "accelerator", "accelerator_reason")
    SHAPES_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_FIELD_NUMBER: _ClassVar[int]
    ACCELERATOR_REASON_FIELD_NUMBER: _ClassVar[int]
    shapes: _containers.RepeatedCompositeFieldContainer[PoolShape]
    accelerator: str
    accelerator_reason: str
    def __init__(self, shapes: _Optional[_Iterable[_Union[PoolShape, _Mapping]]] = ..., accelerator: _Optional[str] = ..., accelerator_reason: _Optional[str] = ...) -> None: ...

class PoolShape(_message.Message):
    __slots__ = ("shape", "snapshot_key", "size", "ready", "starting", "error", "max_size", "pressure")
    SHAPE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_KEY_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    STARTING_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    MAX_SIZE_FIELD_NUMBER: _ClassVar[int]
    PRESSURE_FIELD_NUMBER: _ClassVar[int]
    shape: str
    snapshot_key: str
    size: int
    ready: int
    starting: int
    error: str
    max_size: int
    pressure: str
    def __init__(self, shape: _Optional[str] = ..., snapshot_key: _Optional[str] = ..., size: _Optional[int] = ..., ready: _Optional[int] = ..., starting: _Optional[int] = ..., error: _Optional[str] = ..., max_size: _Optional[int] = ..., pressure: _Optional[str] = ...) -> None: ...

class TraceRequest(_message.Message):
    __slots__ = ("pod_sandbox_id",)
    POD_SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    pod_sandbox_id: str
    def __init__(self, pod_sandbox_id: _Optional[str] = ...) -> None: ...

class TraceResponse(_message.Message):
    __slots__ = ("traces",)
    TRACES_FIELD_NUMBER: _ClassVar[int]
    traces: _containers.RepeatedCompositeFieldContainer[Trace]
    def __init__(self, traces: _Optional[_Iterable[_Union[Trace, _Mapping]]] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("pod_sandbox_id", "name", "namespace", "started_at", "steps")
    POD_SANDBOX_ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    NAMESPACE_FIELD_NUMBER: _ClassVar[int]
    STARTED_AT_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    pod_sandbox_id: str
    name: str
    namespace: str
    started_at: int
    steps: _containers.RepeatedCompositeFieldContainer[Step]
    def __init__(self, pod_sandbox_id: _Optional[str] = ..., name: _Optional[str] = ..., namespace: _Optional[str] = ..., started_at: _Optional[int] = ..., steps: _Optional[_Iterable[_Union[Step, _Mapping]]] = ...) -> None: ...

class Step(_message.Message):
    __slots__ = ("name", "offset_ns", "duration_ns", "error")
    NAME_FIELD_NUMBER: _ClassVar[int]
    OFFSET_NS_FIELD_NUMBER: _ClassVar[int]
    DURATION_NS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    name: str
    offset_ns: int
    duration_ns: int
    error: str
    def __init__(self, name: _Optional[str] = ..., offset_ns: _Optional[int] = ..., duration_ns: _Optional[int] = ..., error: _Optional[str] = ...) -> None: ...
