"""A softmax head trained by gradient descent on a client's embeddings: its part in a round of weight updates. Pure.

All samples in every step and nothing drawn: the same weights and samples give the same update on any grid. It is for
comparison with heads in closed form, which need one round and forget nothing (docs/benchmarks.md, `learning`).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Softmax:
    """`weight` (classes, d) and `bias` (classes,), on embeddings of length 1."""

    weight: Floats
    bias: Floats


def train(
    head: Softmax, embeddings: Floats, targets: Sequence[int], *, steps: int, rate: float, mu: float = 0.0
) -> tuple[Softmax, float]:
    """Descend from `head`.

    Args:
        embeddings: (n, d)
        targets: (n,) rows of the head.
        mu: of FedProx's proximal term: how hard to hold on to `head`.

    Returns:
        The trained head, and the mean loss of the one that was given.
    """
    x = embeddings / np.maximum(np.linalg.norm(embeddings, axis=1, keepdims=True), 1e-12)
    truth = np.eye(len(head.bias), dtype=np.float32)[np.asarray(targets)]
    weight, bias = head.weight.astype(np.float64), head.bias.astype(np.float64)
    first = 0.0
    for step in range(steps):
        logits = x @ weight.T + bias
        logits -= logits.max(axis=1, keepdims=True)
        probabilities = np.exp(logits)
        probabilities /= probabilities.sum(axis=1, keepdims=True)
        if step == 0:
            first = float(-np.log(np.maximum((probabilities * truth).sum(axis=1), 1e-12)).mean())
        slope = (probabilities - truth) / len(x)
        weight = weight - rate * (slope.T @ x + mu * (weight - head.weight))
        bias = bias - rate * (slope.sum(axis=0) + mu * (bias - head.bias))
    return Softmax(weight.astype(np.float32), bias.astype(np.float32)), first
