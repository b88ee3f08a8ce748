"""Samples up: what fits in the window, the most valuable first, again until the centre's receipt.

The one place where the site's policy is enforced: with `share = "updates"` no sample leaves, and no event's picture.
Events go before samples and are not durable: what is open is in every reported state.
"""

import logging
import threading
from collections import deque

import msgspec

from common import chunks, codec, topics
from common.clock import Clock
from common.messages import Event, Receipt, Want
from common.mqtt import Link
from edge.offers import Offers
from edge.settings import UplinkSettings
from edge.spool import Queued, Spool

log = logging.getLogger(__name__)

IDLE_S = 0.5
SPENT_S = 30.0  # the day's bytes are spent: only midnight of our own day helps
BUSY_S = 0.02
DAY_S = 86_400.0
UNLIMITED = 2**63
EVENTS_WAITING_MAX = 64
"""Events held while the link is down; the oldest go first: what is news to nobody any more."""


class Uplink:
    """Sends from the spool over a link; `step` is one pass, `start` runs it in a thread."""

    def __init__(
        self,
        link: Link,
        spool: Spool,
        gateway_id: str,
        settings: UplinkSettings,
        clock: Clock,
        share: str,
        offers: Offers | None = None,
    ) -> None:
        self._offers = offers
        self._link, self._spool, self._gateway_id = link, spool, gateway_id
        self._settings, self._clock = settings, clock
        self._may_send = share in ("samples", "both")
        self._sent_at_s: dict[bytes, float] = {}
        """Samples sent and not yet receipted."""
        self._lock = threading.Lock()
        self._day_began_s = clock.monotonic_s()
        self._day_bytes = 0
        self.bytes_up = 0
        self._events: deque[Event] = deque(maxlen=EVENTS_WAITING_MAX)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End the thread; what is not receipted stays in the spool."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def step(self) -> float:
        """Send what the window, the day's bytes and the link allow; returns the seconds to wait before the next."""
        self._send_events()
        if not self._may_send:
            return IDLE_S
        now_s = self._clock.monotonic_s()
        if now_s - self._day_began_s >= DAY_S:
            self._day_began_s, self._day_bytes = now_s, 0
        if not self._link.connected:
            with self._lock:
                self._sent_at_s.clear()  # the broker may have forgotten what was under way
            return IDLE_S
        with self._lock:
            overdue = [n for n, at_s in self._sent_at_s.items() if now_s - at_s >= self._settings.resend_s]
            for name in overdue:
                del self._sent_at_s[name]
            waiting = set(self._sent_at_s)
        room = self._settings.window - len(waiting)
        for queued in self._ready(room, waiting):
            limit = self._settings.bytes_per_day
            if limit and self._day_bytes + len(queued.payload) > limit:
                return SPENT_S
            if not self._publish(queued.payload):
                return BUSY_S
            self._day_bytes += len(queued.payload)
            self.bytes_up += len(queued.payload)
            with self._lock:
                self._sent_at_s[queued.sample_id] = now_s
        return IDLE_S

    def _ready(self, room: int, waiting: set[bytes]) -> list[Queued]:
        """What to send next; of a site that offers first, what was asked for."""
        if self._offers is None:
            return self._spool.pending(room, exclude=waiting) if room > 0 else []
        limit = self._settings.bytes_per_day
        sent = self._offers.step(self._link, self._gateway_id, limit - self._day_bytes if limit else UNLIMITED)
        self._day_bytes += sent
        self.bytes_up += sent
        return self._offers.ready(room, waiting) if room > 0 else []

    def on_want(self, want: Want) -> None:
        """The centre has answered offers."""
        if self._offers:
            self._offers.on_want(want)
            self._wake.set()

    def tell(self, event: Event) -> None:
        """Send an event soon. Never blocks."""
        self._events.append(event if self._may_send else msgspec.structs.replace(event, jpeg=b""))
        self._wake.set()

    def _send_events(self) -> None:
        while self._events and self._link.connected:
            event = self._events.popleft()
            payload = codec.encode(event)
            if not self._link.publish(topics.up(self._gateway_id, "event"), payload):
                if len(self._events) < EVENTS_WAITING_MAX:
                    self._events.appendleft(event)
                return
            self.bytes_up += len(payload)

    def on_receipt(self, receipt: Receipt) -> None:
        """The centre has committed (or will never take) these: let the spool forget them."""
        self._spool.forget(receipt)
        names = [*receipt.stored, *(refusal.sample_id for refusal in receipt.refused)]
        if self._offers:
            self._offers.forget(names)
        with self._lock:
            for name in names:
                self._sent_at_s.pop(name, None)
        self._wake.set()

    def _publish(self, payload: bytes) -> bool:
        if len(payload) <= chunks.CHUNK_BYTES:
            return self._link.publish(topics.up(self._gateway_id, "sample"), payload)
        topic = topics.up(self._gateway_id, "chunk")
        return all(self._link.publish(topic, codec.encode(chunk)) for chunk in chunks.split(payload))

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_s = self.step()
            self._wake.wait(wait_s)
            self._wake.clear()
