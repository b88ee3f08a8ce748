"""Which pieces of what is published for all this gateway listens to: those that some part of it needs now, no others.

Decides nothing by itself: who needs pieces says which, and the subscriptions follow.
"""

import threading
from collections.abc import Callable, Sequence
from typing import Protocol

from common import topics


class Subscriber(Protocol):
    """What is needed of the link."""

    def subscribe(self, topics: Sequence[str]) -> None:
        """From now on, at this connection and those to come; a retained message comes at once."""
        ...

    def unsubscribe(self, topics: Sequence[str]) -> None:
        """No more."""
        ...


class Shared:
    """`settle` after anything that may have changed what is needed; any thread.

    Args:
        needs: each says which pieces it needs now.
    """

    def __init__(self, link: Subscriber, *needs: Callable[[], frozenset[str]]) -> None:
        self._link, self._needs = link, needs
        self._now: frozenset[str] = frozenset()
        self._lock = threading.Lock()

    def settle(self) -> None:
        """Subscribe to what is needed and not listened to, unsubscribe from the rest."""
        with self._lock:
            needed = frozenset[str]().union(*(need() for need in self._needs))
            gone, new = sorted(self._now - needed), sorted(needed - self._now)
            self._now = needed
            if gone:
                self._link.unsubscribe([topics.release(name) for name in gone])
            if new:
                self._link.subscribe([topics.release(name) for name in new])
