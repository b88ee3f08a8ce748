"""What the gateways report: in memory for those who ask each second, written to the store in batches.

A fleet of 12,000 reports 1,200 states a second; a commit for each would take all of the centre's time. What a crash
takes is at most the last `flush`'s news, and every gateway tells it again with its next heartbeat. Leaves to
`cloud.service` what follows from a state.
"""

import logging
import threading
from collections import Counter

import msgspec

from cloud.store import Store
from common.clock import Clock
from common.errors import EnvironmentFault, OperatorError
from common.messages import State

log = logging.getLogger(__name__)

OFFLINE_AFTER_S = 45.0
"""Four heartbeats and a half."""
GATEWAYS_MAX = 200_000
"""States held; a broker without ACL must not fill our memory with names."""
FLUSH_MAX = 2_000
"""States of one transaction, so that ingest does not wait long for the database."""


class Reported:
    """The last state of every gateway. Any thread may call it."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store, self._clock = store, clock
        self._states = {state.gateway_id: state for state in store.states()}
        self._seen_at_s: dict[str, float] = {}
        self._unwritten: dict[str, None] = {}
        self._lock = threading.Lock()

    def take(self, state: State) -> None:
        """Remember a state; a last will only takes the gateway offline.

        Raises:
            OperatorError: more gateways than `GATEWAYS_MAX`.
        """
        name = state.gateway_id
        with self._lock:
            known = self._states.get(name)
            if known is None and len(self._states) >= GATEWAYS_MAX:
                raise OperatorError(
                    f"more than {GATEWAYS_MAX} gateways report", "Check the broker's ACL: who may publish states?"
                )
            if state.online:
                self._seen_at_s[name] = self._clock.monotonic_s()
            else:
                self._seen_at_s.pop(name, None)
                state = msgspec.structs.replace(known, online=False) if known else state
            self._states[name] = state
            self._unwritten[name] = None

    def release_of(self, gateway_id: str) -> str:
        """What a gateway says it runs; empty when it has said nothing."""
        state = self._states.get(gateway_id)
        return state.release_id if state else ""

    def runs(self, gateway_id: str) -> tuple[str, bool]:
        """What a gateway says it runs, and whether it takes what is published for all."""
        state = self._states.get(gateway_id)
        return (state.release_id, state.shared) if state else ("", False)

    def online_by_site(self) -> Counter[str]:
        """How many gateways of each site are online."""
        return Counter(self._states[name].site_id for name in self.online())

    def site_of(self, gateway_id: str) -> str:
        """The site that a gateway says it is at; empty when it has said nothing."""
        state = self._states.get(gateway_id)
        return state.site_id if state else ""

    def online(self) -> list[str]:
        """Gateways that reported lately, sorted."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            return sorted(name for name, at_s in self._seen_at_s.items() if now_s - at_s < OFFLINE_AFTER_S)

    def states(self) -> tuple[dict[str, State], dict[str, float]]:
        """The last state of every gateway, and of those online how many seconds ago it came."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            ages = {name: now_s - at_s for name, at_s in self._seen_at_s.items() if now_s - at_s < OFFLINE_AFTER_S}
            return dict(self._states), ages

    def flush(self) -> None:
        """Write what is new. When the disk fails it is kept and written with the next call."""
        while True:
            with self._lock:
                names = list(self._unwritten)[:FLUSH_MAX]
                states = [self._states[name] for name in names]
                for name in names:
                    del self._unwritten[name]
            if not states:
                return
            try:
                self._store.put_states(states)
            except EnvironmentFault as error:
                log.error("states are not written: %s", error)
                with self._lock:
                    self._unwritten.update(dict.fromkeys(names))
                return
