"""The large stream of a camera whose small one is looked at: received, kept for seconds, decoded only on demand."""

import logging
import random
import threading
from collections.abc import Iterator

from common.clock import Clock
from common.errors import HeadframeError
from edge.decoding import Recipe
from edge.frames import PacketStill, find_still
from edge.ring import PacketRing
from edge.settings import CameraSettings
from edge.sources import Arrival, is_live, open_stream

log = logging.getLogger(__name__)

BACK_OFF_S = (1.0, 60.0)


class MainStream:
    """Packets of the main stream in a ring.

    A live one has a thread of its own. A file is read by whoever looks at the sub-stream, up to the same media time.
    """

    def __init__(self, settings: CameraSettings, ring: PacketRing, clock: Clock, stopping: threading.Event) -> None:
        self._settings, self._clock, self._stopping = settings, clock, stopping
        self.ring = ring
        self.recipe: Recipe | None = None
        """How the packets in the ring are decoded; None while the stream is not received."""
        self._arrivals: Iterator[Arrival] | None = None
        self._ahead: Arrival | None = None
        self._offset_ns = 0
        self.fault = ""
        """Why there are no pictures of the main stream now; empty when there are."""
        self._thread = threading.Thread(target=self._receive, name=f"main-{settings.id}", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether a live stream is still being received, or its connection being closed."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Begin to receive a live stream."""
        if is_live(self._settings.source) and not self._thread.is_alive():
            self._thread.start()

    def join(self, timeout_s: float) -> None:
        """Wait for the thread, after `stopping` was set."""
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def rewind(self, started_ns: int) -> None:
        """A file begins again with its sub-stream, whose first frame has the time `started_ns`."""
        if is_live(self._settings.source):
            return
        self.ring.clear()
        self._arrivals = open_stream(self._settings.source, self._settings, self._clock)
        self._ahead = next(self._arrivals, None)
        if self._ahead is not None:
            self._offset_ns = started_ns - self._ahead.captured_at_ns  # two files of one camera: two dates on the disk

    def advance(self, at_ns: int) -> None:
        """Receive a file up to an instant of the sub-stream."""
        while self._ahead is not None and self._arrivals is not None:
            if self._ahead.captured_at_ns + self._offset_ns > at_ns:
                return
            self._keep(self._ahead, self._offset_ns)
            self._ahead = next(self._arrivals, None)

    def still(self, at_ns: int, *, key_only: bool) -> PacketStill | None:
        """The main stream's picture of an instant; None when it is not received."""
        return find_still(self.ring, self.recipe, at_ns, key_only=key_only) if self.recipe else None

    def _keep(self, arrival: Arrival, offset_ns: int = 0) -> None:
        if self.recipe is None:
            self.recipe = Recipe(arrival.stream)
        if arrival.packet:
            self.ring.append(arrival.packet.moved(offset_ns) if offset_ns else arrival.packet)

    def _receive(self) -> None:
        delay_s = BACK_OFF_S[0]
        while not self._stopping.is_set():
            try:
                self.ring.clear()
                self.recipe = None
                for arrival in open_stream(self._settings.source, self._settings, self._clock):
                    self._keep(arrival)
                    delay_s, self.fault = BACK_OFF_S[0], ""
                    if self._stopping.is_set():
                        return
                self.fault = "the main stream has ended; it is opened again"
            except HeadframeError as error:
                self.fault = f"{error.message}. {error.hint}"
            except Exception as error:  # the camera loop: a fault of one camera must not reach the others
                log.exception("main stream of camera %s", self._settings.id)
                self.fault = str(error)
            self._stopping.wait(delay_s * random.uniform(0.5, 1.5))
            delay_s = min(delay_s * 2, BACK_OFF_S[1])
