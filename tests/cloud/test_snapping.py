"""Models moved to whole steps from the published one: small on the wire, close in what they say, equal to the bit."""

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from cloud.learning.curvature import input_moments
from cloud.learning.snapping import FRACTIONS, coarsest, snap
from common import manifest as keys
from common.delta import apply_delta

SIDE, CHANNELS, OUTPUTS = 8, 48, 96


def network(seed: int, move: float = 0.0) -> bytes:
    """A small convolutional backbone whose weights moved by about `move` from those of the same seed."""
    generator, moves = np.random.default_rng(seed), np.random.default_rng(seed + 1)

    def weight(name: str, *shape: int) -> onnx.TensorProto:
        values = generator.normal(0, 0.3, shape) + move * moves.normal(0, 1, shape)
        return numpy_helper.from_array(values.astype(np.float32), name)

    graph = helper.make_graph(
        [
            helper.make_node("Conv", [keys.IMAGE, "stem", "bias"], ["seen"], pads=[1, 1, 1, 1]),
            helper.make_node("Relu", ["seen"], ["active"]),
            helper.make_node("Conv", ["active", "mix"], ["mixed"]),
            helper.make_node("ReduceMean", ["mixed"], [keys.EMBEDDING], axes=[2, 3], keepdims=0),
        ],
        "backbone",
        [helper.make_tensor_value_info(keys.IMAGE, TensorProto.FLOAT, ["n", 3, SIDE, SIDE])],
        [helper.make_tensor_value_info(keys.EMBEDDING, TensorProto.FLOAT, ["n", OUTPUTS])],
        [
            weight("stem", CHANNELS, 3, 3, 3),
            weight("bias", CHANNELS),
            weight("mix", OUTPUTS, CHANNELS, 1, 1),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def embed(model: bytes, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    embedding: NDArray[np.float32] = session.run([keys.EMBEDDING], {keys.IMAGE: pictures})[0]
    return embedding


@pytest.fixture
def pictures() -> NDArray[np.float32]:
    return np.random.default_rng(7).normal(0.5, 1, (16, 3, SIDE, SIDE)).astype(np.float32)


def test_the_delta_makes_exactly_the_model_that_was_judged() -> None:
    base, target = network(1), network(1, move=0.01)
    for fraction in FRACTIONS:
        snapped = snap(base, target, fraction)
        assert apply_delta(base, snapped.delta(base), len(snapped.data)) == snapped.data


def test_coarser_steps_are_smaller_on_the_wire(pictures: NDArray[np.float32]) -> None:
    base, target = network(1), network(1, move=0.01)
    moments = input_moments(target, (picture[None] for picture in pictures))
    sizes = [len(snap(base, target, fraction, moments).delta(base)) for fraction in FRACTIONS]
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] / 2


def test_knowing_the_inputs_keeps_the_embedding_closer(pictures: NDArray[np.float32]) -> None:
    base, target = network(1), network(1, move=0.01)
    moments = input_moments(target, (picture[None] for picture in pictures))
    assert set(moments) == {"mix"}
    assert moments["mix"].shape == (CHANNELS, CHANNELS)
    wanted = embed(target, pictures)
    plain, aware = (
        np.linalg.norm(embed(snap(base, target, 1.0, known).data, pictures) - wanted) for known in (None, moments)
    )
    assert aware < plain / 2


def test_the_coarsest_model_that_passes_is_taken_and_the_exact_one_when_none_does() -> None:
    base, target = network(1), network(1, move=0.01)
    judged: list[bytes] = []

    def third_passes(model: bytes) -> bool:
        judged.append(model)
        return len(judged) == 3

    chosen = coarsest(base, target, third_passes)
    assert chosen.fraction == FRACTIONS[2]
    assert chosen.data == judged[2]
    judged.clear()
    exact = coarsest(base, target, lambda model: bool(judged.append(model)))
    assert (exact.data, exact.fraction) == (target, 0.0)
    assert len(judged) == len(FRACTIONS)
    assert apply_delta(base, exact.delta(base), len(target)) == target


def test_a_model_that_did_not_change_stays_as_it_is() -> None:
    base = network(1)
    snapped = snap(base, base, 1.0)
    assert snapped.data == base
    assert snapped.steps == {}
