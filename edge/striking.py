"""Whether what the model said of a frame deserves a closer look: unusually unsure, or novel for its camera. Pure."""

import math
from collections.abc import Collection, Sequence
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
        self._sigmas, self._share = settings.novelty_sigmas, settings.uncertainty_min
        self._usual: dict[str, tuple[_Running, _Running]] = {}
        """By scenario, of novelty and of uncertainty."""

    def judge(self, predictions: Sequence[Prediction], told: Collection[str] = ()) -> bool:
        """True when a head is unsure, and more so than usual, or finds a frame more novel than usual by
        `novelty_sigmas`. A head that is always unsure of its camera is no news, and neither is one whose event is open.

        Args:
            told: scenarios of which somebody has been told (docs/decisions/0044).
        """
        striking = False
        for item in predictions:
            usual = self._usual.get(item.scenario)
            if usual is None:
                usual = self._usual[item.scenario] = (_Running(), _Running())
            share = uncertainty(item)
            novel, unsure = usual[0].take(item.novelty), usual[1].take(share)
            if (novel >= self._sigmas or (share >= self._share and unsure >= UNSURE_SIGMAS)) and (
                item.scenario not in told
            ):
                striking = True
        return striking


class _Running:
    """Exponential mean and variance of a figure. One call and no numpy: forty heads have two each, at every look."""

    __slots__ = ("_mean", "_seen", "_variance")

    def __init__(self) -> None:
        self._seen, self._mean, self._variance = 0, 0.0, 0.0

    def take(self, figure: float) -> float:
        """How many standard deviations a figure is above the mean of those before; then it is one of them."""
        if not math.isfinite(figure):
            return 0.0  # a head that answers what is no number must not spoil what is usual
        seen, mean, variance = self._seen, self._mean, self._variance
        difference = figure - mean
        deviation = 0.0
        if seen >= WARM:
            deviation = difference / math.sqrt(variance + 1e-12 + 1e-4 * mean * mean)
        self._seen = seen = seen + 1
        rate = 1.0 / seen if seen < MEMORY else 1.0 / MEMORY
        self._mean = mean = mean + rate * difference
        self._variance = variance + rate * (difference * (figure - mean) - variance)
        return deviation
