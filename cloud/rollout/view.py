"""A rollout as the console and the command show it."""

from typing import Any, Final

import msgspec

from cloud.rollout.gates import Verdict
from cloud.rollout.state import Outcome, Rollout

NAMED_MAX: Final = 200
"""Gateways named one by one."""


def row_of(rollout: Rollout, verdicts: tuple[Verdict, ...]) -> dict[str, Any]:
    """Plain values: phase, waves, outcomes, the gateways that failed, the gates."""
    counts = rollout.counts()
    named = [
        {"gateway_id": name, "outcome": member.outcome.value, "reason": member.reason}
        for name, member in rollout.members.items()
        if member.outcome in (Outcome.FAILED, Outcome.REFUSED, Outcome.SILENT)
    ]
    size = max(rollout.started.fleet, len(rollout.members))
    return {
        "rollout_id": rollout.rollout_id,
        "release_id": rollout.started.release_id,
        "parts": list(rollout.started.parts),
        "phase": rollout.phase.value,
        "why": rollout.why,
        "actor": rollout.started.actor,
        "started_ns": rollout.started.at_ns,
        "ended_ns": rollout.ended_ns,
        "wave": rollout.wave,
        "waves": [min(wave.target(size), size) for wave in rollout.plan.waves],
        "soaking_since_ns": rollout.filled_ns,
        "told": len(rollout.members),
        "outcomes": {outcome.value: counts[outcome] for outcome in Outcome},
        "failed": named[:NAMED_MAX],
        "gates": msgspec.to_builtins(verdicts),
    }
