"""Bring your own backbone: any ONNX image model becomes a layer that both ends run."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from cloud.learning.adoption import adopt_backbone
from cloud.registry import Registry
from cloud.store import Store
from cloud.trust import Repository
from common.backbone import Backbone
from common.clock import SystemClock
from common.errors import OperatorError
from common.manifest import Layer, Scenario

PIXELS = np.random.default_rng(1).integers(0, 255, (8, 8, 3), dtype=np.uint8)


def make_model(sizes: tuple[object, ...] = ("n", 3, 8, 8), channels: int = 5) -> bytes:
    """One convolution 1x1 named `features`, then its mean over the picture as `logits`."""
    weights = np.random.default_rng(0).normal(size=(channels, 3, 1, 1)).astype(np.float32)
    nodes = [
        helper.make_node("Conv", ["pixels", "weights"], ["features"]),
        helper.make_node("ReduceMean", ["features"], ["logits"], axes=[2, 3], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "model",
        [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [sizes[0], channels])],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    data: bytes = model.SerializeToString()
    return data


def expected(mean: object, scale: object) -> np.ndarray:
    weights = np.random.default_rng(0).normal(size=(5, 3, 1, 1)).astype(np.float32)[:, :, 0, 0]
    rgb = PIXELS[:, :, ::-1].astype(np.float32)
    found: np.ndarray = ((rgb - np.array(mean)) / np.array(scale)).mean((0, 1)) @ weights.T
    return found


@pytest.mark.parametrize("output", ["", "logits", "features"])
def test_the_embedding_is_the_named_tensor_of_the_scaled_picture(tmp_path: Path, output: str) -> None:
    mean, scale = (120.0, 110.0, 100.0), (58.0, 57.0, 56.0)
    path = tmp_path / "layer"
    path.write_bytes(adopt_backbone(make_model(), output=output, mean=mean, scale=scale))
    backbone = Backbone.open(path)
    assert (backbone.input_px, backbone.dimension) == (8, 5)
    np.testing.assert_allclose(backbone.embed(PIXELS), expected(mean, scale), rtol=1e-4, atol=1e-5)


def test_an_open_input_size_is_given_by_hand(tmp_path: Path) -> None:
    model = make_model(("n", 3, "h", "w"))
    with pytest.raises(OperatorError, match="--input-px"):
        adopt_backbone(model)
    path = tmp_path / "layer"
    path.write_bytes(adopt_backbone(model, input_px=8))
    np.testing.assert_allclose(Backbone.open(path).embed(PIXELS), expected(0, 1), rtol=1e-4)


@pytest.mark.parametrize(
    ("data", "more", "said"),
    [
        (b"no model", {}, "not a whole ONNX model"),
        (make_model()[:-40], {}, "not a whole ONNX model"),
        (make_model(("n", 1, 8, 8)), {}, "not"),
        (make_model(("n", 3, 8, 9)), {}, "no square"),
        (make_model(), {"output": "nowhere"}, "no tensor 'nowhere'"),
        (make_model(), {"mean": (1.0, 2.0)}, "one value or three"),
        (make_model(), {"scale": (0.0,)}, "scale not 0"),
    ],
)
def test_what_is_no_backbone_is_refused_with_what_was_found(data: bytes, more: dict, said: str) -> None:
    with pytest.raises(OperatorError, match=said) as caught:
        adopt_backbone(data, **more)
    assert caught.value.hint


def test_the_backbone_is_set_before_the_first_release_and_not_after(store: Store, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "layers", store, Repository.open(tmp_path / "trust", SystemClock()), SystemClock())
    layer = registry.set_backbone(adopt_backbone(make_model()))
    assert registry.backbone()[0] == layer
    registry.publish((Scenario("belt", ("normal",), "normal", {"*": Layer("0" * 64, 1)}),), layer, {}, "first")
    with pytest.raises(OperatorError, match="a release is active"):
        registry.set_backbone(adopt_backbone(make_model(channels=6)))
    assert registry.backbone()[0] == layer


def test_weights_are_not_touched() -> None:
    before = {i.name: i.raw_data for i in onnx.load_model_from_string(make_model()).graph.initializer}
    after = {i.name: i.raw_data for i in onnx.load_model_from_string(adopt_backbone(make_model())).graph.initializer}
    assert after["weights"] == before["weights"]
