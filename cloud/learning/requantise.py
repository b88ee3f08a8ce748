"""An int8 variant of a fine-tuned backbone in the numbers of the published one, so that most of its bytes stay.

Scales and zero points stay, and weight codes move by whole steps of some codes, the largest that pass: those of a 1x1
convolution with each error made up for by the channels that follow (`cloud.learning.compensation`), others by single
codes. A channel whose weights were all multiplied by about the same, which is what a fine-tuned batch norm does to the
convolution that it is folded into, keeps its codes and gets another scale. Biases and what is left in float move in
steps of an eighth of their change, as in `cloud.learning.snapping`. Pure: the caller says what passes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from cloud.learning.compensation import compensate, error_factor
from cloud.learning.heads import HeadWeights
from cloud.learning.snapping import SHIFT_MAX, VECTOR_FRACTION, compare_answers, nearest_step
from common import manifest as keys
from common.delta import make_delta
from common.differences import scale_tensor, snap_tensor
from common.statistics import Array
from common.weights import INT8, Tensor, are_alike, find_tensors, read_weights

STEPS: Final = (8, 6, 4, 3, 2, 1)
"""Codes that a weight of a 1x1 convolution moves by at once, coarsest first."""
CODE_MAX: Final = 127
SCALED_REST: Final = 0.5
"""A channel counts as scaled when that leaves less than this of its squared change."""
CHANCE: Final = 1.645
"""Standard errors: one equally good variant in twenty seems worse (McNemar's test)."""
QUANTISED, SCALE = "_quantized", "_scale"
"""How ONNX Runtime names what it makes of a tensor."""


@dataclass(frozen=True, slots=True)
class Requantised:
    """An int8 model in whole steps from the published one."""

    data: bytes
    step: int
    """Codes that a weight moves by at once."""
    steps: Mapping[str, int]
    ratios: Mapping[str, int]

    def delta(self, published: bytes) -> bytes:
        """The file that turns the published one into this model."""
        tensors = find_tensors(published), find_tensors(self.data)
        return make_delta(published, self.data, *tensors, self.steps, self.ratios)


@dataclass(frozen=True, slots=True)
class _Layer:
    """A convolution or product with quantised weights: names of its float weights and bias (or none) before they were
    quantised, and the axis of its outputs."""

    weight: str
    axis: int
    bias: str


@dataclass(frozen=True, slots=True)
class _Codes:
    """Weight codes (outputs, inputs) of a layer: as published, and the numbers that the new weights want instead."""

    layer: _Layer
    published: Array
    wanted: Array
    factor: Array | None

    def moved(self, step: int) -> Array:
        """In whole steps of so many codes, where the layer's inputs are known; otherwise to the nearest code."""
        if self.factor is None:
            return np.asarray(np.clip(np.rint(self.wanted), -CODE_MAX, CODE_MAX))

        def rounding(change: Array, column: int) -> Array:
            held = self.published[:, column]
            return np.asarray(np.clip(held + step * np.rint(change / step), -CODE_MAX, CODE_MAX) - held)

        return self.published + compensate(self.wanted - self.published, self.factor, rounding)


def unlike(published: bytes, old: bytes, new: bytes) -> str:
    """Why an int8 variant cannot be carried over to another backbone; empty when it can.

    Args:
        published: its file.
        old: the backbone that it was made of, and `new` the other one, both folded (`cloud.learning.quantise.fold`).
    """
    if not are_alike(old, new):
        return "the backbones differ in more than their weights"
    known, places = read_weights(new), find_tensors(published)
    for layer in _layers(published, places):
        codes, scales = places[layer.weight + QUANTISED], places[layer.weight + SCALE]
        if layer.weight not in known or known[layer.weight].shape != codes.shape:
            return f"the backbone has no weights like {layer.weight!r}"
        if scales.count != codes.shape[layer.axis] or (layer.bias and layer.bias not in known):
            return f"{layer.weight!r} is quantised in another way"
    return ""


class Requantiser:
    """Everything about a variant that does not depend on the step. See `unlike` for the files.

    Args:
        stands_for: layer hash of the new backbone.
        moments: weight -> second moment of its input channels, of the new one folded (`cloud.learning.curvature`).
    """

    def __init__(self, published: bytes, old: bytes, new: bytes, stands_for: str, moments: Mapping[str, Array]) -> None:
        self._places, self._made = find_tensors(published), bytearray(_renamed(published, stands_for))
        self._steps: dict[str, int] = {}
        self._ratios: dict[str, int] = {}
        self._codes: list[_Codes] = []
        before, after = read_weights(old), read_weights(new)
        for name in before.keys() & self._places.keys():
            self._move_floats(name, after[name])
        for layer in _layers(published, self._places):
            rows = [_rows(weights[layer.weight], layer.axis) for weights in (before, after)]
            ratio = _common_ratio(*rows)
            self._codes.append(self._plan(layer, rows[1] / ratio[:, None], moments.get(layer.weight)))
            self._rescale(layer, ratio)
            if layer.bias:
                self._move_bias(layer.bias, after[layer.bias])

    def at(self, step: int) -> Requantised:
        """The variant whose weights move by so many codes at once."""
        made = bytearray(self._made)
        for codes in self._codes:
            place = self._places[codes.layer.weight + QUANTISED]
            whole = _unrows(codes.moved(step), place.shape, codes.layer.axis).astype(np.int8)
            made[place.offset : place.end] = whole.tobytes()
        return Requantised(bytes(made), step, self._steps, self._ratios)

    def _read(self, name: str) -> NDArray[Any]:
        return self._places[name].read(self._made).copy()

    def _write(self, name: str, values: NDArray[Any]) -> None:
        place = self._places[name]
        self._made[place.offset : place.end] = values.astype(place.dtype).tobytes()

    def _move_floats(self, name: str, wanted: NDArray[np.float32]) -> None:
        before, after = self._read(name), wanted.ravel()
        if before.tobytes() != after.tobytes():
            self._steps[name] = nearest_step(before, after, VECTOR_FRACTION)
            self._write(name, snap_tensor(before, after, self._steps[name]))

    def _rescale(self, layer: _Layer, ratio: Array) -> None:
        """Weights and bias of a channel keep the ratio of their scales: kernels want it to be that of the input."""
        change = float(np.sqrt(np.mean((ratio - 1) ** 2)))
        if not change:
            return
        step = nearest_step(np.zeros(1, np.float32), np.full(1, change, np.float32), VECTOR_FRACTION)
        for name in (layer.weight + SCALE, *([layer.bias + QUANTISED + SCALE] if layer.bias else [])):
            self._ratios[name] = step
            self._write(name, scale_tensor(self._read(name), ratio, step))

    def _move_bias(self, bias: str, wanted: NDArray[np.float32]) -> None:
        """Its codes, in steps of a power of two that mean about the same in every channel, whatever its scale."""
        held = self._read(bias + QUANTISED).astype(np.float64)
        scale = self._read(bias + QUANTISED + SCALE).astype(np.float64)
        codes = np.divide(wanted.ravel(), scale, out=held.copy(), where=scale > 0)
        step = float(np.sqrt(np.mean(((codes - held) * scale) ** 2))) * VECTOR_FRACTION
        size = np.divide(step, scale, out=np.ones_like(scale), where=scale > 0)
        unit = 2.0 ** np.floor(np.log2(np.maximum(size, 1.0)))
        self._write(bias + QUANTISED, np.clip(held + np.rint((codes - held) / unit) * unit, -(2**31), 2**31 - 1))

    def _plan(self, layer: _Layer, weights: Array, moment: Array | None) -> _Codes:
        place = self._places[layer.weight + QUANTISED]
        held = _rows(self._read(layer.weight + QUANTISED).reshape(place.shape).astype(np.float64), layer.axis)
        scale = self._read(layer.weight + SCALE).astype(np.float64)[:, None]
        wanted = np.divide(weights, scale, out=held.copy(), where=scale > 0)
        return _Codes(layer, held, wanted, None if moment is None else error_factor(moment))


def coarsest(requantiser: Requantiser, passes: Callable[[bytes], bool]) -> Requantised | None:
    """The variant with the largest steps that `passes`; None when none does."""
    return next((made for made in map(requantiser.at, STEPS) if passes(made.data)), None)


@dataclass(frozen=True, slots=True)
class Yardstick:
    """What a variant is measured by: the embeddings (n, d) of pictures on float, and on a variant made from scratch."""

    heads: Sequence[HeadWeights]
    on_float: NDArray[np.float32]
    on_fresh: NDArray[np.float32]

    def holds(self, embeddings: NDArray[np.float32]) -> bool:
        """Whether a variant is no further from float than the one from scratch, as it is and for every head.

        A head's probabilities may always move as far as on a snapped float backbone (`cloud.learning.snapping`).
        Answers are few and change at little, so of those a difference counts when chance would seldom make it.
        """
        return self._distance(embeddings) <= self._distance(self.on_fresh) and all(
            self._is_as_good(head.probabilities(embeddings), head) for head in self.heads
        )

    def _is_as_good(self, said: Array, head: HeadWeights) -> bool:
        wanted, fresh = head.probabilities(self.on_float), head.probabilities(self.on_fresh)
        changed, fresh_changed = (answers.argmax(axis=1) != wanted.argmax(axis=1) for answers in (said, fresh))
        worse, better = int((changed & ~fresh_changed).sum()), int((fresh_changed & ~changed).sum())
        allowed = max(SHIFT_MAX, compare_answers(fresh, wanted)[0])
        return compare_answers(said, wanted)[0] <= allowed and worse - better <= CHANCE * math.sqrt(worse + better)

    def _distance(self, embeddings: NDArray[np.float32]) -> float:
        return float(np.linalg.norm(embeddings - self.on_float))


def _layers(published: bytes, places: Mapping[str, Tensor]) -> Iterator[_Layer]:
    """Those of an int8 model in QDQ form."""
    graph = onnx.load_model_from_string(published).graph
    opened = {node.output[0]: node for node in graph.node if node.op_type == "DequantizeLinear"}
    seen = set()
    for node in graph.node:
        parts = [opened.get(name) for name in node.input]
        weight = parts[1] if len(parts) > 1 else None
        codes = weight.input[0] if weight is not None else ""
        if weight is None or codes in seen or codes not in places or places[codes].dtype != INT8:
            continue
        seen.add(codes)
        axis = next((item.i for item in weight.attribute if item.name == "axis"), 1)
        bias = parts[2].input[0].removesuffix(QUANTISED) if len(parts) > 2 and parts[2] is not None else ""
        yield _Layer(codes.removesuffix(QUANTISED), axis, bias)


def _renamed(published: bytes, stands_for: str) -> bytes:
    """The same file for another backbone: a hash for a hash."""
    metadata = {item.key: item.value for item in onnx.load_model_from_string(published).metadata_props}
    return published.replace(metadata[keys.STANDS_FOR].encode(), stands_for.encode())


def _common_ratio(before: Array, after: Array) -> Array:
    """What each channel (rows) was multiplied by where that is most of its change, elsewhere 1."""
    size = (before**2).sum(axis=1)
    ratio = np.divide((before * after).sum(axis=1), size, out=np.ones_like(size), where=size > 0)
    rest, change = (((after - factor * before) ** 2).sum(axis=1) for factor in (ratio[:, None], 1.0))
    return np.where((rest < SCALED_REST * change) & (ratio > 0), ratio, 1.0)


def _rows(weights: NDArray[Any], axis: int) -> Array:
    """(outputs, inputs)"""
    moved = np.moveaxis(weights.astype(np.float64), axis, 0)
    return moved.reshape(len(moved), -1)


def _unrows(rows: Array, shape: tuple[int, ...], axis: int) -> Array:
    """The inverse."""
    first = (shape[axis], *shape[:axis], *shape[axis + 1 :])
    return np.moveaxis(rows.reshape(first), 0, axis)
