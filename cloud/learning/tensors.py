"""Where the float tensors of an ONNX file lie, as byte ranges: what a weight delta is made over.

The `onnx` library reads values but does not say where in the file they stand, so the few protobuf fields on the way
(ModelProto.graph.initializer, onnx.proto3) are walked here.
"""

from collections.abc import Iterator

from onnx import TensorProto

from common.delta import Tensor
from common.errors import OperatorError

_GRAPH, _INITIALIZER = 7, 5
_DATA_TYPE, _NAME, _RAW_DATA = 2, 8, 9
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


def float_tensors(model: bytes) -> dict[str, Tensor]:
    """Every float32 initializer with raw data, by name.

    Raises:
        OperatorError: not a protobuf message.
    """
    found: dict[str, Tensor] = {}
    try:
        for field, begin, end in _fields(model, 0, len(model)):
            if field == _GRAPH:
                for inner, first, last in _fields(model, begin, end):
                    if inner == _INITIALIZER:
                        found |= _tensor(model, first, last)
    except (IndexError, ValueError) as error:
        raise OperatorError(f"not an ONNX file: {error}", "Use a layer that the centre exported.") from error
    return found


def _tensor(model: bytes, begin: int, end: int) -> dict[str, Tensor]:
    name, kind, raw = "", 0, (0, 0)
    for field, first, last in _fields(model, begin, end):
        if field == _DATA_TYPE:
            kind, _ = _varint(model, first)
        elif field == _NAME:
            name = model[first:last].decode()
        elif field == _RAW_DATA:
            raw = (first, last)
    size = raw[1] - raw[0]
    if kind != TensorProto.FLOAT or not size or size % 4:
        return {}
    return {name: Tensor(raw[0], size // 4)}


def _fields(data: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """(field number, begin, end) of each field's value; a varint's range covers its own bytes."""
    while at < end:
        key, at = _varint(data, at)
        field, wire = key >> 3, key & 7
        if wire == _VARINT:
            _, after = _varint(data, at)
        elif wire == _BYTES:
            size, at = _varint(data, at)
            after = at + size
        elif wire in (_FIXED64, _FIXED32):
            after = at + (8 if wire == _FIXED64 else 4)
        else:
            raise ValueError(f"wire type {wire} at byte {at}")
        if after > end:
            raise ValueError(f"field {field} ends behind its message")
        yield field, at, after
        at = after


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError(f"a number at byte {at} does not end")
