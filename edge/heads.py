"""Many analytic heads as one matrix product. Pure.

A head of the analytic form (`cloud.learning.heads`) is t = A x - o per class, then a softmax of t less a constant (in a
ridge head, of t Q) and a novelty of both. All heads of a release stand on one embedding, so their rows A are stacked:
one product answers every scenario, and what is left is arithmetic on a (heads, classes) table. The ONNX file stays the
contract: whether the stacked numbers are what the file computes is checked by who loads it (`edge.perception`), and a
head of any other form runs as it is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from common.messages import Prediction

Floats = NDArray[np.float32]

_NAMES: Final = ("directions", "offsets", "constants", "quadratic", "temperature")
_ABSENT: Final = np.float32(1e4)
"""And of a class that nobody had a sample of, as the files have it."""
_FAR: Final = np.float32(1e30)
"""Distance of a place in the table that has no class: never the nearest, and probability zero."""


@dataclass(frozen=True, slots=True)
class AnalyticForm:
    """The numbers of one head over embeddings (d,), c classes."""

    scenario: str
    classes: tuple[str, ...]
    directions: Floats
    """(d, c), as in the file"""
    offsets: Floats
    """(c,)"""
    constants: Floats
    """(c,)"""
    quadratic: Floats
    """(c, c)"""
    temperature: float
    is_ridge: bool = False

    @classmethod
    def of(
        cls, scenario: str, classes: tuple[str, ...], weights: Mapping[str, Floats], is_ridge: bool = False
    ) -> "AnalyticForm | None":
        """From a file's weights; None where they are not those of this form."""
        if not set(_NAMES) <= set(weights):
            return None
        directions, offsets, constants, quadratic, temperature = (weights[name] for name in _NAMES)
        c = len(classes)
        fits = directions.ndim == 2 and directions.shape[1] == c and quadratic.shape == (c, c)
        if not fits or offsets.shape != (c,) or constants.shape != (c,) or temperature.size != 1:
            return None
        warmth = float(temperature.reshape(-1)[0])
        return cls(scenario, classes, directions, offsets, constants, quadratic, warmth, is_ridge)


class HeadStack:
    """Heads on one embedding, answered together; all must take the same dimension."""

    def __init__(self, forms: Sequence[AnalyticForm]) -> None:
        self._forms = tuple(forms)
        widest = max((len(form.classes) for form in forms), default=0)
        count, dimension = len(forms), forms[0].directions.shape[0] if forms else 0
        # (heads * classes, d), so that one matrix-vector product reads it in order
        rows = np.zeros((count, widest, dimension), np.float32)
        self._offsets = np.zeros((count, widest), np.float32)
        self._constants = np.full((count, widest), _FAR, np.float32)
        self._quadratic = np.zeros((count, widest, widest), np.float32)
        self._is_ridge = np.array([form.is_ridge for form in forms], bool).reshape(count, 1)
        self._temperatures = np.array([[form.temperature] for form in forms], np.float32).reshape(count, 1)
        for index, form in enumerate(forms):
            c = len(form.classes)
            rows[index, :c] = form.directions.T
            self._offsets[index, :c] = form.offsets
            self._constants[index, :c] = form.constants
            self._quadratic[index, :c, :c] = form.quadratic
        self._less = np.where(self._is_ridge & (self._constants < _ABSENT), np.float32(0), self._constants / 2)
        self._rows = rows.reshape(count * widest, dimension)

    def judge(self, embedding: Floats) -> tuple[Prediction, ...]:
        """What each head says about an embedding float32 (d,), in their order."""
        if not self._forms:
            return ()
        t = (self._rows @ embedding).reshape(self._offsets.shape) - self._offsets
        tq = (t[:, None, :] @ self._quadratic)[:, 0, :]
        logits = (np.where(self._is_ridge, tq, t) - self._less) / self._temperatures
        odds = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares = (odds / odds.sum(axis=1, keepdims=True)).tolist()
        whole = (tq * t).sum(axis=1)
        novelties = ((self._constants - 2 * t).min(axis=1) + whole).tolist()
        return tuple(
            Prediction(form.scenario, form.classes, tuple(row[: len(form.classes)]), novelty)
            for form, row, novelty in zip(self._forms, shares, novelties, strict=True)
        )
