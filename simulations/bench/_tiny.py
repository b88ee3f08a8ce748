"""A release of a few kilobytes: a backbone of 8 x 8 pixels, an int8 variant and a head, for benchmarks that are not
about models."""

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


def tiny_variant(backbone: bytes, seed: int = 0) -> bytes:
    """An int8 variant of it, some of whose codes another seed moves."""
    rng = np.random.default_rng(0)
    codes = rng.integers(-100, 100, (192, DIMENSION)) + (np.random.default_rng(seed).random((192, DIMENSION)) < 0.1)
    graph = helper.make_graph(
        [
            helper.make_node("Flatten", [keys.IMAGE], ["flat"], axis=1),
            helper.make_node("DequantizeLinear", ["codes", "scale"], ["weights"]),
            helper.make_node("DequantizeLinear", ["bias_codes", "bias_scale"], ["bias"]),
            helper.make_node("Gemm", ["flat", "weights", "bias"], [keys.EMBEDDING]),
        ],
        "tiny",
        [helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", DIMENSION])],
        [
            numpy_helper.from_array(codes.astype(np.int8), "codes"),
            numpy_helper.from_array(np.float32((1 + seed / 8) / 256), "scale"),
            numpy_helper.from_array(np.arange(DIMENSION, dtype=np.int32) * (seed + 1), "bias_codes"),
            numpy_helper.from_array(np.float32(0.01), "bias_scale"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    metadata = {keys.KIND: "backbone", keys.INPUT_PX: "8", keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
    helper.set_model_props(model, metadata | {keys.PRECISION: keys.INT8, keys.STANDS_FOR: layer_hash(backbone)})
    data: bytes = model.SerializeToString()
    return data


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
