"""Folding float32 and float64 with torch, which multiplies and adds in one pass: a third less time than numpy.

Only the centre has torch; where it is absent, and for other types, `cloud.federation.folding.NumpyKernel` serves.

torch's threads wait for each other by spinning. On idle cores two fold half again as fast as one; where another process
holds a core they are fifty times slower, and take its time besides. So threads are on trial: see `Team`.
"""

import math
import time
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from cloud.federation.folding import Kernel, NumpyKernel, Values

TEAM_VALUES_MIN = 262_144
"""Updates of fewer values are folded alone: there is too little to share."""
TRIAL_MIN, TRIAL_MAX = 8, 4096
"""Folds alone between two trials of all threads; doubled where they were slower, halved where they were faster."""
SMOOTHING = 0.2  # of the mean time alone: some five folds

_FAST = (np.dtype(np.float32), np.dtype(np.float64))


class Team:
    """Whether to fold with all threads or with one, by what the last folds took.

    Folds are done alone first. Then all threads are tried, and kept as long as they are faster than one was; after a
    slower fold the next ones are done alone, more of them each time. So busy cores cost one slow fold in thousands.
    """

    def __init__(self) -> None:
        self._alone_left = self._pause = TRIAL_MIN
        self._alone_s_per_value = 0.0

    @property
    def is_together(self) -> bool:
        """Whether the next fold uses all threads."""
        return self._alone_left == 0

    def tell(self, values: int, seconds: float) -> None:
        """What the fold took that `is_together` was asked for."""
        took = seconds / values
        if not self.is_together:
            self._alone_left -= 1
            known = self._alone_s_per_value or took
            self._alone_s_per_value = known + SMOOTHING * (took - known)
        elif took < self._alone_s_per_value:
            self._pause = max(self._pause // 2, TRIAL_MIN)
        else:
            self._pause = min(self._pause * 2, TRIAL_MAX)
            self._alone_left = self._pause


class TorchKernel(NumpyKernel):
    """Sums and adds floats in torch, with one thread or with as many as torch is set to."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        super().__init__()
        import torch

        self._torch = torch
        self._clock = clock
        self._team = Team()
        with warnings.catch_warnings():  # torch warns once that bytes are read-only; they are only read
            warnings.simplefilter("ignore")
            torch.from_numpy(np.frombuffer(bytes(4), np.float32))

    def fold(self, totals: Sequence[Values], update: Sequence[Values], weight: float) -> int | None:
        size = sum(map(len, update))
        threads = self._torch.get_num_threads()
        if threads == 1 or size < TEAM_VALUES_MIN:
            return super().fold(totals, update, weight)
        if not self._team.is_together:
            self._torch.set_num_threads(1)
        began = self._clock()
        try:
            return super().fold(totals, update, weight)
        finally:
            self._torch.set_num_threads(threads)
            self._team.tell(size, self._clock() - began)

    def _is_finite(self, values: Values) -> bool:
        if values.dtype not in _FAST or not len(values):
            return super()._is_finite(values)
        total = float(self._torch.from_numpy(values).sum())  # infinity and NaN survive a sum; so does overflow
        return math.isfinite(total) or super()._is_finite(values)

    def _add(self, total: Values, values: Values, weight: float) -> None:
        if values.dtype not in _FAST or total.dtype != values.dtype or not len(values):
            super()._add(total, values, weight)
        else:
            self._torch.from_numpy(total).add_(self._torch.from_numpy(values), alpha=weight)


def fastest_kernel() -> Kernel:
    """Torch's where there is torch."""
    try:
        return TorchKernel()
    except ImportError:
        return NumpyKernel()
