"""Samples up: what fits in the window, the most valuable first, again until the centre's receipt.

The one place where the site's policy is enforced: with `share = "updates"` no sample leaves, and no event's picture.
Events go before samples and are not durable: what is open is in every reported state.
"""

import contextlib
import logging
import math
import random
import threading
from collections import deque
from dataclasses import dataclass

import msgspec

from common import chunks, codec, topics
from common.clock import Clock
from common.errors import EnvironmentFault
from common.messages import Event, Ledger, Receipt, Want
from common.mqtt import Link
from common.rate import Rate
from edge.offers import Offers
from edge.pacing import DayBytes, Pacer
from edge.settings import UplinkSettings
from edge.spool import Queued, Spool
from edge.transfer import Transfer

log = logging.getLogger(__name__)

IDLE_S = 0.5
SPENT_S = 30.0  # the day's bytes are spent: only the next day helps
BUSY_S = 0.02
UNLIMITED = 2**63
EXPIRE_S = 60.0
LEDGER_ENTRIES = 200
"""Of one message: about 10 KB."""
EVENTS_WAITING_MAX = 64
"""Events held while the link is down; the oldest go first: what is news to nobody any more."""
TRANSFERS_MAX = 64
"""Of large samples whose progress is remembered."""
PACKET_BYTES = 64
"""Of a packet beside its payload and topic, MQTT, TCP and IP: counted with the day's bytes."""


@dataclass
class _UnderWay:
    """A sample that was sent, in this connection or one before."""

    sendings: int
    again_at_s: float


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
        rng: random.Random | None = None,
    ) -> None:
        self._offers = offers
        self._link, self._spool, self._gateway_id = link, spool, gateway_id
        self._clock = clock
        self._may_send = share in ("samples", "both")
        self._pacer = Pacer(settings.window, settings.resend_s, rng or random.Random())
        self._rate = Rate(settings.bytes_per_s, clock.monotonic_s())
        self._day = DayBytes(settings.bytes_per_day, *spool.spent(), spool.spend)
        self._under_way: dict[bytes, _UnderWay] = {}
        """Samples sent and not yet receipted."""
        self._transfers: dict[bytes, Transfer] = {}
        """Of those, and of the one that is being sent, the ones in chunks."""
        self._lock = threading.Lock()
        self._was_connected = False
        self._ledger_again_at_s = 0.0
        self._ledger_sendings = 0
        self._expire_at_s = clock.monotonic_s() + EXPIRE_S
        self.bytes_up = 0
        self._events: deque[Event] = deque(maxlen=EVENTS_WAITING_MAX)
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="uplink", daemon=True)

    def start(self) -> None:
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread that sends runs."""
        return self._thread.is_alive()

    def stop(self, timeout_s: float) -> None:
        """End the thread; what is not receipted stays in the spool."""
        self._stopping.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def step(self) -> float:
        """Send what the window, the rate, the day's bytes and the link allow; returns the seconds to wait before the
        next.

        Raises:
            EnvironmentFault: the spool's disk fails; nothing more was sent.
        """
        self._send_events()
        now_s = self._clock.monotonic_s()
        if now_s >= self._expire_at_s:
            self._expire_at_s = now_s + EXPIRE_S
            self._spool.expire()
        if not self._may_send:
            return IDLE_S
        if not self._link.connected:
            self._was_connected = False
            return IDLE_S
        if not self._was_connected:
            self._was_connected = True
            self._begin_again()
        if self._send_ledger(now_s) is False:
            return BUSY_S
        waiting = self._await_receipts(now_s)
        room = self._pacer.room(now_s, len(waiting))
        for queued in self._ready(room, waiting):
            wait_s = self._send(queued, now_s)
            if wait_s is not None:
                return wait_s
            with self._lock:
                sendings = self._under_way[queued.sample_id].sendings + 1 if queued.sample_id in self._under_way else 1
                self._under_way[queued.sample_id] = _UnderWay(sendings, now_s + self._pacer.resend_after_s(sendings))
        return IDLE_S

    def _ready(self, room: int, waiting: set[bytes]) -> list[Queued]:
        """What to send next; of a site that offers first, what was asked for."""
        if self._offers is None:
            return self._spool.pending(room, exclude=waiting) if room > 0 else []
        left = self._day.left(self._spool.running_s)
        sent = self._offers.step(self._link, self._gateway_id, UNLIMITED if math.isinf(left) else int(left))
        self._day.spend(self._spool.running_s, sent)
        self.bytes_up += sent
        return self._offers.ready(room, waiting) if room > 0 else []

    def on_want(self, want: Want) -> None:
        """The centre has answered offers."""
        if self._offers:
            self._offers.on_want(want)
            self._wake.set()

    def _begin_again(self) -> None:
        """After a lost connection nobody knows what of that which was under way has arrived: all of it is due."""
        with self._lock:
            for under_way in self._under_way.values():
                under_way.again_at_s = float("-inf")
            for transfer in self._transfers.values():
                transfer.lost()

    def _await_receipts(self, now_s: float) -> set[bytes]:
        """Samples whose receipt may still come."""
        with self._lock:
            overdue = [x for x in self._under_way.values() if float("-inf") < x.again_at_s <= now_s]
            if overdue:
                self._pacer.on_silence(now_s)
            return {name for name, x in self._under_way.items() if x.again_at_s > now_s}

    def _send(self, queued: Queued, now_s: float) -> float | None:
        """One sample; the seconds to wait when it could not go, or not all of it."""
        if len(queued.payload) <= chunks.CHUNK_BYTES:
            return self._send_packet("sample", queued.payload, now_s)
        transfer = self._transfer(queued)
        if transfer.done:  # it was sent before, and no receipt came
            transfer.lost()
        if self._day.left(self._spool.running_s) < len(queued.payload) and transfer.untouched:
            return SPENT_S
        while (index := transfer.next(now_s)) is not None:
            part = chunks.part(queued.payload, index, transfer.transfer_id)
            wait_s = self._send_packet("chunk", codec.encode(part), now_s)
            if wait_s is not None:
                return wait_s
            transfer.sent(now_s)
        return None if transfer.done else BUSY_S

    def _transfer(self, queued: Queued) -> Transfer:
        with self._lock:
            found = self._transfers.get(queued.sample_id)
            if found is None:
                name, count = chunks.transfer_id(queued.payload), chunks.count_of(len(queued.payload))
                while len(self._transfers) >= TRANSFERS_MAX:
                    self._transfers.pop(next(iter(self._transfers)))
                found = self._transfers[queued.sample_id] = Transfer(name, count)
            return found

    def _send_packet(self, kind: str, payload: bytes, now_s: float) -> float | None:
        """One packet within rate and day; the seconds to wait when it may not go now."""
        if (wait_s := self._rate.wait_s(now_s)) > 0:
            return min(wait_s, IDLE_S)
        topic = topics.up(self._gateway_id, kind)
        size = len(payload) + len(topic) + PACKET_BYTES
        if not self._day.spend(self._spool.running_s, size):
            return SPENT_S
        if not self._link.publish(topic, payload):
            return BUSY_S
        self._rate.spend(size)
        self.bytes_up += size
        return None

    def _send_ledger(self, now_s: float) -> bool | None:
        """What the spool let go, until it is receipted; None when there is nothing to send now."""
        if now_s < self._ledger_again_at_s:
            return None
        ended = self._spool.ended(LEDGER_ENTRIES)
        if not ended:
            self._ledger_sendings = 0
            self._ledger_again_at_s = now_s + IDLE_S
            return None
        payload = codec.encode(Ledger(gateway_id=self._gateway_id, ended=tuple(ended)))
        if self._send_packet("ledger", payload, now_s) is not None:
            return False
        self._ledger_sendings += 1
        self._ledger_again_at_s = now_s + self._pacer.resend_after_s(self._ledger_sendings)
        return True

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
        """The centre has committed (or will never take) these: let the spool forget them.

        Raises:
            EnvironmentFault: the spool's disk fails; what was receipted is sent and receipted again.
        """
        if receipt.renew:
            self._spool.renew(receipt.renew)
        self._spool.forget(receipt)
        ended = (*receipt.stored, *(refusal.sample_id for refusal in receipt.refused))
        if self._offers:
            self._offers.forget(ended)
        with self._lock:
            for name in ended:
                self._under_way.pop(name, None)
                self._transfers.pop(name, None)
            lacks = {partial.transfer_id: partial.missing for partial in receipt.partial}
            for transfer in self._transfers.values():
                if transfer.transfer_id in lacks:
                    transfer.lacks(lacks[transfer.transfer_id])
            self._pacer.on_receipts(len(ended))
            self._pacer.on_pause(self._clock.monotonic_s(), receipt.pause_s)
            if receipt.ledger:
                self._ledger_sendings, self._ledger_again_at_s = 0, 0.0
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            wait_s = IDLE_S
            with contextlib.suppress(EnvironmentFault):  # a full disk: the spool has said so where samples come in
                wait_s = self.step()
            self._wake.wait(wait_s)
            self._wake.clear()
