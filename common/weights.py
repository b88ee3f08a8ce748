"""The named float weights of an ONNX file, and where they lie, where there is no onnx package: on a gateway.

Walks the Protocol Buffers fields of the file (ModelProto.graph, GraphProto.initializer, TensorProto; onnx.proto3) and
nothing else of it. Decides nothing about what the weights mean.
"""

import math
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.errors import WireError
from common.protobytes import BYTES, VARINT, fields, varint

_GRAPH: Final = 7
_INITIALIZER: Final = 5
_DIMS, _DATA_TYPE, _NAME, _RAW_DATA = 1, 2, 8, 9
_FLOAT: Final = 1
"""TensorProto.DataType of float32."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A float32 tensor inside a file: little-endian values from byte `offset` on, in the order of `shape`."""

    offset: int
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def end(self) -> int:
        """The byte behind the last value."""
        return self.offset + 4 * self.count

    def read(self, data: bytes) -> NDArray[np.float32]:
        """The values, flat (count,): a view of `data`, which may stand at any byte."""
        return np.frombuffer(data, "<f4", self.count, self.offset)


def find_weights(data: bytes) -> dict[str, Tensor]:
    """Float32 initializers by name; those kept in another way than raw bytes are left out.

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


def read_weights(data: bytes) -> dict[str, NDArray[np.float32]]:
    """The same as copies in their declared shape.

    Raises:
        WireError: as `find_weights`.
    """
    return {
        name: tensor.read(data).astype(np.float32).reshape(tensor.shape) for name, tensor in find_weights(data).items()
    }


def _tensor(data: bytes, begin: int, end: int) -> tuple[str, Tensor | None]:
    sizes: list[int] = []
    data_type, name, raw = 0, "", None
    for number, kind, first, last in fields(data, begin, end):
        if number == _DIMS:
            sizes += _varints(data, first, last)  # one by one, or packed
        elif number == _DATA_TYPE and kind == VARINT:
            data_type, _ = varint(data, first, last)
        elif number == _NAME and kind == BYTES:
            name = data[first:last].decode("utf-8", "replace")
        elif number == _RAW_DATA and kind == BYTES:
            raw = (first, last)
    if data_type != _FLOAT or raw is None:
        return name, None
    if raw[1] - raw[0] != 4 * math.prod(sizes):
        raise WireError(f"the weights {name!r} have {raw[1] - raw[0]} bytes, their shape is {sizes}")
    return name, Tensor(raw[0], tuple(sizes))


def _varints(data: bytes, at: int, end: int) -> list[int]:
    found = []
    while at < end:
        number, at = varint(data, at, end)
        found.append(number)
    return found
