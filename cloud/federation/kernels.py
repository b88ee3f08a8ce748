"""Folding float32 and float64 with torch, which multiplies and adds in one pass: a third less time than numpy.

Only the centre has torch; where it is absent, and for other types, `cloud.federation.folding.NumpyKernel` serves.

torch's threads wait for each other by spinning. On idle cores two fold half again as fast as one; where another process
holds a core they are fifty times slower, and take its time besides. So all are used only while nobody else computes.
"""

import math
import os
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from cloud.federation.folding import Kernel, NumpyKernel, Values

SHARED_VALUES_MIN = 262_144
"""Updates of fewer values are folded by one thread: there is too little to share."""
LOOK_S = 0.25
"""How often is looked at what others compute: so long a fold may be slow when somebody begins to."""
OTHERS_MAX = 0.1
"""Of one core, what others may take."""

_FAST = (np.dtype(np.float32), np.dtype(np.float64))


def busy_s() -> float:
    """CPU seconds that the machine has spent since it started; infinite where the system does not say so."""
    try:
        with Path("/proc/stat").open(encoding="ascii") as file:
            user, nice, system, _idle, _waiting, *more = map(int, file.readline().split()[1:9])
    except (OSError, ValueError):
        return math.inf
    return (user + nice + system + sum(more)) / os.sysconf("SC_CLK_TCK")


class Cores:
    """Whether other processes leave the cores to this one, by what they took in the last moments."""

    def __init__(
        self,
        busy_s: Callable[[], float] = busy_s,
        own_s: Callable[[], float] = time.process_time,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._busy_s, self._own_s, self._clock = busy_s, own_s, clock
        self._others_s, self._looked_s = busy_s() - own_s(), clock()
        self._are_free = False

    @property
    def are_free(self) -> bool:
        """False until it has looked for a moment."""
        now_s = self._clock()
        if now_s - self._looked_s >= LOOK_S:
            others_s = self._busy_s() - self._own_s()
            self._are_free = others_s - self._others_s <= OTHERS_MAX * (now_s - self._looked_s)
            self._others_s, self._looked_s = others_s, now_s
        return self._are_free


class TorchKernel(NumpyKernel):
    """Sums and adds floats in torch, with one thread or with as many as torch is set to."""

    def __init__(self, cores: Cores | None = None) -> None:
        super().__init__()
        import torch

        self._torch = torch
        self._cores = cores or Cores()
        with warnings.catch_warnings():  # torch warns once that bytes are read-only; they are only read
            warnings.simplefilter("ignore")
            torch.from_numpy(np.frombuffer(bytes(4), np.float32))

    def fold(self, totals: Sequence[Values], update: Sequence[Values], weight: float) -> int | None:
        threads = self._torch.get_num_threads()
        if threads == 1 or sum(map(len, update)) < SHARED_VALUES_MIN or self._cores.are_free:
            return super().fold(totals, update, weight)
        self._torch.set_num_threads(1)
        try:
            return super().fold(totals, update, weight)
        finally:
            self._torch.set_num_threads(threads)

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
