"""How a release is to reach the fleet: how many gateways first, how long to watch, when a site may be touched. Pure.

Decides the order of gateways and who may be told now; leaves to `cloud.rollout.engine` when a wave is over, and to
`cloud.rollout.gates` whether the release is good.
"""

import hashlib
import math
from collections.abc import Iterable
from typing import Final

import msgspec

from cloud.rollout.gates import Limits

DAY_MINUTES: Final = 24 * 60
PACE_MIN: Final = 30
"""Under way at once whatever the pace: a wave of the canary's size."""
EVERYONE: Final = 10**9


class Wave(msgspec.Struct, frozen=True):
    """A stage: so many gateways run the release before it is watched and judged. Numbers count from the beginning."""

    gateways: int = 0
    share: float = 0.0
    """Of the fleet, 0..1; the larger of the two counts. Neither: everyone."""
    among: tuple[str, ...] = ()
    """Only these gateways and sites; empty: any."""

    def target(self, fleet: int) -> int:
        """How many healthy gateways this wave asks for in a fleet of this size."""
        return max(self.gateways, math.ceil(self.share * fleet)) or EVERYONE


class Window(msgspec.Struct, frozen=True):
    """A time of day in which gateways may be told, in their site's own time; may pass midnight."""

    begin_minute: int
    end_minute: int

    def contains(self, minute: int) -> bool:
        """Whether a minute of the day lies in it."""
        if self.begin_minute <= self.end_minute:
            return self.begin_minute <= minute < self.end_minute
        return minute >= self.begin_minute or minute < self.end_minute


STAGES: Final = (Wave(1), Wave(5), Wave(30), Wave(150), Wave(750), Wave())


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What a rollout is run by; kept whole in the ledger, so a change of settings does not touch one under way."""

    waves: tuple[Wave, ...] = STAGES
    healthy_frames: int = 200
    """Looks by the new release, active and committed, before a gateway counts as healthy."""
    soak_s: float = 600.0
    """How long a full wave is watched before the next one begins."""
    deadline_s: float = 3600.0
    """From being told to being healthy; a gateway that is silent then has failed."""
    offline_age_max_s: float = 30 * 86_400.0
    """Gateways not heard of for longer are no part of the fleet until they come back."""
    windows: tuple[Window, ...] = ()
    """Empty: at any time."""
    site_bytes_per_s: float = 0.0
    """What a site's line may be asked to carry for releases; 0: no limit."""
    release_bytes: int = 0
    """What a gateway has to fetch."""
    pace: float = 0.25
    """Under way at once, as a share of those already judged: exposure stays within a quarter of the evidence."""
    limits: Limits = Limits()


def without_likeness(plan: Plan) -> Plan:
    """For a release that names what the one before could not: that one's answers are no measure of it.

    Failures, refusals, latency and labels still judge it; that it answers otherwise is what it is for.
    """
    limits = msgspec.structs.replace(plan.limits, disagreement_max=1.0, flags_change_max=1.0, scores_change_max=1.0)
    return msgspec.structs.replace(plan, limits=limits)


def scaled(waves: tuple[Wave, ...], fleet: int) -> tuple[Wave, ...]:
    """The waves that a fleet of this size has room for: one that asks for everyone comes last, once."""
    kept = [wave for wave in waves if wave.among or wave.target(fleet) < fleet]
    return (*kept, Wave())


def in_flight_max(plan: Plan, wave: int, judged: int) -> int:
    """How many gateways may be under way at once. In the last wave the evidence allows doubling."""
    pace = 1.0 if wave + 1 >= len(plan.waves) else plan.pace
    return max(PACE_MIN, int(pace * judged))


def stratified(gateways: Iterable[tuple[str, str]], seed: str) -> list[str]:
    """An order in which every site has its n-th gateway before any has its n+1-th; the same for the same seed.

    Args:
        gateways: (gateway, site).
    """
    sites: dict[str, list[str]] = {}
    for gateway, site in gateways:
        sites.setdefault(site, []).append(gateway)
    ranked = []
    for site, own in sites.items():
        draw = _draw(seed, site)
        ranked += [(rank, draw, name) for rank, name in enumerate(sorted(own, key=lambda g: _draw(seed, g)))]
    return [name for _, _, name in sorted(ranked)]


def in_window(plan: Plan, now_ns: int, utc_offset_s: float) -> bool:
    """Whether a gateway of a site with this offset may be told now."""
    if not plan.windows:
        return True
    minute = int((now_ns / 1e9 + utc_offset_s) // 60) % DAY_MINUTES
    return any(window.contains(minute) for window in plan.windows)


def site_gap_ns(plan: Plan) -> int:
    """Time between two gateways of one site, so that its line carries no more than it may."""
    return int(1e9 * plan.release_bytes / plan.site_bytes_per_s) if plan.site_bytes_per_s else 0


def _draw(seed: str, name: str) -> int:
    return int.from_bytes(hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "big")
