"""Who looks: the release that runs, one that looks beside it, and the change from one to the other between two frames.

Each look is tried and counted here. A release on trial that raises or answers with numbers that are none is left at
once, and the one beside it looks at the very frame; a look that hangs is left to its thread, and another thread goes on
with the frame (`Casting.abandon`). What a look means, and which frame is next, is the look loop's.
"""

import logging
import threading
import time
from dataclasses import dataclass
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.clock import Clock
from edge.frames import Frame, Zone
from edge.perception import Model, View
from edge.shadow import Shadow
from edge.tally import Observation, Pair, Tally, asks_attention, is_finite

log = logging.getLogger(__name__)

ERRORS_MAX: Final = 20
"""After so many looks in a row that raised, the exception ends the loop and its process: a start anew may help."""
RELEASES_MAX: Final = 8
"""Releases whose looks are counted apart; the oldest are forgotten."""


@dataclass(frozen=True, slots=True)
class Cast:
    """Who looks."""

    runs: Model | None
    beside: Model | None = None
    """Looks at some of the frames too."""
    on_trial: bool = False
    """`beside` takes over when `runs` fails."""


@dataclass(frozen=True, slots=True)
class Look:
    """A look that gave an answer."""

    model: Model
    """Who gave it."""
    picture: NDArray[np.uint8]
    """What it was given."""
    view: View


class AbandonedError(Exception):
    """The look of this thread hung, and another thread has taken over."""


class Casting:
    """The cast of one look loop. The loop's thread takes and looks; any other orders and observes.

    Args:
        changed: guards it, and is told when there is a new order.
        shadow_share: of a core, for the release beside.
    """

    def __init__(self, changed: threading.Condition, clock: Clock, shadow_share: float) -> None:
        self._changed, self._clock, self._share = changed, clock, shadow_share
        self._next: Cast | None = None
        self._cast = Cast(None)
        self._shadow: Shadow | None = None
        self._tallies: dict[str, Tally] = {}
        self._failed = ""
        """Why this loop went back to the release beside, since the last order."""
        self._errors = 0
        """Looks in a row that raised."""
        self._under_way: tuple[Frame, float] | None = None
        """The frame that is being looked at, and since when (monotonic)."""
        self._looker: threading.Thread | None = None
        """Whose looks count; None: anybody's."""

    @property
    def runs(self) -> Model | None:
        """What looks now; None on a box that never had a release."""
        return self._cast.runs

    @property
    def waits(self) -> bool:
        """An order has not been taken yet."""
        return self._next is not None

    def order(self, cast: Cast) -> None:
        """This cast, from the next frame on. Never blocks."""
        with self._changed:
            self._next = cast
            self._changed.notify_all()

    def abandon(self, looker: threading.Thread) -> Frame | None:
        """Leave a look that is under way to its thread: `looker` looks from now on, at this frame first; None when no
        look is under way (then nothing changes)."""
        with self._changed:
            if self._under_way is None:
                return None
            frame, _ = self._under_way
            self._under_way, self._looker = None, looker
            return frame

    def take(self) -> Model | None:
        """The model for the next frame: the swap happens here."""
        with self._changed:
            if self._next is not None:
                self._failed = ""
                self._turn_to(self._next)
                self._next = None
            return self._cast.runs

    def stop(self) -> None:
        """Nobody looks beside any more."""
        with self._changed:
            if self._shadow:
                self._shadow.stop()

    def look(self, model: Model, frame: Frame, zone: Zone | None, *, with_patches: bool) -> Look | None:
        """A frame, by the model that was taken or by the one that takes over from it; None when it gave no answer.

        Raises:
            AbandonedError: another thread has taken over.
            Exception: of the model, after too many in a row.
        """
        found = self._try(model, frame, zone, with_patches=with_patches)
        other = self._cast.runs
        if found is None and other is not None and other is not model:
            found = self._try(other, frame, zone, with_patches=with_patches)
        return found

    def miss(self, model: Model, looks: float) -> None:
        """So many looks were due since the last one, and did not happen."""
        self._tally(model).unseen += looks

    def offer(self, look: Look, frame: Frame, zone: Zone | None) -> None:
        """To the release beside, when the look loop is done with the frame."""
        shadow = self._shadow
        if shadow:
            view = look.view
            flagged = asks_attention(look.model.manifest, view.predictions, view.sightings)
            shadow.offer(frame, zone, view.predictions, flagged=flagged)

    def observe(self) -> Observation:
        """What has been counted of the releases that look or looked here."""
        with self._changed:
            shadow, cast, under_way = self._shadow, self._next or self._cast, self._under_way
            tallies = {name: msgspec.structs.replace(tally) for name, tally in self._tallies.items()}
            running = self._cast.runs
            failed = "" if self._next else self._failed
        pair, beside_stuck_s = Pair(), 0.0
        if shadow and shadow.model is cast.beside:
            pair, beside_stuck_s = shadow.pair.copy(), shadow.stuck_s
            tallies.setdefault(shadow.model.release_id, msgspec.structs.replace(shadow.tally))
        return Observation(
            running=running.release_id if running else "",
            tallies=tallies,
            pair=pair,
            stuck_s=self._clock.monotonic_s() - under_way[1] if under_way else 0.0,
            beside_stuck_s=beside_stuck_s,
            failed=failed,
        )

    def _turn_to(self, cast: Cast) -> None:
        """Another cast from now on; the lock is held."""
        self._cast, self._errors = cast, 0
        if self._shadow and self._shadow.model is not cast.beside:
            self._shadow.stop()
            self._shadow = None
        if cast.beside and self._shadow is None:
            self._shadow = Shadow(cast.beside, self._share)

    def _try(self, model: Model, frame: Frame, zone: Zone | None, *, with_patches: bool) -> Look | None:
        """One look, counted."""
        tally = self._tally(model)
        self._under_way = frame, self._clock.monotonic_s()
        began_s = time.perf_counter()
        try:
            picture = frame.view(model.backbone.input_px, zone)
            view = model.look(picture, lambda side_px: frame.fit(side_px, zone), with_patches=with_patches)
        except Exception as error:  # ONNX Runtime's errors share no public base but Exception
            self._end_look()
            log.exception("a look of release %s failed", model.release_id)
            self._fault(tally, f"a look failed: {error}")
            if self._errors >= ERRORS_MAX:
                raise
            return None
        took_ms = 1e3 * (time.perf_counter() - began_s)
        self._end_look()
        if not is_finite(view.embedding, view.predictions):
            self._fault(tally, "it answers with numbers that are none")
            # where nobody takes over, the selection refuses it, and says so
            return None if self._cast.runs is not model else Look(model, picture, view)
        self._errors = 0
        flagged = asks_attention(model.manifest, view.predictions, view.sightings)
        tally.count(view.predictions, flagged=flagged, took_ms=took_ms)
        return Look(model, picture, view)

    def _end_look(self) -> None:
        with self._changed:
            if self._looker is not None and threading.current_thread() is not self._looker:
                raise AbandonedError
            self._under_way = None

    def _tally(self, model: Model) -> Tally:
        with self._changed:
            tally = self._tallies.get(model.release_id)
            if tally is None:
                tally = self._tallies[model.release_id] = Tally()
                while len(self._tallies) > RELEASES_MAX:
                    del self._tallies[next(iter(self._tallies))]
            return tally

    def _fault(self, tally: Tally, why: str) -> None:
        """A look gave no answer: on trial, the release beside takes over with this frame."""
        with self._changed:
            tally.errors += 1
            self._errors += 1
            if self._cast.on_trial and self._cast.beside:
                log.error("the release on trial is left: %s", why)
                self._failed = why
                self._turn_to(Cast(self._cast.beside))
