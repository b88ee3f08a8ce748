"""Rounding weights so that a layer's output moves least: GPTQ (arXiv:2210.17323). Pure.

Input channels are rounded one after the other, and each error is made up for by the channels that follow.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from common.statistics import Array

DAMPING: Final = 0.01  # of the mean diagonal: as in GPTQ
BLOCK: Final = 128  # channels between two large updates: one matrix product instead of many outer products


def error_factor(moment: Array) -> Array:
    """What `compensate` needs of the second moment (inputs, inputs) of what a layer sees: upper triangular, row i says
    how later channels make up for channel i."""
    inputs = len(moment)
    damped = moment + np.eye(inputs) * (DAMPING * np.trace(moment) / inputs + 1e-12)
    return np.asarray(np.linalg.cholesky(np.linalg.inv(damped)).T)


def compensate(wanted: Array, factor: Array, rounding: Callable[[Array, int], Array]) -> Array:
    """Rounded values (outputs, inputs) of a 1x1 convolution.

    Args:
        wanted: the exact ones (outputs, inputs).
        factor: of the layer's inputs, see `error_factor`.
        rounding: of values (outputs,) of an input channel.
    """
    inputs = len(factor)
    left, whole = wanted.copy(), np.empty_like(wanted)
    for start in range(0, inputs, BLOCK):
        block = slice(start, min(start + BLOCK, inputs))
        errors = np.zeros((len(left), block.stop - block.start))
        for i in range(block.start, block.stop):
            whole[:, i] = rounding(left[:, i], i)
            errors[:, i - start] = (left[:, i] - whole[:, i]) / factor[i, i]
            left[:, i + 1 : block.stop] -= np.outer(errors[:, i - start], factor[i, i + 1 : block.stop])
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    return whole
