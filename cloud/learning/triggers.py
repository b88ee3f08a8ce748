"""When does the centre start a round by itself? By new labels, by time, by drift, and within a budget. Pure.

What is known about earlier rounds comes from their records, so a restart of the centre neither forgets a trigger nor
pulls it twice. A round that a person starts is always allowed, and counts as the last one here.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

HOUR_NS: Final = 3_600 * 10**9
DRIFT_LEVEL: Final = 1.0
"""Of `CameraState.drift` from which a camera has drifted."""


@dataclass(frozen=True, slots=True)
class TriggerRules:
    """See `cloud.settings.LearningSettings`; 0 switches a trigger or a bound off."""

    new_labels: int
    every_hours: float
    drift_cameras: int
    rounds_per_day: int


@dataclass(frozen=True, slots=True)
class Past:
    """A round of before."""

    started_ns: int
    is_open: bool
    """Queued or running."""
    labels: int
    """At the centre when it started."""
    drifting: frozenset[str]
    """`gateway/camera`, when it started."""
    by_trigger: bool


@dataclass(frozen=True, slots=True)
class Trigger:
    """Why a round is to start."""

    kind: str
    """labels, time or drift"""
    detail: str


def find_trigger(
    rules: TriggerRules, now_ns: int, labels: int, drifting: frozenset[str], past: Sequence[Past]
) -> Trigger | None:
    """The trigger that is due, or None.

    Args:
        labels: at the centre now.
        drifting: cameras that have drifted, `gateway/camera`.
        past: rounds, newest first.
    """
    if any(run.is_open for run in past) or _is_spent(rules, now_ns, past):
        return None
    last = past[0] if past else None
    new_labels = labels - (last.labels if last else 0)
    if rules.new_labels and new_labels >= rules.new_labels:
        return Trigger("labels", f"{new_labels} new labels")
    new_drift = drifting - (last.drifting if last else frozenset())
    if rules.drift_cameras and len(new_drift) >= rules.drift_cameras:
        return Trigger("drift", f"{len(new_drift)} cameras drifted: {', '.join(sorted(new_drift)[:5])}")
    if rules.every_hours and last and now_ns - last.started_ns >= rules.every_hours * HOUR_NS:
        return Trigger("time", f"{(now_ns - last.started_ns) / HOUR_NS:.1f} hours since the last round")
    return None


def _is_spent(rules: TriggerRules, now_ns: int, past: Sequence[Past]) -> bool:
    """Whether the rounds of the last day are as many as triggers may start."""
    day = [run for run in past if run.by_trigger and now_ns - run.started_ns < 24 * HOUR_NS]
    return bool(rules.rounds_per_day) and len(day) >= rules.rounds_per_day
