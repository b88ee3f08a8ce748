"""Where the float tensors of an ONNX file lie, as byte ranges: what a weight delta is made over.

The `onnx` library reads values but does not say where in the file they stand; `common.weights` does.
"""

from common.delta import Tensor
from common.errors import OperatorError, WireError
from common.weights import places

ITEM_BYTES = 4


def float_tensors(model: bytes) -> dict[str, Tensor]:
    """Every float32 initializer with raw data, by name.

    Raises:
        OperatorError: not a protobuf message.
    """
    try:
        sizes = {place.name: (place.begin, place.end - place.begin) for place in places(model)}
    except WireError as error:
        raise OperatorError(f"not an ONNX file: {error}", "Use a layer that the centre exported.") from error
    return {
        name: Tensor(at, size // ITEM_BYTES) for name, (at, size) in sizes.items() if size and not size % ITEM_BYTES
    }
