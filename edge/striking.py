"""Whether what the model said of a frame deserves a closer look: unsure, novel for its camera, or not normal. Pure."""

import math
from collections.abc import Sequence
from typing import Final

from common.messages import Prediction
from edge.selection import uncertainty
from edge.settings import GearSettings

MEMORY: Final = 300
"""Looks over which a camera's usual novelty is averaged: minutes in Watch, half an hour in Idle."""
WARM: Final = 20
"""Looks before a camera's usual novelty says anything."""


class Striking:
    """The usual novelty of one camera per scenario, and what stands out of it."""

    def __init__(self, settings: GearSettings) -> None:
        self._settings = settings
        self._usual: dict[str, _Running] = {}

    def judge(self, predictions: Sequence[Prediction]) -> bool:
        """True when a head is unsure, or more novel than usual by `novelty_sigmas`."""
        unsure = any(uncertainty(item) >= self._settings.uncertainty_min for item in predictions)
        novel = False
        for item in predictions:
            usual = self._usual.setdefault(item.scenario, _Running())
            novel |= usual.deviation(item.novelty) >= self._settings.novelty_sigmas
            usual.learn(item.novelty)
        return unsure or novel


class _Running:
    """Exponential mean and variance of a figure."""

    def __init__(self) -> None:
        self._seen, self._mean, self._variance = 0, 0.0, 0.0

    def deviation(self, figure: float) -> float:
        """How many standard deviations above the mean."""
        if self._seen < WARM:
            return 0.0
        return (figure - self._mean) / math.sqrt(self._variance + 1e-12 + (0.01 * self._mean) ** 2)

    def learn(self, figure: float) -> None:
        self._seen += 1
        rate = max(1.0 / self._seen, 1.0 / MEMORY)
        difference = figure - self._mean
        self._mean += rate * difference
        self._variance += rate * (difference * (figure - self._mean) - self._variance)
