"""A second release looks at some of the frames that the running one has looked at, beside it and never in its way.

One thread at low priority, one frame at a time, at most a stated share of a core: while it is busy or rests, frames
pass by uncompared. It answers to nobody but the counts, so a model that fails, or hangs, here harms nothing.
"""

import contextlib
import logging
import os
import threading
import time
from dataclasses import dataclass
from typing import Final

from common.messages import Prediction
from edge.frames import Frame, Zone
from edge.perception import Model
from edge.tally import Pair, Tally, asks_attention, is_finite

log = logging.getLogger(__name__)

NICENESS: Final = 10
"""The running release comes first, even on one core."""
ERRORS_MAX: Final = 3
"""After so many it looks no more: its release is refused anyway."""


@dataclass(frozen=True, slots=True)
class _Offer:
    frame: Frame
    zone: Zone | None
    said: tuple[Prediction, ...]
    flagged: bool


class Shadow:
    """Looks with `model` at what is offered.

    Args:
        share: of one core's time, 0..1, that it may use.
    """

    def __init__(self, model: Model, share: float) -> None:
        self.model, self._share = model, share
        self.tally, self.pair = Tally(), Pair()
        self._offer: _Offer | None = None
        self._changed = threading.Condition()
        self._stopping = False
        self._began_s = 0.0
        """Of the look under way; 0 between two."""
        self._thread = threading.Thread(target=self._run, name="shadow", daemon=True)
        self._thread.start()

    @property
    def stuck_s(self) -> float:
        """For how long the look under way has taken."""
        began_s = self._began_s
        return time.perf_counter() - began_s if began_s else 0.0

    def offer(self, frame: Frame, zone: Zone | None, said: tuple[Prediction, ...], *, flagged: bool) -> None:
        """A frame, and what the running release said of it. Never blocks; the look loop is done with the frame."""
        with self._changed:
            if self._offer is None and not self._stopping:
                self._offer = _Offer(frame, zone, said, flagged)
                self._changed.notify()

    def stop(self) -> None:
        """Look no more. Does not wait: a look that hangs ends with the process."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _run(self) -> None:
        with contextlib.suppress(OSError, AttributeError):  # not on every system
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._offer is not None or self._stopping)
                if self._stopping or self._offer is None:
                    return
                offer = self._offer
            self._began_s = began_s = time.perf_counter()
            self._compare(offer)
            self._began_s = 0.0
            rest_s = (time.perf_counter() - began_s) * (1 / self._share - 1)
            with self._changed:
                if self.tally.errors >= ERRORS_MAX or self._changed.wait_for(lambda: self._stopping, rest_s):
                    return
                self._offer = None

    def _compare(self, offer: _Offer) -> None:
        model, frame = self.model, offer.frame
        try:
            began_s = time.perf_counter()
            view = model.look(
                frame.view(model.backbone.input_px, offer.zone), lambda side_px: frame.fit(side_px, offer.zone)
            )
            took_ms = 1e3 * (time.perf_counter() - began_s)
        except Exception:  # of the model; what is beside must not reach what runs
            log.exception("release %s failed in shadow", model.release_id)
            self.tally.errors += 1
            return
        if not is_finite(view.embedding, view.predictions):
            self.tally.errors += 1
            return
        flagged = asks_attention(model.manifest, view.predictions, view.sightings)
        self.tally.count(view.predictions, flagged=flagged, took_ms=took_ms)
        self.pair.count(offer.said, view.predictions, flagged_running=offer.flagged, flagged_beside=flagged)
