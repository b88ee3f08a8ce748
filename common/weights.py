"""The named float weights of an ONNX file, read where there is no onnx package: on a gateway.

Walks the file's Protocol Buffers fields (ModelProto.graph 7, GraphProto.initializer 5, TensorProto dims 1, data_type 2,
name 8, raw_data 9) and nothing else of it. Decides nothing about what the weights mean.
"""

import math
from collections.abc import Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import WireError

_GRAPH: Final = 7
_INITIALIZER: Final = 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT: Final = 1
"""TensorProto.DataType of float32."""
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_VARINT_BYTES_MAX: Final = 10


def read_weights(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Float32 initializers by name, as copies in their declared shape; those kept in another way are left out.

    Raises:
        WireError: not Protocol Buffers, or a tensor whose bytes do not fill its shape.
    """
    found = {}
    for number, graph in _fields(memoryview(data)):
        if number != _GRAPH or not isinstance(graph, memoryview):
            continue
        for inner, tensor in _fields(graph):
            if inner == _INITIALIZER and isinstance(tensor, memoryview):
                name, values = _tensor(tensor)
                if values is not None:
                    found[name] = values
    return found


def _tensor(data: memoryview) -> tuple[str, NDArray[np.float32] | None]:
    sizes: list[int] = []
    kind, name, raw = 0, "", None
    for number, value in _fields(data):
        if number == _DIMS:
            sizes += [value] if isinstance(value, int) else _packed(value)
        elif number == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif number == _NAME and isinstance(value, memoryview):
            name = bytes(value).decode("utf-8", "replace")
        elif number == _RAW_DATA and isinstance(value, memoryview):
            raw = value
    if kind != _FLOAT or raw is None:
        return name, None
    if len(raw) != 4 * math.prod(sizes):
        raise WireError(f"the weights {name!r} have {len(raw)} bytes, their shape is {sizes}")
    return name, np.frombuffer(raw, "<f4").astype(np.float32).reshape(sizes)


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """(field number, value) of a message: an integer for varints, the bytes for everything with a length."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if kind == _VARINT:
            value, at = _varint(data, at)
            yield number, value
            continue
        if kind == _BYTES:
            size, at = _varint(data, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise WireError(f"no Protocol Buffers: wire type {kind}")
        if at + size > len(data):
            raise WireError("no Protocol Buffers: a field ends behind its message")
        yield number, data[at : at + size]
        at += size


def _packed(data: memoryview) -> list[int]:
    found, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        found.append(value)
    return found


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(_VARINT_BYTES_MAX):
        if at >= len(data):
            break
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << (7 * shift)
        if byte < 0x80:
            return value, at
    raise WireError("no Protocol Buffers: a number without an end")
