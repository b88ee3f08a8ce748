"""Folding float32 and float64 with torch, which multiplies and adds in one pass: a third less time than numpy.

Only the centre has torch; where it is absent, and for other types, `cloud.federation.folding.NumpyKernel` serves.
"""

import math
import warnings

import numpy as np

from cloud.federation.folding import Kernel, NumpyKernel, Values

_FAST = (np.dtype(np.float32), np.dtype(np.float64))


class TorchKernel(NumpyKernel):
    """Sums and adds floats in torch, as many threads as torch is set to."""

    def __init__(self) -> None:
        super().__init__()
        import torch

        self._torch = torch
        with warnings.catch_warnings():  # torch warns once that bytes are read-only; they are only read
            warnings.simplefilter("ignore")
            torch.from_numpy(np.frombuffer(bytes(4), np.float32))

    def is_finite(self, values: Values) -> bool:
        if values.dtype not in _FAST or not len(values):
            return super().is_finite(values)
        total = float(self._torch.from_numpy(values).sum())  # infinity and NaN survive a sum; so does overflow
        return math.isfinite(total) or super().is_finite(values)

    def add(self, total: Values, values: Values, weight: float) -> None:
        if values.dtype not in _FAST or total.dtype != values.dtype or not len(values):
            super().add(total, values, weight)
        else:
            self._torch.from_numpy(total).add_(self._torch.from_numpy(values), alpha=weight)


def fastest_kernel() -> Kernel:
    """Torch's where there is torch."""
    try:
        return TorchKernel()
    except ImportError:
        return NumpyKernel()
