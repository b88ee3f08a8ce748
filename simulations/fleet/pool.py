"""The embeddings that virtual sites draw their frames from, on a grid that makes every sum exact.

Values are multiples of 2⁻⁸ below 32. Their products are multiples of 2⁻¹⁶ below 2¹⁰, so a float64 (53 bits) holds the
sum of up to 2²⁷ of them without rounding: statistics are the same to the last bit in whatever order and batches they
are summed. A test relies on it. The grid costs an embedding of unit variance 0.1 % of its length.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import OperatorError
from common.statistics import Array

STEP, BOUND = 2.0**-8, 31.0
HELD_OUT = 5
"""Every fifth row is kept for measuring."""
GENERATED_CLASSES, GENERATED_ROWS = 12, 6_000


@dataclass(frozen=True, slots=True)
class Pool:
    """Rows (n, d) float64 on the grid, class numbers (n,), and which rows are held out for measuring."""

    classes: tuple[str, ...]
    rows: Array
    labels: NDArray[np.int64]
    held_out: NDArray[np.bool_]

    def by_class(self) -> list[NDArray[np.int64]]:
        """Numbers of the rows that may be trained on, per class."""
        return [np.flatnonzero((self.labels == k) & ~self.held_out) for k in range(len(self.classes))]


def on_grid(values: Array) -> Array:
    """The nearest multiples of `STEP`, bounded."""
    snapped: Array = np.clip(np.round(values / STEP) * STEP, -BOUND, BOUND)
    return snapped


def make_pool(embeddings: NDArray[np.floating], labels: list[str], dimensions: int) -> Pool:
    """Whiten in length (not in direction), project to the principal directions, snap to the grid."""
    x = embeddings.astype(np.float64)
    x = x - x.mean(axis=0)
    _, _, directions = np.linalg.svd(x, full_matrices=False)
    x = x @ directions[:dimensions].T
    classes = tuple(sorted(set(labels), key=lambda name: (name != "normal", name)))
    numbers = np.array([classes.index(label) for label in labels])
    held_out = np.zeros(len(labels), dtype=bool)
    for k in range(len(classes)):
        held_out[np.flatnonzero(numbers == k)[::HELD_OUT]] = True
    return Pool(classes, on_grid(x / x.std()), numbers, held_out)


def generated_pool(dimensions: int, seed: int) -> Pool:
    """Classes as overlapping normal clouds: for those without data at hand, and for tests."""
    rng = np.random.default_rng([seed, 7])
    means = rng.normal(size=(GENERATED_CLASSES, dimensions)) * 0.35
    numbers = rng.integers(0, GENERATED_CLASSES, GENERATED_ROWS)
    rows = means[numbers] + rng.normal(size=(GENERATED_ROWS, dimensions))
    return make_pool(rows, [f"class-{number:02d}" for number in numbers], dimensions)


def real_pool(folder: Path, backbone: Path, dimensions: int, every: int = 1) -> Pool:
    """Embed a labelled folder of pictures with a backbone.

    Raises:
        OperatorError: no such folder, or no backbone.
    """
    from cloud.learning.datasets import read_folder
    from common.backbone import Backbone
    from common.pictures import read_picture

    items = read_folder(folder)[::every]
    if not items:
        raise OperatorError(f"{folder} holds no labelled pictures", "Give another --data or set HEADFRAME_DATA.")
    model = Backbone.open(backbone)
    rows = np.stack([model.embed(read_picture(item.path)) for item in items])
    return make_pool(rows, [item.label for item in items], dimensions)
