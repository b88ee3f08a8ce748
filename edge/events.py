"""From looks to events: something begins, goes on, is over. Pure: instants come as arguments.

One `EventTrack` per camera and scenario. What the model says of a look is smoothed over time; an event opens when the
smoothed level has been high for long enough, and closes when it has been low for long enough (hysteresis), so that an
alarm is an event and not a flicker:

              level ≥ enter_level for enter_s, and cooled down
    ┌───────┐ ────────────────────────────────────────────────► ┌──────┐ ──┐ persist, every persist_s
    │ clear │                                                    │ open │   │
    └───────┘ ◄──────────────────────────────────────────────── └──────┘ ◄─┘
              level < clear_level for clear_s, or nobody looks any more

One look alone never opens an event, however sure the model is: the smoothed level moves at most half way at once.
"""

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

SWAY_MAX: Final = 0.5
"""Share of the way to a look's level that the smoothed one goes at once, however long ago the last look was."""
INSIST_LOOKS: Final = 8
"""Looks in a row that a track may ask for, beyond what the picture's changes ask for, to decide whether to open."""
INSIST_TO_CLEAR_LOOKS: Final = 2
"""... and whether to close: that is not urgent, and the camera's floor brings the next look. With many, a quiet camera
cost a fifth more."""


class Phase(StrEnum):
    """What an event does."""

    ENTER = "enter"
    PERSIST = "persist"
    CLEAR = "clear"


@dataclass(frozen=True, slots=True)
class EventRule:
    """See `edge.settings.EventSettings`."""

    enter_level: float
    clear_level: float
    smooth_s: float
    enter_s: float
    clear_s: float
    persist_s: float
    cooldown_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """An event entered, persists, or is clear."""

    phase: Phase
    began_at_ns: int
    """Of the first look that led to it: the event's identity, with its camera and scenario."""
    at_ns: int
    peak: float
    """The highest level of a look so far."""
    label: str
    """What the look of the peak showed."""
    cause: str = ""
    """Why it was closed, when not because it is over."""


class EventTrack:
    """The events of one scenario on one camera."""

    def __init__(self, rule: EventRule) -> None:
        self._rule = rule
        self._level = 0.0
        self._last_ns: int | None = None
        self._began_ns: int | None = None
        """First look of the event that is open or may open."""
        self._since_ns: int | None = None
        """The smoothed level has been on the other side of its line since."""
        self._told_ns = 0
        self._cleared_ns: int | None = None
        self._open = False
        self._peak, self._label = 0.0, ""
        self._insisted = 0
        self._undecided = False

    @property
    def is_open(self) -> bool:
        """Between enter and clear."""
        return self._open

    @property
    def insists(self) -> bool:
        """Another look is wanted soon, even if the picture does not change: the last one said something new."""
        most = INSIST_TO_CLEAR_LOOKS if self._open else INSIST_LOOKS
        return self._undecided and self._insisted <= most

    def look(self, at_ns: int, level: float, label: str = "") -> Turn | None:
        """Take a look's level (0..1) in; returns what it turns, most often nothing.

        Args:
            label: what was seen, for people.
        """
        self._follow(at_ns, level)
        if level > self._peak and (self._open or level >= self._rule.enter_level):
            self._peak, self._label = level, label
        turn = self._while_open(at_ns) if self._open else self._while_clear(at_ns, level)
        self._undecided = level < self._rule.clear_level if self._open else level >= self._rule.enter_level
        self._insisted = self._insisted + 1 if self._undecided and turn is None else 0
        return turn

    def lose(self, at_ns: int, cause: str) -> Turn | None:
        """Nobody looks any more (a camera failed, a release dropped the scenario): close what is open."""
        turn = self._close(at_ns, cause) if self._open else None
        self._began_ns = self._since_ns = self._last_ns = None
        self._level, self._peak, self._label = 0.0, 0.0, ""
        self._undecided, self._insisted = False, 0
        return turn

    def _follow(self, at_ns: int, level: float) -> None:
        """Smooth; when time goes back (a clock is set, a file begins again) all spans move with it."""
        if self._last_ns is not None and at_ns < self._last_ns:
            shift = at_ns - self._last_ns
            self._told_ns += shift
            self._since_ns = None if self._since_ns is None else self._since_ns + shift
            self._cleared_ns = None if self._cleared_ns is None else self._cleared_ns + shift
            self._last_ns = at_ns
        elapsed_s = (at_ns - self._last_ns) / 1e9 if self._last_ns is not None else math.inf
        sway = min(SWAY_MAX, 1 - math.exp(-elapsed_s / self._rule.smooth_s))
        self._level += sway * (level - self._level)
        self._last_ns = at_ns

    def _while_clear(self, at_ns: int, level: float) -> Turn | None:
        rule = self._rule
        if level >= rule.enter_level and self._began_ns is None:
            self._began_ns = at_ns
        if self._level < rule.enter_level:
            self._since_ns = None
            if level < rule.enter_level and self._level < rule.clear_level:
                self._began_ns, self._peak, self._label = None, 0.0, ""
            return None
        if self._since_ns is None:
            self._since_ns = at_ns
            return None
        cooling = self._cleared_ns is not None and at_ns - self._cleared_ns < rule.cooldown_s * 1e9
        if at_ns - self._since_ns < rule.enter_s * 1e9 or cooling:
            return None
        if self._began_ns is None:
            self._began_ns = at_ns
        self._open, self._since_ns, self._told_ns = True, None, at_ns
        return self._turn(Phase.ENTER, at_ns)

    def _while_open(self, at_ns: int) -> Turn | None:
        rule = self._rule
        if self._level >= rule.clear_level:
            self._since_ns = None
        elif self._since_ns is None:
            self._since_ns = at_ns
        elif at_ns - self._since_ns >= rule.clear_s * 1e9:
            return self._close(at_ns, "")
        if at_ns - self._told_ns >= rule.persist_s * 1e9:
            self._told_ns = at_ns
            return self._turn(Phase.PERSIST, at_ns)
        return None

    def _close(self, at_ns: int, cause: str) -> Turn:
        turn = self._turn(Phase.CLEAR, at_ns, cause)
        self._open, self._cleared_ns = False, at_ns
        self._began_ns = self._since_ns = None
        self._peak, self._label = 0.0, ""
        return turn

    def _turn(self, phase: Phase, at_ns: int, cause: str = "") -> Turn:
        return Turn(
            phase, self._began_ns if self._began_ns is not None else at_ns, at_ns, self._peak, self._label, cause
        )
