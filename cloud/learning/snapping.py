"""Small deltas by construction: new weights are moved to whole steps from the published ones *before* they are judged.

What the gate sees and the signature covers is the snapped model, so the small delta is bit-exact to it; nothing is
lost between gate and gateway. The step of a tensor is a fraction of the root mean square of its change: 1/8 costs about
5 bits a weight, 1/2 about 3 (the entropy of a Gaussian in such steps). One step a tensor was measured to be better
than one a channel: for the same bytes, the embedding moves a fifth less. Where the moments of a convolution's inputs
are known, the *change* of its weights is rounded with them (`cloud.learning.compensation`). Pure: the caller says what
passes.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.learning.compensation import compensate, error_factor
from cloud.learning.heads import HeadWeights
from common.delta import make_delta
from common.differences import STEP_MAX, STEP_MIN, snap_tensor, step_size
from common.statistics import Array
from common.weights import find_tensors, find_weights

FRACTIONS = (3.0, 2.0, 1.4, 1.0, 0.7, 0.5, 0.35, 0.25, 0.125, 0.0625)
"""Coarsest first; the last is as good as exact (agreement 1.000 in every fine-tune that was measured)."""
VECTOR_FRACTION = 0.125
"""Biases and batch-norm are few and every channel hangs on each: their steps stay at least this fine."""
VECTOR_MAX = 2_000
"""Tensors of fewer values are taken for such."""
SIZE_MIN = 1e-30
SHIFT_MAX = 0.004
"""Share of the probability that may move, mean over the pictures that judge."""
CHANGED_MAX = 0.005
"""And of the pictures, those that may be named otherwise: a head that is sure of nothing changes its mind at little.
With 0.01, three in a hundred pictures of other scenes were named otherwise after a short fine-tune of every weight."""


@dataclass(frozen=True, slots=True)
class Snapped:
    """A model in whole steps from its base; `steps` is what `common.delta.make_delta` needs."""

    data: bytes
    steps: dict[str, int]
    fraction: float
    """0 where nothing was snapped: the delta is exact then, and most of the file."""

    def delta(self, base: bytes) -> bytes:
        """The file that turns the base into this model."""
        return make_delta(base, self.data, find_tensors(base), find_tensors(self.data), self.steps)


def snap(base: bytes, target: bytes, fraction: float, moments: Mapping[str, Array] | None = None) -> Snapped:
    """`target` with every changed float tensor moved to the nearest whole steps from `base`.

    Args:
        base: ONNX file that gateways hold.
        target: ONNX file of the same architecture, with other weights.
        fraction: step over the root mean square of a tensor's change.
        moments: tensor -> second moment of its input channels, see `cloud.learning.curvature`.
    """
    held, made = find_weights(base), bytearray(target)
    steps: dict[str, int] = {}
    for name, new in find_weights(target).items():
        old = held.get(name)
        if old is None or old.count != new.count:
            continue
        before, after = old.read(base), new.read(target)
        if before.tobytes() == after.tobytes():
            continue
        is_vector = new.count < VECTOR_MAX
        steps[name] = nearest_step(before, after, min(fraction, VECTOR_FRACTION) if is_vector else fraction)
        if moments and name in moments:
            after = _compensate(before, after, step_size(steps[name]), moments[name])
        made[new.offset : new.end] = snap_tensor(before, after, steps[name]).tobytes()
    return Snapped(bytes(made), steps, fraction)


def coarsest(
    base: bytes, target: bytes, passes: Callable[[bytes], bool], moments: Mapping[str, Array] | None = None
) -> Snapped:
    """The snapped model with the largest steps that `passes`, else the target itself.

    Args:
        passes: judges the snapped file itself; see `keeps`.
        moments: see `snap`.
    """
    candidates = (snap(base, target, fraction, moments) for fraction in FRACTIONS)
    snapped = next(candidates)
    while not passes(snapped.data):
        # where only vectors changed, the coarser ones are all the same
        finer = next((candidate for candidate in candidates if candidate.data != snapped.data), None)
        if finer is None:
            return Snapped(target, {}, 0.0)
        snapped = finer
    return snapped


def keeps(head: HeadWeights, embeddings: NDArray[np.floating], wanted: Array) -> bool:
    """Whether a head's probabilities on a snapped model (n, d) are those on the unsnapped one, `wanted` (n, c).

    Counting changed predictions needs hundreds of pictures to tell 0.99 from 0.97; the probability that moves (total
    variation) is as telling with a hundred, since it also counts the predictions that nearly changed.
    """
    shift, changed = compare_answers(head.probabilities(embeddings), wanted)
    return shift <= SHIFT_MAX and changed <= CHANGED_MAX


def compare_answers(said: Array, wanted: Array) -> tuple[float, float]:
    """Share of the probability (n, c) that moved, and of the answers that changed."""
    shift = np.abs(said - wanted).sum(axis=1) / 2
    return float(shift.mean()), float(np.mean(said.argmax(axis=1) != wanted.argmax(axis=1)))


def nearest_step(before: NDArray[np.float32], after: NDArray[np.float32], fraction: float) -> int:
    """Index of the step closest to `fraction` of the root mean square of the change."""
    moved = after.astype(np.float64) - before.astype(np.float64)
    size = max(float(np.sqrt(np.mean(moved**2))) * fraction, SIZE_MIN)
    octave = math.floor(math.log2(size))
    quarter = round((size / 2.0**octave - 1.0) * 4)
    return min(max(4 * octave + quarter, STEP_MIN), STEP_MAX)


def _compensate(
    before: NDArray[np.float32], after: NDArray[np.float32], step: float, moment: Array
) -> NDArray[np.float32]:
    """Values close to whole steps from `before`, chosen so that the layer's output moves least.

    Args:
        before: weights (outputs * inputs,) of a 1x1 convolution; `after` the ones wanted.
        moment: second moment (inputs, inputs) of what the layer sees.
    """
    change = (after.astype(np.float64) - before.astype(np.float64)).reshape(-1, len(moment))
    whole = compensate(change, error_factor(moment), lambda values, _: np.rint(values / step) * step)
    moved: NDArray[np.float32] = (before.astype(np.float64) + whole.ravel()).astype(np.float32)
    return moved
