"""The named weights of an ONNX file, and where they lie, where there is no onnx package: on a gateway.

Walks the Protocol Buffers fields of the file (ModelProto.graph, GraphProto.initializer, TensorProto; onnx.proto3) and
nothing else of it. Decides nothing about what the weights mean.
"""

import math
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from common.errors import WireError
from common.protobytes import BYTES, VARINT, fields, varint

_GRAPH: Final = 7
_INITIALIZER: Final = 5
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 1, 2, 4, 8, 9
FLOAT: Final = "<f4"
INT8: Final = "i1"
_TYPES: Final = {1: FLOAT, 2: "u1", 3: INT8, 6: "<i4"}
"""TensorProto.DataType of the numbers that are looked at, and numpy's name of them: those of weights."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor inside a file: little-endian values from byte `offset` on, in the order of `shape`."""

    offset: int
    shape: tuple[int, ...]
    dtype: str = FLOAT

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The byte behind the last value."""
        return self.offset + np.dtype(self.dtype).itemsize * self.count

    def read(self, data: bytes | bytearray) -> NDArray[Any]:
        """The values, flat (count,): a view of `data`, which may stand at any byte."""
        return np.frombuffer(data, self.dtype, self.count, self.offset)


def find_tensors(data: bytes) -> dict[str, Tensor]:
    """Initializers of float32, int32 and one-byte numbers by name, without those whose values do not stand in a row.

    Raises:
        WireError: not Protocol Buffers, or a tensor whose bytes do not fill its shape.
    """
    found: dict[str, Tensor] = {}
    for number, kind, begin, end in fields(data, 0, len(data)):
        if number != _GRAPH or kind != BYTES:
            continue
        for inner, inner_kind, first, last in fields(data, begin, end):
            if inner == _INITIALIZER and inner_kind == BYTES:
                name, tensor = _tensor(data, first, last)
                if tensor is not None:
                    found[name] = tensor
    return found


def find_weights(data: bytes) -> dict[str, Tensor]:
    """Those of float32.

    Raises:
        WireError: as `find_tensors`.
    """
    return {name: tensor for name, tensor in find_tensors(data).items() if tensor.dtype == FLOAT}


def are_alike(one: bytes, other: bytes) -> bool:
    """Whether two files are the same but for the numbers of their weights.

    Raises:
        WireError: as `find_tensors`.
    """
    if len(one) != len(other):
        return False
    bare = [bytearray(file) for file in (one, other)]
    for place in find_weights(one).values():
        for file in bare:
            file[place.offset : place.end] = bytes(place.end - place.offset)
    return bare[0] == bare[1]


def read_weights(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The same as copies in their declared shape.

    Raises:
        WireError: as `find_tensors`.
    """
    return {
        name: tensor.read(data).astype(np.float32).reshape(tensor.shape) for name, tensor in find_weights(data).items()
    }


def _tensor(data: bytes, begin: int, end: int) -> tuple[str, Tensor | None]:
    sizes: list[int] = []
    data_type, name = 0, ""
    raw: list[tuple[int, int]] = []
    for number, kind, first, last in fields(data, begin, end):
        if number == _DIMS:
            sizes += _varints(data, first, last)  # one by one, or packed
        elif number == _DATA_TYPE and kind == VARINT:
            data_type, _ = varint(data, first, last)
        elif number == _NAME and kind == BYTES:
            name = data[first:last].decode("utf-8", "replace")
        elif number in (_RAW_DATA, _FLOAT_DATA) and kind == BYTES:  # packed floats are the same bytes
            raw.append((first, last))
    if data_type not in _TYPES or len(raw) != 1:
        return name, None
    (begin, end), tensor = raw[0], Tensor(raw[0][0], tuple(sizes), _TYPES[data_type])
    if end != tensor.end:
        raise WireError(f"the weights {name!r} have {end - begin} bytes, their shape is {sizes}")
    return name, tensor


def _varints(data: bytes, at: int, end: int) -> list[int]:
    found = []
    while at < end:
        number, at = varint(data, at, end)
        found.append(number)
    return found
