"""Rounding weights so that a layer's output moves least: GPTQ (arXiv:2210.17323). Pure.

Input channels are rounded one after the other, and each error is made up for by the channels that follow.
"""

from collections.abc import Callable
from typing import Final

import numpy as np

from common.statistics import Array

DAMPING: Final = 0.01  # of the mean diagonal: as in GPTQ
BLOCK: Final = 128  # channels between two large updates: one matrix product instead of many outer products


def compensate(wanted: Array, moment: Array, rounding: Callable[[Array], Array]) -> Array:
    """Rounded values (outputs, inputs) of a 1x1 convolution.

    Args:
        wanted: the exact ones (outputs, inputs).
        moment: second moment (inputs, inputs) of what the layer sees.
        rounding: of values (outputs,) of one input channel.
    """
    inputs = len(moment)
    left, whole = wanted.copy(), np.empty_like(wanted)
    damped = moment + np.eye(inputs) * (DAMPING * np.trace(moment) / inputs + 1e-12)
    factor = np.linalg.cholesky(np.linalg.inv(damped)).T  # upper: row i says how later channels make up for channel i
    for start in range(0, inputs, BLOCK):
        block = slice(start, min(start + BLOCK, inputs))
        errors = np.zeros((len(left), block.stop - block.start))
        for i in range(block.start, block.stop):
            whole[:, i] = rounding(left[:, i])
            errors[:, i - start] = (left[:, i] - whole[:, i]) / factor[i, i]
            left[:, i + 1 : block.stop] -= np.outer(errors[:, i - start], factor[i, i + 1 : block.stop])
        left[:, block.stop :] -= errors @ factor[block, block.stop :]
    return whole
