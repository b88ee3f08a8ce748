"""Scores of any scale as ranks among the gateway's recent frames. Pure.

Ranks are taken over all cameras of a gateway: a camera whose every frame is odd then ranks above one that never shows
anything, which ranks within the camera would hide (docs/log.md).
"""

import bisect
import math
import random
from typing import Final

SIZE: Final = 1000
"""Scores remembered: ranks to a tenth of a percent."""


class Ranks:
    """A bounded memory of scores that forgets at random, so that it reaches back for hours in a few kilobytes.

    Args:
        seed: of the forgetting.
    """

    def __init__(self, seed: int = 0) -> None:
        self._random = random.Random(seed)
        self._sorted: list[float] = []

    def rank(self, score: float) -> float:
        """Share of the remembered scores that are lower (ties count half), 0..1; a half when nothing is remembered,
        0 for a score that is no number."""
        if not math.isfinite(score):
            return 0.0
        if not self._sorted:
            return 0.5
        lower = bisect.bisect_left(self._sorted, score)
        return (lower + bisect.bisect_right(self._sorted, score)) / 2 / len(self._sorted)

    def remember(self, score: float, chance: float) -> None:
        """Take a score in: always while there is room, later with `chance`, in place of any other."""
        if not math.isfinite(score):
            return
        if len(self._sorted) >= SIZE:
            if self._random.random() >= chance:
                return
            del self._sorted[self._random.randrange(SIZE)]
        bisect.insort(self._sorted, score)

    def forget(self) -> None:
        """Begin anew: other heads score on other scales."""
        self._sorted.clear()
