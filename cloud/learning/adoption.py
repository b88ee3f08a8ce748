"""Bring your own backbone: turn any ONNX image model into a layer that both ends run. Decides nothing about releases.

The model's picture input and feature output are renamed, its pixel scaling becomes part of the graph, a feature map is
pooled, and the metadata that `common.backbone` reads is added. The weights are not touched.
"""

from collections.abc import Sequence

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from common import manifest as keys
from common.errors import OperatorError

_HINT = "See docs/cloud.md, 'Bring your own backbone'."


def adopt_backbone(
    data: bytes, *, output: str = "", input_px: int = 0, mean: Sequence[float] = (0.0,), scale: Sequence[float] = (1.0,)
) -> bytes:
    """The layer file of a backbone.

    Args:
        data: ONNX model with one input float32 (n, 3, px, px) RGB.
        output: the tensor to stand heads on, (n, d) or a feature map (n, d, h, w) that is then averaged; by default the
            only output. Any tensor inside the graph may be named: the layers after it are left out of use.
        input_px: side of the square input, where the model leaves it open.
        mean: what is subtracted from a pixel of 0..255, one value or one per channel (RGB).
        scale: what it is divided by then.

    Raises:
        OperatorError: not such a model; says what was found.
    """
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
        model = onnx.shape_inference.infer_shapes(model)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OperatorError(f"not a whole ONNX model: {error}", _HINT) from error
    graph = model.graph
    weights = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in weights]
    if len(inputs) != 1:
        raise OperatorError(f"the model has {len(inputs)} inputs, a backbone has one picture", _HINT)
    side = _input_side(inputs[0], input_px)
    chosen = _output(model, output)
    _rename_input(graph, inputs[0], side, mean, scale)
    _set_output(graph, chosen)
    del model.metadata_props[:]
    for key, value in {
        keys.KIND: "backbone",
        keys.INPUT_PX: str(side),
        keys.PIXEL_MEAN: "0",
        keys.PIXEL_SCALE: "1",
    }.items():
        model.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(model)
    made: bytes = model.SerializeToString(deterministic=True)
    return made


def _sizes(value: onnx.ValueInfoProto) -> list[int]:
    """Sizes of a tensor; 0 where the model leaves one open."""
    return [int(item.dim_value) for item in value.type.tensor_type.shape.dim]


def _input_side(value: onnx.ValueInfoProto, given: int) -> int:
    sizes = _sizes(value)
    if len(sizes) != 4 or sizes[1] not in (0, 3) or value.type.tensor_type.elem_type != TensorProto.FLOAT:
        raise OperatorError(f"input {value.name} is {sizes}, not float32 (n, 3, px, px)", _HINT)
    side = given or sizes[2]
    if not side or sizes[2] not in (0, side) or sizes[3] not in (0, side):
        raise OperatorError(f"input {value.name} is {sizes}: no square of {side} pixels", "Give the side: --input-px.")
    return side


def _output(model: onnx.ModelProto, name: str) -> onnx.ValueInfoProto:
    known = {item.name: item for item in (*model.graph.value_info, *model.graph.output)}
    if not name and len(model.graph.output) == 1:
        name = model.graph.output[0].name
    if name not in known:
        outputs = ", ".join(item.name for item in model.graph.output)
        raise OperatorError(f"the model has no tensor {name!r}", f"Name one with --output; its outputs are {outputs}.")
    sizes = _sizes(known[name])
    if len(sizes) not in (2, 4) or not sizes[1]:
        raise OperatorError(f"tensor {name} is {sizes}, not (n, d) or (n, d, h, w) with a known d", _HINT)
    return known[name]


def _rename_input(
    graph: onnx.GraphProto, old: onnx.ValueInfoProto, side: int, mean: Sequence[float], scale: Sequence[float]
) -> None:
    """`image` (n, 3, side, side) of pixels 0..255, then the model's own scaling, then the model."""
    if len(mean) not in (1, 3) or len(scale) not in (1, 3) or 0 in scale:
        raise OperatorError("mean and scale are one value or three (red, green, blue), scale not 0", _HINT)
    shape = (1, -1, 1, 1)
    for name, values in (("headframe_mean", mean), ("headframe_scale", scale)):
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.float32).reshape(shape), name))
    original = old.name
    inner = "headframe_scaled"
    for node in graph.node:
        node.input[:] = [inner if item == original else item for item in node.input]
    del graph.input[:]
    graph.input.append(helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, side, side]))
    nodes = list(graph.node)
    del graph.node[:]
    graph.node.append(helper.make_node("Sub", [keys.IMAGE, "headframe_mean"], ["headframe_centred"]))
    graph.node.append(helper.make_node("Div", ["headframe_centred", "headframe_scale"], [inner]))
    graph.node.extend(nodes)


def _set_output(graph: onnx.GraphProto, chosen: onnx.ValueInfoProto) -> None:
    sizes = _sizes(chosen)
    last = chosen.name
    if len(sizes) == 4:
        graph.node.append(helper.make_node("GlobalAveragePool", [last], ["headframe_pooled"]))
        last = "headframe_pooled"
    graph.node.append(helper.make_node("Flatten", [last], [keys.EMBEDDING], axis=1))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", sizes[1]]))
