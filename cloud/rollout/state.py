"""What a rollout is: the sum of its lines of the ledger. Pure.

Holds the states of a rollout and of its gateways, and which line is allowed when; leaves to `cloud.rollout.rules` and
`cloud.rollout.engine` which line is to be written.
"""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from cloud.rollout.entries import (
    Aborted,
    Begun,
    Completed,
    Entry,
    Filled,
    Opened,
    Paused,
    Resumed,
    RolledBack,
    Settled,
    Started,
    Superseded,
    Told,
)
from cloud.rollout.gates import Baseline, Verdict
from cloud.rollout.plan import Plan
from common.errors import OperatorError

EVERYTHING: Final = "*"
"""The part that stands for all parts: another backbone carries every head away."""


class Phase(StrEnum):
    """Of a rollout."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    COMPLETED = "completed"
    ABORTED = "aborted"
    SUPERSEDED = "superseded"
    ROLLED_BACK = "rolled-back"


class Outcome(StrEnum):
    """Of a gateway in a rollout."""

    UNDER_WAY = "under way"
    HEALTHY = "healthy"
    FAILED = "failed"
    """It ran there and hurt."""
    REFUSED = "refused"
    """It never ran there: the gateway kept what it had."""
    SILENT = "silent"
    """Nothing was heard of it in time."""
    UNPROVEN = "unproven"
    """It runs there and reports, but its cameras have shown too little to judge by: a dark shift, a belt at rest."""


UNDER_CHANGE: Final = (Phase.RUNNING, Phase.PAUSED)


@dataclass(slots=True)
class Member:
    """A gateway in a rollout."""

    told_ns: int
    before: Baseline | None
    outcome: Outcome = Outcome.UNDER_WAY
    reason: str = ""
    attempts: int = 1


@dataclass(slots=True)
class Rollout:
    """One of them, as its lines say."""

    started: Started
    phase: Phase = Phase.WAITING
    before: str = ""
    """What the fleet ran when it began."""
    release_id: str = ""
    """What became active by it."""
    wave: int = 0
    opened_ns: int = 0
    filled_ns: int | None = None
    ended_ns: int | None = None
    why: str = ""
    """Of the last pause or of its end."""
    members: dict[str, Member] = field(default_factory=dict)
    verdicts: tuple[Verdict, ...] = ()
    """Of the last wave that was passed, or of its end."""
    closed: bool = False
    """Nobody is held back by it any more."""

    @property
    def rollout_id(self) -> str:
        return self.started.rollout_id

    @property
    def plan(self) -> Plan:
        return self.started.plan

    @property
    def is_last_wave(self) -> bool:
        return self.wave + 1 >= len(self.plan.waves)

    def counts(self) -> Counter[Outcome]:
        """Gateways by outcome."""
        return Counter(member.outcome for member in self.members.values())

    def known(self) -> int:
        """Of how many, in the order in which they were told, it is known what came of them.

        Counted to the first that is still under way: a bad release is found out by its silent victims last.
        """
        for number, member in enumerate(self.members.values()):
            if member.outcome is Outcome.UNDER_WAY:
                return number
        return len(self.members)

    def overlaps(self, parts: Iterable[str]) -> bool:
        """Whether both change something in common."""
        mine, others = set(self.started.parts), set(parts)
        return EVERYTHING in mine | others or bool(mine & others)

    def check(self, entry: Entry) -> None:
        """Raises:
        OperatorError: the line is not allowed in this phase.
        """
        allowed = _ALLOWED.get(type(entry), ())
        if self.phase not in allowed:
            raise OperatorError(
                f"rollout {self.rollout_id} is {self.phase.value}",
                f"That can be done while it is {' or '.join(phase.value for phase in allowed)}.",
            )

    def apply(self, entry: Entry) -> None:
        """Take the next line.

        Raises:
            OperatorError: it is not allowed in this phase; nothing has changed.
        """
        self.check(entry)
        match entry:
            case Begun():
                self.phase, self.before, self.opened_ns = Phase.RUNNING, entry.before, entry.at_ns
            case Told():
                self._tell(entry)
            case Settled():
                self._settle(entry)
            case Filled():
                self.filled_ns = entry.at_ns
            case Opened():
                self.wave, self.opened_ns, self.filled_ns = entry.wave, entry.at_ns, None
                self.verdicts = entry.verdicts
            case Paused():
                self.phase, self.why = Phase.PAUSED, entry.why
            case Resumed():
                self.phase, self.why = Phase.RUNNING, entry.why
                self.filled_ns = entry.at_ns if self.filled_ns is not None else None  # watched from now on
            case Superseded():
                self.end(Phase.SUPERSEDED, entry)
            case Aborted():
                self.end(Phase.ABORTED, entry)
                self.verdicts = entry.verdicts
            case Completed():
                self.end(Phase.COMPLETED, entry)
                self.release_id, self.verdicts = entry.release_id, entry.verdicts
            case RolledBack():
                self.end(Phase.ROLLED_BACK, entry)
                self.release_id = entry.release_id

    def end(self, phase: Phase, entry: Entry) -> None:
        """It is over, in this phase."""
        self.phase, self.why, self.ended_ns = phase, entry.why, entry.at_ns

    def _tell(self, entry: Told) -> None:
        for name, before in entry.gateways.items():
            earlier = self.members.pop(name, None)  # told again: last in order
            member = Member(entry.at_ns, before)
            if earlier is not None:
                member.before, member.attempts = earlier.before, earlier.attempts + 1
            self.members[name] = member

    def _settle(self, entry: Settled) -> None:
        outcomes = {
            Outcome.HEALTHY: dict.fromkeys(entry.healthy, ""),
            Outcome.SILENT: dict.fromkeys(entry.silent, "silent at the deadline"),
            Outcome.UNPROVEN: dict.fromkeys(entry.unproven, "too few frames by the deadline"),
            Outcome.FAILED: entry.failed,
            Outcome.REFUSED: entry.refused,
        }
        for outcome, reasons in outcomes.items():
            for name, reason in reasons.items():
                self.members[name].outcome, self.members[name].reason = outcome, reason


_ALLOWED: Final[dict[type, tuple[Phase, ...]]] = {
    Begun: (Phase.WAITING,),
    Superseded: (Phase.WAITING,),
    Told: (Phase.RUNNING,),
    Settled: (Phase.RUNNING, Phase.PAUSED, Phase.COMPLETED),
    Filled: (Phase.RUNNING,),
    Opened: (Phase.RUNNING,),
    Paused: (Phase.RUNNING,),
    Resumed: (Phase.PAUSED,),
    Aborted: (Phase.WAITING, Phase.RUNNING, Phase.PAUSED),
    Completed: (Phase.RUNNING,),
    RolledBack: (Phase.COMPLETED,),
}
