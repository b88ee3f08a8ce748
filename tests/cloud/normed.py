"""A backbone that can be trained in a second, and pictures that it can learn to tell apart."""

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from common import manifest as keys

SIDE, CLASSES = 12, ("normal", "tear")


def small_backbone(seed: int = 0, *, operator: str = "Relu", features: int = 16) -> bytes:
    """Two convolutions with batch-norm, a branch that meets the other, and the mean of the map."""
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int) -> object:
        return numpy_helper.from_array(rng.normal(0, 0.4, shape).astype(np.float32), name)

    def norm(name: str, size: int) -> list[object]:
        values = {"scale": np.ones(size), "shift": np.zeros(size), "mean": rng.normal(0, 0.1, size)}
        values["variance"] = np.full(size, 0.5)
        return [numpy_helper.from_array(v.astype(np.float32), f"{name}.{key}") for key, v in values.items()]

    def normed(x: str, name: str, y: str) -> object:
        names = [f"{name}.{key}" for key in ("scale", "shift", "mean", "variance")]
        return helper.make_node("BatchNormalization", [x, *names], [y], epsilon=1e-3)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", [keys.IMAGE, "stem"], ["a"], strides=[2, 2], pads=[1, 1, 1, 1]),
            normed("a", "bn1", "b"),
            helper.make_node(operator, ["b"], ["c"]),
            helper.make_node("Conv", ["c", "mix"], ["d"]),
            normed("d", "bn2", "e"),
            helper.make_node("Add", ["c", "e"], ["f"]),
            helper.make_node("Conv", ["f", "last"], ["g"]),
            normed("g", "bn3", "h"),
            helper.make_node("Relu", ["h"], ["i"]),
            helper.make_node("ReduceMean", ["i"], [keys.EMBEDDING], axes=[2, 3], keepdims=0),
        ],
        "small",
        [helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", features])],
        [
            weight("stem", 8, 3, 3, 3),
            *norm("bn1", 8),
            weight("mix", 8, 8, 1, 1),
            *norm("bn2", 8),
            weight("last", features, 8, 1, 1),
            *norm("bn3", features),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    metadata = {keys.KIND: "backbone", keys.INPUT_PX: str(SIDE), keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
    helper.set_model_props(model, metadata)
    data: bytes = model.SerializeToString()
    return data


def picture(label: str, seed: int) -> np.ndarray:
    """Stripes along or across, in the noise."""
    rng = np.random.default_rng(seed)
    stripes = np.zeros((SIDE, SIDE, 3))
    stripes[:, ::3] = rng.uniform(60, 120)
    found = rng.normal(90, 18, stripes.shape) + (stripes if label == "normal" else stripes.transpose(1, 0, 2))
    return found.clip(0, 255).astype(np.uint8)
