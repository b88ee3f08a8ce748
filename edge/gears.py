"""How much work a camera's stream is worth now: Idle, Watch or Alert. Pure: instants come as arguments.

*Idle*: nothing moves. Key frames are decoded, a look now and then (the floor). *Watch*: something moves, or did a
moment ago: every frame is decoded, `looks_per_s` of them are looked at. *Alert*: the model saw something striking
(unusually unsure or novel): looks are dense.

    ┌──────┐ motion        ┌───────┐ striking look ┌───────┐
    │ Idle │ ────────────► │ Watch │ ────────────► │ Alert │
    └──────┘ ◄──────────── └───────┘ ◄──────────── └───────┘
       ▲     calm for calm_s      nothing striking for alert_s
       └── a striking look leads from Idle to Alert at once; an event that begins ends Alert

Escalation is immediate, relaxation waits: a scene that flickers between still and moving must not lose frames to it.
"""

from dataclasses import dataclass
from enum import Enum

from edge.settings import GearSettings


class Gear(Enum):
    """In order of effort."""

    IDLE = "idle"
    WATCH = "watch"
    ALERT = "alert"


@dataclass(frozen=True, slots=True)
class Pace:
    """Looks per second of video that a camera is due; Idle looks by the floor alone."""

    watch: float
    steady: float
    """In Watch when the scene has not rested for a while: motion is no news there."""
    alert: float

    def of(self, gear: Gear, *, steady: bool) -> float:
        """Looks per second in a gear other than Idle."""
        if gear is Gear.ALERT:
            return self.alert
        return self.steady if steady else self.watch


class Gears:
    """The gear of one camera. Begins in Watch: nothing is known of the scene yet."""

    def __init__(self, settings: GearSettings) -> None:
        self._calm_ns = round(settings.calm_s * 1e9)
        self._alert_ns = round(settings.alert_s * 1e9)
        self.gear = Gear.WATCH
        self._moved_ns: int | None = None
        self._struck_ns = 0
        self._steady_ns = round(settings.steady_after_s * 1e9)
        self._woke_ns: int | None = None

    def is_steady(self, at_ns: int) -> bool:
        """The scene has moved for longer than `steady_after_s` without rest."""
        return self._woke_ns is not None and at_ns - self._woke_ns >= self._steady_ns

    def on_motion(self, at_ns: int, *, moved: bool) -> Gear:
        """A frame was compared with the scene's background; returns the gear from now on."""
        self._forget_after(at_ns)
        if moved:
            self._moved_ns = at_ns
            if self.gear is Gear.IDLE:
                self.gear = Gear.WATCH
        return self._relax(at_ns)

    def on_look(self, at_ns: int, *, striking: bool, told: bool = False) -> Gear:
        """The model has looked at a frame; returns the gear from now on.

        Args:
            told: an event has begun with this look: what the camera was alert for is known.
        """
        self._forget_after(at_ns)
        if told and self.gear is Gear.ALERT:
            self.gear, self._moved_ns = Gear.WATCH, at_ns
        if striking:
            self._struck_ns, self.gear = at_ns, Gear.ALERT
        return self._relax(at_ns)

    def _forget_after(self, at_ns: int) -> None:
        """Time that jumps back (a loop, a reconnect): spans begin anew, rather than last until it has caught up."""
        self._moved_ns = at_ns if self._moved_ns is None else min(self._moved_ns, at_ns)
        self._woke_ns = at_ns if self._woke_ns is None or self.gear is Gear.IDLE else min(self._woke_ns, at_ns)
        self._struck_ns = min(self._struck_ns, at_ns)

    def _relax(self, at_ns: int) -> Gear:
        if self.gear is Gear.ALERT and at_ns - self._struck_ns >= self._alert_ns:
            self.gear, self._moved_ns = Gear.WATCH, at_ns  # the calm begins where the alert ends
        if self.gear is Gear.WATCH and self._moved_ns is not None and at_ns - self._moved_ns >= self._calm_ns:
            self.gear = Gear.IDLE
        return self.gear
