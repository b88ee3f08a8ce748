"""What is to be written down about a rollout now, one rule a function. Pure.

Each looks at one rollout and at the world and returns a line of the ledger, or nothing.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from cloud.rollout.entries import Aborted, Completed, Filled, Opened, Settled, Told
from cloud.rollout.gates import Baseline, ClassTally, LabelTally, Observation, Tally, Verdict, closed
from cloud.rollout.gates import judge as judge_all
from cloud.rollout.plan import Plan, in_flight_max
from cloud.rollout.state import Member, Outcome, Rollout
from common.messages import ReleaseHealth

ERRORS_FRAMES_MIN: Final = 50
"""Looks before the share of errors says anything."""
OBSERVED_MAX: Final = 1000
"""Gateways whose behaviour is looked at, the last told, and whose classes are, the first told: more would not be judged
any better."""
CONTROLS_MIN: Final = 30
"""Gateways outside of the rollout before their usual loss is believed."""
LOSS_MAX: Final = 0.1
COMMITTED: Final = "committed"
ROLLED_BACK: Final = "rolled-back"


@dataclass(frozen=True, slots=True)
class Report:
    """What the engine needs of a gateway's reported state."""

    gateway_id: str
    site_id: str
    seen_ns: int
    online: bool
    release_id: str
    health: tuple[ReleaseHealth, ...] = ()
    utc_offset_s: float = 0.0


class World(Protocol):
    """What the engine sees of the rest."""

    @property
    def now_ns(self) -> int: ...

    @property
    def since_ns(self) -> int:
        """Since when reports are heard: whoever was silent while the centre was down has not failed by it."""
        ...

    @property
    def active(self) -> str:
        """The release that the fleet runs."""
        ...

    @property
    def fleet(self) -> Mapping[str, Report]:
        """Every gateway known."""
        ...

    def size(self, offline_age_max_s: float) -> int:
        """How many of them have been heard of within this time."""
        ...

    def carries(self, release_id: str, rollout: Rollout) -> bool:
        """Whether this release has what the rollout brings."""
        ...

    def merged(self, rollout: Rollout, *, forward: bool) -> str:
        """The active release with the change of the rollout, or with it taken back; signed, and not active yet."""
        ...

    def labels(self, rollout: Rollout) -> LabelTally:
        """What people said about samples of the gateways that run it."""
        ...

    def explained(self, rollout: Rollout, site_id: str) -> float:
        """How much it is known to be better there, 0..1."""
        ...

    def classes(self, rollout: Rollout) -> Mapping[str, float]:
        """`scenario/class` of what the release before could name in the parts that change, and which share of each is
        known to be named otherwise rightly by the new one."""
        ...


def tell(rollout: Rollout, able: list[str], world: World) -> Told | None:
    """Tell as many as the wave still needs and the pace allows.

    One that failed is not replaced by another while half of the wave is healthy: a bad release would find its victims
    so. Below that one more is tried at a time.
    """
    if rollout.filled_ns is not None:
        return None
    counts, told = rollout.counts(), len(rollout.members)
    target = rollout.plan.waves[rollout.wave].target(world.size(rollout.plan.offline_age_max_s))
    need = target - (told - counts[Outcome.REFUSED] - counts[Outcome.UNPROVEN])
    if need <= 0 and not counts[Outcome.UNDER_WAY] and counts[Outcome.HEALTHY] < _healthy_min(target):
        need = 1
    known = rollout.known()
    room = in_flight_max(rollout.plan, rollout.wave, known) - (told - known)
    chosen = able[: max(0, min(need, room))]
    if not chosen:
        return None
    baselines = {name: _baseline(world.fleet[name]) for name in chosen}
    return Told(rollout_id=rollout.rollout_id, at_ns=world.now_ns, gateways=baselines)


def _healthy_min(target: int) -> int:
    """Healthy gateways without which a wave says nothing."""
    return -(-target // 2)


def _baseline(report: Report) -> Baseline | None:
    """What the running release has done there so far."""
    running = next((h for h in report.health if h.release_id == report.release_id), None)
    if running is None or not math.isfinite(running.score_sum):
        return None
    return Baseline(
        frames=running.frames,
        flagged=running.flagged,
        score_sum=running.score_sum,
        latency_ms=running.latency_ms,
        unseen=running.unseen,
    )


def _health(rollout: Rollout, report: Report, world: World) -> ReleaseHealth | None:
    return next((h for h in report.health if world.carries(h.release_id, rollout)), None)


def settle(rollout: Rollout, world: World) -> Settled | None:
    """What has come of those that were told. A gateway that was healthy can still fail, one that was silent recover."""
    found: dict[Outcome, dict[str, str]] = {outcome: {} for outcome in Outcome}
    for name, member in rollout.members.items():
        if member.outcome in (Outcome.FAILED, Outcome.REFUSED):
            continue
        report = world.fleet.get(name)
        health = _health(rollout, report, world) if report else None
        what = _outcome(rollout, member, report, health, world)
        if what is not None and what[0] is not member.outcome:
            found[what[0]][name] = what[1]
    if not any(found.values()):
        return None
    return Settled(
        rollout_id=rollout.rollout_id,
        at_ns=world.now_ns,
        healthy=tuple(found[Outcome.HEALTHY]),
        failed=found[Outcome.FAILED],
        refused=found[Outcome.REFUSED],
        silent=tuple(found[Outcome.SILENT]),
        unproven=tuple(found[Outcome.UNPROVEN]),
    )


def _outcome(
    rollout: Rollout, member: Member, report: Report | None, health: ReleaseHealth | None, world: World
) -> tuple[Outcome, str] | None:
    plan, active = rollout.plan, False
    if report is not None and health is not None:
        harm = _harm(health, plan)
        if harm:
            return harm
        active = health.release_id == report.release_id and health.phase == COMMITTED
        if active and health.frames >= plan.healthy_frames:
            return Outcome.HEALTHY, ""
    if (
        member.outcome is Outcome.UNDER_WAY
        and world.now_ns - max(member.told_ns, world.since_ns) > plan.deadline_s * 1e9
    ):
        seen = active and report is not None and report.online
        return (Outcome.UNPROVEN if seen else Outcome.SILENT), ""
    return None


def _harm(health: ReleaseHealth, plan: Plan) -> tuple[Outcome, str] | None:
    """What a gateway reports that ends the matter for it."""
    if health.phase == ROLLED_BACK:
        outcome = Outcome.FAILED if health.frames else Outcome.REFUSED
        return outcome, health.reason or "rolled back by the gateway"
    if not (math.isfinite(health.score_sum) and math.isfinite(health.score_squares)):
        return Outcome.FAILED, "its probabilities are no numbers"
    if health.errors > plan.limits.errors_max * max(health.frames, ERRORS_FRAMES_MIN):
        return Outcome.FAILED, f"{health.errors} errors in {health.frames} looks"
    if health.restarts > plan.limits.restarts_max:
        return Outcome.FAILED, f"the agent started {health.restarts} times"
    return None


def verdicts_of(rollout: Rollout, world: World) -> tuple[Verdict, ...]:
    counts = rollout.counts()
    tally = Tally(
        told=len(rollout.members) - counts[Outcome.UNPROVEN],
        failed=counts[Outcome.FAILED],
        silent=counts[Outcome.SILENT],
        refused=counts[Outcome.REFUSED],
        usual_loss=_usual_loss(rollout, world),
    )
    observed = []
    for name in list(rollout.members)[-OBSERVED_MAX:]:
        report, member = world.fleet.get(name), rollout.members[name]
        health = _health(rollout, report, world) if report else None
        if report is None or health is None or not math.isfinite(health.score_sum):
            continue
        observed.append(
            Observation(
                frames=health.frames,
                flagged=health.flagged,
                score_sum=health.score_sum,
                score_squares=health.score_squares,
                latency_ms=health.latency_ms,
                unseen=health.unseen,
                compared=health.compared,
                disagreed=health.disagreed,
                explained=world.explained(rollout, report.site_id),
                before=member.before,
            )
        )
    return judge_all(tally, observed, world.labels(rollout), rollout.plan.limits, _classes(rollout, world))


def _classes(rollout: Rollout, world: World) -> ClassTally:
    """Of gateways that are done with trying it: what they compared is final, so each is one observation."""
    found = []
    for name in list(rollout.members)[:OBSERVED_MAX]:
        report = world.fleet.get(name)
        health = _health(rollout, report, world) if report else None
        if health is not None and health.phase in (COMMITTED, ROLLED_BACK) and health.moved:
            found.append((health.compared, health.moved))
    return ClassTally(known=world.classes(rollout), gateways=tuple(found))


def _usual_loss(rollout: Rollout, world: World) -> float:
    """Share of the gateways outside that were heard of when the wave began and are silent now."""
    outside, lost, begin_ns = 0, 0, max(rollout.opened_ns, world.since_ns)
    for report in world.fleet.values():
        if report.gateway_id not in rollout.members and report.seen_ns >= begin_ns:
            outside += 1
            lost += not report.online
    return min(lost / outside, LOSS_MAX) if outside >= CONTROLS_MIN else 0.0


def abort(rollout: Rollout, verdicts: tuple[Verdict, ...], world: World) -> Aborted | None:
    stopped = closed(verdicts)
    if not stopped:
        return None
    why = "; ".join(
        f"gate {v.gate}{f' ({v.about})' if v.about else ''}: {v.figure:.3f}, limit {v.limit:.3f}, over {v.count}"
        for v in stopped
    )
    return Aborted(rollout_id=rollout.rollout_id, at_ns=world.now_ns, actor="gate", why=why, verdicts=verdicts)


def exhausted(
    rollout: Rollout, able: list[str], later: int, verdicts: tuple[Verdict, ...], world: World
) -> Aborted | None:
    """Nobody is left to ask, and more have failed than are healthy: a fleet too small for statistics."""
    counts = rollout.counts()
    bad = counts[Outcome.FAILED] + counts[Outcome.SILENT] + counts[Outcome.REFUSED]
    if able or later or counts[Outcome.UNDER_WAY] or bad <= counts[Outcome.HEALTHY]:
        return None
    why = f"{bad} of {len(rollout.members)} gateways failed, and no other is there to try"
    return Aborted(rollout_id=rollout.rollout_id, at_ns=world.now_ns, actor="gate", why=why, verdicts=verdicts)


def fill(rollout: Rollout, able: list[str], later: int, world: World) -> Filled | None:
    """A wave is full when it is known what came of all its gateways, or of all that can be asked."""
    counts = rollout.counts()
    if rollout.filled_ns is not None or counts[Outcome.UNDER_WAY] or not counts[Outcome.HEALTHY]:
        return None
    target = rollout.plan.waves[rollout.wave].target(world.size(rollout.plan.offline_age_max_s))
    asked = len(rollout.members) - counts[Outcome.REFUSED] - counts[Outcome.UNPROVEN] >= target
    enough = asked and counts[Outcome.HEALTHY] >= _healthy_min(target)
    if not enough and (able or later):
        return None
    return Filled(rollout_id=rollout.rollout_id, at_ns=world.now_ns, wave=rollout.wave)


def advance(rollout: Rollout, verdicts: tuple[Verdict, ...], world: World) -> Opened | Completed | None:
    """A full wave that was watched long enough opens the next one; the last one ends the rollout."""
    if rollout.filled_ns is None or world.now_ns - rollout.filled_ns < rollout.plan.soak_s * 1e9:
        return None
    at_ns, name = world.now_ns, rollout.rollout_id
    if not rollout.is_last_wave:
        return Opened(rollout_id=name, at_ns=at_ns, wave=rollout.wave + 1, verdicts=verdicts)
    release = world.merged(rollout, forward=True)
    return Completed(rollout_id=name, at_ns=at_ns, release_id=release, verdicts=verdicts)
