"""When a release on trial goes on, and when it goes back: rules over what was counted. Pure.

In shadow the new release looks beside the running one; on probation it runs, and the one before looks beside it. Both
end by frames, or by time where the cameras are silent: a gateway without a picture must still be able to install. What
the two disagree on is counted and left to the centre to judge: a better model disagrees too.
"""

from dataclasses import dataclass
from enum import Enum
from math import sqrt
from typing import Final

from edge.settings import InstallSettings
from edge.tally import Observation

SLACK_MS: Final = 20.0
"""A look may take so much longer whatever the ratio: with small models the ratio is of noise."""
LOOKS_MIN: Final = 10
"""Looks on each side before times or rates are compared."""
SIGMAS: Final = 4.0
"""How far beyond chance a shift of the flag rate must be, on top of `flag_shift`."""
HANGS_BESIDE: Final = 2.0
"""In shadow a look runs at low priority: it may take so many times `hang_s`."""


class Outcome(Enum):
    """What follows."""

    WAIT = "wait"
    GO = "go"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class Judgement:
    """And why, when it is `BACK`."""

    outcome: Outcome
    reason: str = ""


WAIT: Final = Judgement(Outcome.WAIT)
GO: Final = Judgement(Outcome.GO)


def _back(reason: str) -> Judgement:
    return Judgement(Outcome.BACK, reason)


def judge_shadow(seen: Observation, name: str, waited_s: float, settings: InstallSettings) -> Judgement:
    """Of the release `name`, which has looked beside the running one for `waited_s`."""
    fault = _shadow_fault(seen, name, settings)
    if fault:
        return _back(fault)
    ended = seen.pair.compared >= settings.shadow_frames or waited_s >= settings.shadow_s
    return GO if ended and seen.beside_stuck_s <= settings.hang_s else WAIT


def _shadow_fault(seen: Observation, name: str, settings: InstallSettings) -> str:
    tally = seen.of(name)
    if tally.errors:
        return f"{tally.errors} of {tally.frames + tally.errors} looks in shadow failed or gave no numbers"
    if seen.deaths:
        return "a worker process died while it looked in shadow"
    if seen.beside_stuck_s > HANGS_BESIDE * settings.hang_s:
        return f"a look in shadow has not ended for {seen.beside_stuck_s:.1f} s"
    return seen.failed


@dataclass(frozen=True, slots=True)
class Before:
    """What shadow has shown, for probation to compare with."""

    name: str
    """The release that ran; empty: there was none."""
    median_ms: float = 0.0
    looks: int = 0
    shift: float = 0.0
    """Flag rate of the new release minus that of the old, on the same frames."""
    compared: int = 0


def judge_probation(
    seen: Observation, name: str, before: Before, waited_s: float, settings: InstallSettings
) -> Judgement:
    """Of the release `name`, which has run for `waited_s`; the one before looks beside it."""
    tally = seen.of(name)
    fault = _fault(seen, name, before, settings)
    if fault:
        return _back(fault)
    if tally.frames >= settings.probation_frames or waited_s >= settings.probation_s:
        return GO
    return WAIT


def _fault(seen: Observation, name: str, before: Before, settings: InstallSettings) -> str:
    tally = seen.of(name)
    if seen.failed:
        return seen.failed
    if tally.errors:
        return f"{tally.errors} of {tally.frames + tally.errors} looks failed or gave no numbers"
    if seen.deaths:
        return "a worker process died under it"
    hang_s = max(settings.hang_s, settings.latency_ratio * before.median_ms / 1e3)
    if seen.stuck_s > hang_s:
        return f"a look has not ended for {seen.stuck_s:.1f} s"
    ms, bar_ms = tally.median_ms, max(settings.latency_ratio * before.median_ms, before.median_ms + SLACK_MS)
    if min(tally.frames, before.looks) >= LOOKS_MIN and ms > bar_ms:
        return f"a look takes {ms:.0f} ms, {ms / before.median_ms:.1f} times that of {before.name}"
    return _shifted(seen, before, settings)


def _shifted(seen: Observation, before: Before, settings: InstallSettings) -> str:
    """The new release flags more or less than in shadow, relative to the old one on the very same frames: what changed
    in front of the cameras meanwhile changes both."""
    pair = seen.pair
    if min(pair.compared, before.compared) < LOOKS_MIN:
        return ""
    shift = -pair.shift  # the old one is beside now
    chance = sqrt(0.25 / pair.compared + 0.25 / before.compared)
    if abs(shift - before.shift) <= max(settings.flag_shift, SIGMAS * chance):
        return ""
    return (
        f"its flag rate is {100 * shift:+.0f} points from that of {before.name} on the same frames,"
        f" in shadow it was {100 * before.shift:+.0f}"
    )
