"""Random features as a layer: a backbone that grew, so that everything that stands on it is lifted.

φ(x) = max(0, Wᵀ (x - m) / s) of an embedding x (d,), with W (d, D) of random signs (RanPAC, arXiv:2307.02251; signs for
normal numbers: Achlioptas 2003). A linear head on φ(x) is not linear in x. The lift is part of the backbone's file, so
gateway and centre count, score and upload D numbers in the place of d, and nothing else has to know of it: W, m and s
are agreed before anybody counts. What it wins depends on the pictures (docs/benchmarks.md, forms); the gate judges.
"""

from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from common import manifest as keys
from common.errors import OperatorError
from common.statistics import Array

WIDTH_MAX: Final = 2048
"""Features after the lift. What a gateway sends grows with it, and what solving costs by its third power."""
_SIGNS, _ORIGIN, _SCALE = "lift_signs", "lift_origin", "lift_scale"


def random_signs(dimension: int, width: int, seed: int) -> NDArray[np.int8]:
    """W (d, D): one bit a number, as it travels."""
    return (np.random.default_rng(seed).integers(0, 2, (dimension, width), dtype=np.int8) * 2 - 1).astype(np.int8)


def place(embeddings: NDArray[np.floating]) -> tuple[Array, float]:
    """m (d,) and s: the middle of these embeddings (n, d), and the length that they have from it."""
    x = np.asarray(embeddings, np.float64)
    origin: Array = x.mean(axis=0)
    return origin, float(np.sqrt(((x - origin) ** 2).sum(axis=1).mean()))


def random_features(embeddings: NDArray[np.floating], signs: NDArray[np.int8], origin: Array, length: float) -> Array:
    """φ of embeddings (n, d): (n, D)."""
    lifted: Array = np.maximum((np.asarray(embeddings, np.float64) - origin) / length @ signs.astype(np.float64), 0.0)
    return lifted


def lift_backbone(data: bytes, signs: NDArray[np.int8], origin: Array, length: float) -> bytes:
    """The layer file of a backbone with the lift behind it. Its feature map goes: the embedding is no mean of it.

    Args:
        data: a float backbone as `cloud.learning.export` or `adoption` makes it.

    Raises:
        OperatorError: it is lifted already, its features are no d, W is too wide, or the pictures are all alike.
    """
    model = onnx.load_model_from_string(data)
    graph = model.graph
    (output,) = [item for item in graph.output if item.name == keys.EMBEDDING]
    dimension = output.type.tensor_type.shape.dim[1].dim_value
    if any(item.name == _SIGNS for item in graph.initializer):
        raise OperatorError("the backbone is lifted already", "Lift the one before it: roll back to it first.")
    if signs.shape[0] != dimension or not 0 < signs.shape[1] <= WIDTH_MAX:
        raise OperatorError(f"a lift {signs.shape} does not fit {dimension} features", f"At most {WIDTH_MAX} wide.")
    if not length > 0:
        raise OperatorError("the pictures of the datasets are all alike", "Add a dataset of the group's own pictures.")
    plain = "embedding_before_lift"
    for node in graph.node:
        for names in (node.input, node.output):
            names[:] = [plain if name == keys.EMBEDDING else name for name in names]
    graph.initializer.extend(
        [
            numpy_helper.from_array(signs, _SIGNS),
            numpy_helper.from_array(origin.astype(np.float32), _ORIGIN),
            numpy_helper.from_array(np.array([length], np.float32), _SCALE),
        ]
    )
    graph.node.extend(
        [
            helper.make_node("Sub", [plain, _ORIGIN], ["lift_centred"]),
            helper.make_node("Div", ["lift_centred", _SCALE], ["lift_unit"]),
            helper.make_node("Cast", [_SIGNS], ["lift_weights"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["lift_unit", "lift_weights"], ["lift_projected"]),
            helper.make_node("Relu", ["lift_projected"], [keys.EMBEDDING]),
        ]
    )
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", signs.shape[1]]))
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString(deterministic=True)
    return made
