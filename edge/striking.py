"""Whether what the model said of a frame deserves a closer look: unusually unsure, or novel for its camera. Pure."""

import math
from collections.abc import Sequence
from typing import Final

from common.messages import Prediction
from edge.selection import uncertainty
from edge.settings import GearSettings

MEMORY: Final = 300
"""Looks over which a camera's usual novelty is averaged: minutes in Watch, half an hour in Idle."""
UNSURE_SIGMAS: Final = 1.0
"""How far above its usual a camera's uncertainty must be to be news."""
WARM: Final = 20
"""Looks before a camera's usual novelty says anything."""


class Striking:
    """What is usual for one camera, per scenario, and what stands out of it."""

    def __init__(self, settings: GearSettings) -> None:
        self._settings = settings
        self._novelty: dict[str, _Running] = {}
        self._unsure: dict[str, _Running] = {}

    def judge(self, predictions: Sequence[Prediction]) -> bool:
        """True when a head is unsure, and more so than usual, or finds a frame more novel than usual by
        `novelty_sigmas`. A head that is always unsure of its camera is no news."""
        striking = False
        for item in predictions:
            novelty = self._novelty.setdefault(item.scenario, _Running())
            unsure = self._unsure.setdefault(item.scenario, _Running())
            share = uncertainty(item)
            striking |= novelty.deviation(item.novelty) >= self._settings.novelty_sigmas
            striking |= share >= self._settings.uncertainty_min and unsure.deviation(share) >= UNSURE_SIGMAS
            novelty.learn(item.novelty)
            unsure.learn(share)
        return striking


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
