"""What the inputs of a model's convolutions look like: how much an error in each weight would matter.

For a 1x1 convolution (most of a mobile network's weights) the error of its output is (Q - W) H (Q - W)ᵀ, with H the
second moment of its input channels. `cloud.learning.snapping` rounds with H at hand.
"""

from collections.abc import Iterable

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper

from common import manifest as keys
from common.statistics import Array

POSITIONS_MAX = 1_024
"""Of each feature map: neighbours say the same."""


def input_moments(model: bytes, pictures: Iterable[NDArray[np.float32]]) -> dict[str, Array]:
    """Weight name -> second moment (c, c) of the input of the 1x1 convolution that it belongs to.

    Args:
        model: ONNX backbone.
        pictures: float32 (1, 3, px, px), preprocessed as the backbone wants them; a few dozen are enough.
    """
    graph = onnx.load_model_from_string(model)
    shapes = {item.name: tuple(item.dims) for item in graph.graph.initializer}
    watched = {
        node.input[1]: node.input[0]
        for node in graph.graph.node
        if node.op_type == "Conv" and shapes.get(node.input[1], ())[2:] == (1, 1)
    }
    del graph.graph.output[:]
    for name in sorted(set(watched.values())):
        graph.graph.output.append(helper.make_empty_tensor_value_info(name))
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [item.name for item in session.get_outputs()]
    moments: dict[str, Array] = {}
    for picture in pictures:
        maps = dict(zip(names, session.run(names, {keys.IMAGE: picture}), strict=True))
        for name, values in maps.items():
            rows = np.asarray(values[0], dtype=np.float32).reshape(values.shape[1], -1)
            rows = rows[:, :: max(1, rows.shape[1] // POSITIONS_MAX)]
            moments[name] = moments.get(name, 0.0) + (rows @ rows.T).astype(np.float64)
    return {weight: moments[source] for weight, source in watched.items() if source in moments}
