"""Models of a few kilobytes that load in a millisecond: for benchmarks that are not about models."""

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cloud.learning.export import export_head
from cloud.learning.heads import solve_lda
from common import manifest as keys
from common.statistics import Statistics

DIMENSION = 64
SIDE_PX = 8


def tiny_backbone(seed: int = 0) -> bytes:
    """An L0 backbone: 8 x 8 pixels, a random projection."""
    weights = np.random.default_rng(seed).normal(0, 0.3, (3 * SIDE_PX**2, DIMENSION)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [keys.IMAGE], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], [keys.EMBEDDING]),
        ],
        "tiny",
        [helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, SIDE_PX, SIDE_PX])],
        [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", DIMENSION])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(
        model, {keys.KIND: "backbone", keys.INPUT_PX: str(SIDE_PX), keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
    )
    made: bytes = model.SerializeToString()
    return made


def tiny_head(backbone: str, scenario: str, classes: Sequence[str], seed: int = 0) -> bytes:
    """A head on it; another one for each seed."""
    rng = np.random.default_rng(seed)
    labels = [classes[row % len(classes)] for row in range(20 * len(classes))]
    x = rng.normal(0, 1, (len(labels), DIMENSION))
    x[:, 0] += [4 * classes.index(label) for label in labels]
    return export_head(solve_lda(Statistics.of(classes, x, labels), 0.1), scenario, backbone)
