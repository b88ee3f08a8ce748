"""The events that gateways have told lately, for the fleet page: news, not evidence.

In memory and bounded: what an event was about is a sample when it was worth keeping, and which are open now is part of
every gateway's reported state.
"""

import threading
from collections import OrderedDict

import msgspec

from common.errors import WireError
from common.messages import Event

EVENTS_MAX = 200
JPEG_BYTES_MAX = 256 * 1024
PHASES = ("enter", "persist", "clear")


class Events:
    """The latest events, by id: a later word about one replaces the earlier, except its picture."""

    def __init__(self) -> None:
        self._events: OrderedDict[tuple[str, str], Event] = OrderedDict()
        self._lock = threading.Lock()
        self.told = 0
        """Events that have entered since the start."""

    def add(self, event: Event) -> None:
        """Take what a gateway says; said twice is the same.

        Raises:
            WireError: a phase that does not exist, or a picture over the bound.
        """
        if event.phase not in PHASES:
            raise WireError(f"an event has the phase {event.phase!r}")
        if len(event.jpeg) > JPEG_BYTES_MAX:
            raise WireError(f"the picture of an event has {len(event.jpeg)} bytes")
        key = event.gateway_id, event.event_id
        with self._lock:
            before = self._events.get(key)
            if before is None:
                self.told += 1
            elif before.at_ns > event.at_ns:
                return  # overtaken on its way
            elif not event.jpeg:
                event = msgspec.structs.replace(event, jpeg=before.jpeg)
            self._events[key] = event
            self._events.move_to_end(key)
            while len(self._events) > EVENTS_MAX:
                self._events.popitem(last=False)

    def latest(self, limit: int) -> list[Event]:
        """Newest first, without pictures."""
        with self._lock:
            found = list(reversed(self._events.values()))[:limit]
        return [msgspec.structs.replace(event, jpeg=b"") for event in found]

    def jpeg(self, gateway_id: str, event_id: str) -> bytes | None:
        """The picture of an event; None where there is none."""
        with self._lock:
            event = self._events.get((gateway_id, event_id))
        return event.jpeg if event and event.jpeg else None

    def has_jpeg(self) -> set[tuple[str, str]]:
        """Gateway and id of those with a picture."""
        with self._lock:
            return {key for key, event in self._events.items() if event.jpeg}
