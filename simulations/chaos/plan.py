"""What is done to whom, and when: drawn from a seed, so that a run can be had again. No I/O.

Every fault occurs at least once, however short the run; kills go on all the time, also while other faults last.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Final

from simulations.chaos.link import Weather


class Fault(Enum):
    """What can be done. The value is the name in the report."""

    KILL_EDGE = "kill -9 edge"
    KILL_BROKER = "kill -9 broker"
    KILL_CENTRE = "kill -9 centre"
    WEATHER = "link"
    DISK_FULL_EDGE = "disk full, edge"
    DISK_FULL_CENTRE = "disk full, centre"
    CLOCK_1970 = "clock at 1970"
    CLOCK_10_YEARS = "clock +10 years"
    CLOCK_BACK = "clock -1 h"
    CLOCK_BACK_CENTRE = "clock -1 h, centre"
    AMNESIA = "broker database deleted"
    TWIN = "two gateways with one identity"
    OLD_DISK = "restored from an old disk image"


KILLS: Final = (Fault.KILL_EDGE, Fault.KILL_BROKER, Fault.KILL_CENTRE)
KILL_WEIGHTS: Final = (5, 3, 2)
"""A centre takes longest to come back, and is the rarest to fall in the field."""
KILL_EVERY_S: Final = (3.0, 8.0)
"""Least and most on average between two kills: as many as a short run can bear, some 75 in ten minutes."""

WEATHERS: Final[dict[str, tuple[Weather, float]]] = {
    "500±200 ms": (Weather(latency_ms=500, jitter_ms=200), 1.0),
    "64 kbit/s": (Weather(bits_per_s=64_000), 1.0),
    "resets every 1-5 s": (Weather(reset_s=(1.0, 5.0)), 1.0),
    "half-open": (Weather(silent=True), 2.2),
    "3-byte slices": (Weather(slice_bytes=3), 1.0),
    "30 % of receipts lost": (Weather(lost_receipts=0.3), 1.0),
    "messages doubled": (Weather(doubled=0.3), 1.0),
    "messages swapped": (Weather(swapped=0.3), 1.0),
}
"""Of a gateway's link, each with its share of the time: 2.2 makes half-open two minutes of ten."""
SHARE: Final = 0.85
"""Of its time a weather lasts; then the link is clear for a moment."""


@dataclass(frozen=True, slots=True)
class Act:
    """One fault: from `at_s` for `seconds` (0: at once) to `target` (a gateway, `broker` or `centre`)."""

    at_s: float
    seconds: float
    fault: Fault
    target: str
    weather: str = ""

    @property
    def name(self) -> str:
        """As the report says it."""
        return f"{self.fault.value}: {self.weather}" if self.weather else self.fault.value


def make_plan(seed: int, seconds: float, gateways: Sequence[str]) -> list[Act]:
    """All acts in order of time. At least three gateways, so that the slow faults meet different ones."""
    rng = random.Random(seed)
    acts = [*_kills(rng, seconds, gateways), *_slow(rng, seconds, gateways)]
    for gateway in gateways:
        acts += _weathers(rng, seconds, gateway)
    return sorted(acts, key=lambda act: act.at_s)


def _kills(rng: random.Random, seconds: float, gateways: Sequence[str]) -> list[Act]:
    """The first three are one of each."""
    every_s = min(KILL_EVERY_S[1], max(KILL_EVERY_S[0], seconds / 75))
    count = max(len(KILLS), int(seconds / every_s))
    acts = []
    for number in range(count):
        fault = KILLS[number] if number < len(KILLS) else rng.choices(KILLS, KILL_WEIGHTS)[0]
        target = {Fault.KILL_EDGE: rng.choice(gateways), Fault.KILL_BROKER: "broker"}.get(fault, "centre")
        acts.append(Act((number + rng.random()) * seconds / count, 0.0, fault, target))
    return acts


def _slow(rng: random.Random, seconds: float, gateways: Sequence[str]) -> list[Act]:
    """Faults of disks, clocks, brokers and identities: each once, in places of the run of their own."""
    first, second, third = gateways[0], gateways[1 % len(gateways)], gateways[2 % len(gateways)]
    last = 0.1 * seconds
    spans = [
        (0.05, last, Fault.DISK_FULL_EDGE, first),
        (0.15, last, Fault.DISK_FULL_CENTRE, "centre"),
        (0.2, 1.5 * last, Fault.CLOCK_1970, third),
        (0.4, last, Fault.CLOCK_10_YEARS, third),
        (0.55, last, Fault.CLOCK_BACK, third),
        (0.65, last, Fault.CLOCK_BACK_CENTRE, "centre"),
        (0.45, 0.0, Fault.AMNESIA, "broker"),
        (0.5, 2.5 * last, Fault.TWIN, second),
        (0.3, 3 * last, Fault.OLD_DISK, first),  # the image is taken at the beginning and put back at the end
    ]
    return [
        Act(seconds * (share + 0.04 * rng.random()), length, fault, target) for share, length, fault, target in spans
    ]


def _weathers(rng: random.Random, seconds: float, gateway: str) -> list[Act]:
    """All of them one after another, in an order of the gateway's own."""
    names = list(WEATHERS)
    rng.shuffle(names)
    whole = sum(share for _, share in WEATHERS.values())
    acts, at_s = [], 0.0
    for name in names:
        length = seconds * WEATHERS[name][1] / whole
        acts.append(Act(at_s, SHARE * length, Fault.WEATHER, gateway, name))
        at_s += length
    return acts
