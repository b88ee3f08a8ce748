"""Bring your own model: turn an ONNX backbone or detector into a layer that runs. Decides nothing about releases.

The model's picture input and its outputs are renamed, its pixel scaling becomes part of the graph, a feature map is
pooled, and the metadata that says how it is to be used is added. The weights are not touched.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto, helper, numpy_helper

from common import manifest as keys
from common.backbone import create_session
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
    model = _read(data)
    picture = _picture_input(model.graph)
    side = _input_side(picture, input_px)
    chosen = _output(model, output)
    _rename_input(model.graph, picture, side, mean, scale, "n")
    _set_output(model.graph, chosen)
    return _finish(
        model, {keys.KIND: "backbone", keys.INPUT_PX: str(side), keys.PIXEL_MEAN: "0", keys.PIXEL_SCALE: "1"}
    )


@dataclass(frozen=True, slots=True)
class DetectorForm:
    """How a detector is to be used."""

    decoder: str
    """`yolox`, `yolov8` or `ssd`: what its outputs mean (`edge.decoders`)."""
    classes: tuple[str, ...]
    """Names of its classes, in the order of its scores, without a background."""
    score_min: float = 0.35
    overlap_max: float = 0.5
    letterbox: str = ""
    """How a picture is put into the square; by default as the decoder's family does."""
    bgr: bool = False
    """It was trained on blue, green, red; most are on red, green, blue."""


def adopt_detector(
    data: bytes,
    form: DetectorForm,
    *,
    input_px: int = 0,
    mean: Sequence[float] = (0.0,),
    scale: Sequence[float] = (1.0,),
) -> bytes:
    """The layer file of a detector.

    Args:
        data: ONNX model with one input float32 (1, 3, px, px) and the outputs of its decoder: one tensor, or for `ssd`
            two, of which the one with four columns are the boxes.
        mean, scale: as for a backbone, of pixels 0..255 in the order that it was trained on.

    Raises:
        OperatorError: not such a model; says what was found.
    """
    if form.decoder not in keys.DECODERS:
        raise OperatorError(f"{form.decoder!r} is no decoder", f"There are {', '.join(keys.DECODERS)}.")
    letterbox = form.letterbox or keys.DECODERS[form.decoder]
    if letterbox not in keys.LETTERBOXES:
        raise OperatorError(f"{letterbox!r} is no letterbox", f"There are {', '.join(keys.LETTERBOXES)}.")
    if not form.classes or not 0 < form.score_min < 1 or not 0 < form.overlap_max <= 1:
        raise OperatorError("a detector has class names, a score and an overlap between 0 and 1", _DETECTOR_HINT)
    model = _read(data)
    picture = _picture_input(model.graph)
    side = _input_side(picture, input_px)
    _rename_input(model.graph, picture, side, mean, scale, 1)
    names = _detector_outputs(_sizes_when_run(model, side), form, side)
    _rename_outputs(model.graph, names)
    return _finish(
        model,
        {
            keys.KIND: "detector",
            keys.INPUT_PX: str(side),
            keys.DECODER: form.decoder,
            keys.LETTERBOX: letterbox,
            keys.CHANNELS: "bgr" if form.bgr else "rgb",
            keys.CLASSES: json.dumps(form.classes, ensure_ascii=False),
            keys.SCORE_MIN: repr(form.score_min),
            keys.OVERLAP_MAX: repr(form.overlap_max),
        },
    )


_DETECTOR_HINT = "See docs/cloud.md, 'Bring your own detector'."


def _sizes_when_run(model: onnx.ModelProto, side: int) -> dict[str, list[int]]:
    """Sizes of each output for an empty picture: exporters leave axes open, and a wrong one would show at a site."""
    try:
        session = create_session(model.SerializeToString())
        outputs = session.run(None, {keys.IMAGE: np.zeros((1, 3, side, side), np.float32)})
    except Exception as error:  # ONNX Runtime's errors share no public base but Exception
        raise OperatorError(
            f"the model does not run on one picture of {side} pixels ({error})", _DETECTOR_HINT
        ) from error
    return {item.name: list(value.shape) for item, value in zip(session.get_outputs(), outputs, strict=True)}


def _detector_outputs(shapes: dict[str, list[int]], form: DetectorForm, side: int) -> dict[str, str]:
    """Output of the model -> our name for it."""
    count = len(form.classes)
    if form.decoder == "ssd":
        boxes = [name for name, sizes in shapes.items() if len(sizes) == 3 and sizes[2] == 4]
        scores = [name for name, sizes in shapes.items() if len(sizes) == 3 and sizes[2] == count + 1]
        if len(boxes) == 1 and len(scores) == 1 and boxes != scores:
            return {boxes[0]: keys.BOXES, scores[0]: keys.SCORES}
        wanted = f"boxes (1, n, 4) and scores (1, n, {count + 1}), background first"
    else:
        anchors = sum((side // stride) ** 2 for stride in (8, 16, 32))
        shape = [1, anchors, 5 + count] if form.decoder == "yolox" else [1, 4 + count, anchors]
        if list(shapes.values()) == [shape]:
            return dict.fromkeys(shapes, keys.DETECTIONS)
        wanted = f"one output {shape}"
    found = ", ".join(f"{name} {sizes}" for name, sizes in shapes.items())
    raise OperatorError(
        f"the model has {found}; {form.decoder} with {count} classes at {side} pixels has {wanted}", _DETECTOR_HINT
    )


def _rename_outputs(graph: onnx.GraphProto, names: dict[str, str]) -> None:
    kept = []
    for value in graph.output:
        if value.name in names:
            graph.node.append(helper.make_node("Identity", [value.name], [names[value.name]]))
            value.name = names[value.name]
            kept.append(value)
    del graph.output[:]
    graph.output.extend(kept)


def _read(data: bytes) -> onnx.ModelProto:
    try:
        model = onnx.load_model_from_string(data)
        onnx.checker.check_model(model)
        return onnx.shape_inference.infer_shapes(model)
    except (DecodeError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise OperatorError(f"not a whole ONNX model: {error}", _HINT) from error


def _picture_input(graph: onnx.GraphProto) -> onnx.ValueInfoProto:
    weights = {item.name for item in graph.initializer}
    inputs = [item for item in graph.input if item.name not in weights]
    if len(inputs) != 1:
        raise OperatorError(f"the model has {len(inputs)} inputs, it must have one picture", _HINT)
    return inputs[0]


def _finish(model: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    del model.metadata_props[:]
    for key, value in metadata.items():
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
    graph: onnx.GraphProto,
    old: onnx.ValueInfoProto,
    side: int,
    mean: Sequence[float],
    scale: Sequence[float],
    batch: int | str,
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
    graph.input.append(helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, [batch, 3, side, side]))
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
    if len(sizes) == 4:
        graph.node.append(helper.make_node("Identity", [chosen.name], [keys.PATCHES]))
        shape = ["n", sizes[1], sizes[2] or "h", sizes[3] or "w"]
        graph.output.append(helper.make_tensor_value_info(keys.PATCHES, TensorProto.FLOAT, shape))
