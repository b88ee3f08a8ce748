"""A release of a few kilobytes: a backbone of 8 x 8 pixels and a head, for benchmarks that are not about models."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from cloud.learning.export import export_head
from cloud.learning.heads import solve_lda
from common import manifest as keys
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario
from common.statistics import Statistics

CLASSES = ("normal", "tear")
DIMENSION = 12


def tiny_backbone(seed: int = 0) -> bytes:
    """A random projection of the pixels."""
    weights = np.random.default_rng(seed).normal(0, 0.3, (192, DIMENSION)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [keys.IMAGE], ["flat"], axis=1),
            helper.make_node("MatMul", ["flat", "weights"], [keys.EMBEDDING]),
        ],
        "tiny",
        [helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", DIMENSION])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    helper.set_model_props(
        model, {keys.KIND: "backbone", keys.INPUT_PX: "8", keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
    )
    data: bytes = model.SerializeToString()
    return data


def tiny_head(backbone: bytes, seed: int = 0) -> bytes:
    """A head of two classes on it."""
    rng = np.random.default_rng(seed)
    labels = [CLASSES[row % 2] for row in range(100)]
    rows = rng.normal(0, 1, (100, DIMENSION))
    rows[:, 0] += [4 * CLASSES.index(label) for label in labels]
    return export_head(solve_lda(Statistics.of(CLASSES, rows, labels), 0.1), "belt", layer_hash(backbone))


def tiny_manifest(sequence: int, backbone: bytes, head: bytes, now_ns: int) -> Manifest:
    """The release of the two."""
    return Manifest(
        sequence=sequence,
        created_at_ns=now_ns,
        expires_at_ns=now_ns + 10**18,
        minimum_agent="0.1.0",
        backbone=Layer(layer_hash(backbone), len(backbone)),
        scenarios=(Scenario("belt", CLASSES, CLASSES[0], {SHARED: Layer(layer_hash(head), len(head))}),),
    )
