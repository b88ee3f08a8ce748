"""The named float weights of an ONNX file, read where there is no onnx package: on a gateway.

Walks the file's protobuf fields (ModelProto.graph 7, GraphProto.initializer 5, TensorProto dims 1, data_type 2, name 8,
raw_data 9; onnx.proto3) and nothing else of it. Decides nothing about what the weights mean.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import WireError
from common.protobytes import fields, varint

_GRAPH: Final = 7
_INITIALIZER: Final = 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT: Final = 1
"""TensorProto.DataType of float32."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the values of a float32 initializer stand in the file, as raw little-endian bytes."""

    name: str
    shape: tuple[int, ...]
    """As declared; whether the bytes fill it is not checked."""
    begin: int
    end: int


def places(data: bytes) -> Iterator[Place]:
    """Float32 initializers kept as raw bytes; those kept in another way are left out.

    Raises:
        WireError: not protobuf.
    """
    for number, begin, end in fields(data, 0, len(data)):
        if number == _GRAPH:
            for inner, first, last in fields(data, begin, end):
                if inner == _INITIALIZER and (place := _place(data, first, last)):
                    yield place


def read_weights(data: bytes) -> dict[str, NDArray[np.float32]]:
    """Float32 initializers by name, as copies in their declared shape; those kept in another way are left out.

    Raises:
        WireError: not protobuf, or a tensor whose bytes do not fill its shape.
    """
    found = {}
    for place in places(data):
        raw = data[place.begin : place.end]
        if len(raw) != 4 * math.prod(place.shape):
            raise WireError(f"the weights {place.name!r} have {len(raw)} bytes, their shape is {list(place.shape)}")
        found[place.name] = np.frombuffer(raw, "<f4").astype(np.float32).reshape(place.shape)
    return found


def _place(data: bytes, at: int, end: int) -> Place | None:
    shape: list[int] = []
    kind, name, raw = 0, "", None
    for number, first, last in fields(data, at, end):
        if number == _DIMS:
            shape += _numbers(data, first, last)  # one a field, or packed
        elif number == _DATA_TYPE:
            kind, _ = varint(data, first, last)
        elif number == _NAME:
            name = data[first:last].decode("utf-8", "replace")
        elif number == _RAW_DATA:
            raw = first, last
    return Place(name, tuple(shape), *raw) if kind == _FLOAT and raw else None


def _numbers(data: bytes, at: int, end: int) -> Iterator[int]:
    while at < end:
        number, at = varint(data, at, end)
        yield number
