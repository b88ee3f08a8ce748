"""A parcel on its way to this gateway: how fast, when to say that nothing comes, when to give up on it. Pure.

Decides when pieces are asked for; `common.parcels` knows which, `edge.download` and `edge.proofs` what is made of them.
A site's line carries pictures too, and a wave reaches many gateways in one second: it begins with one piece at a time
and goes on with more while they come quickly; with a bound on the bytes a second each gateway begins at a moment of its
own and asks for no more than the bound lets through.
"""

import math
import random
from typing import Final

from common.errors import WireError
from common.messages import Parcel
from common.parcels import PIECE_BYTES, WINDOW, Unpacking
from common.rate import Rate

QUICK_S: Final = 1.0
"""A piece that comes within so long makes room for one more at once; a slower one for itself alone."""
ANEW_S: Final = 2.0
"""Nothing has come for so long: the broker is asked once more. nats-server sends a message neither live nor retained to
who subscribes in the moment in which it is stored."""
SILENCE_S: Final = 5.0
"""Nothing has come for so long: the centre is told, and again after twice as long, at most `SILENCE_S_MAX`."""
SILENCE_S_MAX: Final = 60.0
SLOWER: Final = 3.0
"""Both are so many times what the last piece took, at the least: what is on its way already is not asked for again."""
ANSWERS_MAX: Final = 3
"""So often the centre has answered that it lies there, and nothing comes: it is asked for in parts, for this gateway
alone. A centre that does not answer is down, and a fleet that asked it for thousands of copies would keep it there."""
WAIT_S_MAX: Final = 600.0
"""However long the centre says that it takes: then it is asked whether it still does."""
FORGED_MAX: Final = 3
"""Pieces that are not what their name says, before the parcel is given up: somebody else writes there."""
SPREAD_S_MAX: Final = 60.0
BYTES_PER_S_MIN: Final = 1000.0
"""Whatever share of its line the centre tells a gateway: at less a piece would take longer than `WAIT_S_MAX`."""


class Intake:
    """One parcel.

    Args:
        wait_s: how long the centre may take until it is published.
        bytes_per_s: what it may come at; 0: no bound.
        rng: draws the moment of the first piece.

    Raises:
        WireError: no parcel can be like this.
    """

    def __init__(self, parcel: Parcel, now_s: float, wait_s: float, bytes_per_s: float, rng: random.Random) -> None:
        self.unpacking = Unpacking(parcel)
        bytes_per_s = max(bytes_per_s, BYTES_PER_S_MIN) if bytes_per_s > 0 else 0.0
        self._rate, self._bound = Rate(bytes_per_s, now_s), bytes_per_s / PIECE_BYTES if bytes_per_s else WINDOW
        spread_s = min(SPREAD_S_MAX, parcel.total_bytes / bytes_per_s) if bytes_per_s else 0.0
        self._begins_s = now_s + spread_s * rng.random()
        self._heard_s = self._begins_s
        """When something came, or may come at the earliest."""
        self._took_s = 0.0
        """How long the last piece took."""
        self._window = 1
        self._asked: frozenset[str] = frozenset()
        self._anew = False
        """The subscriptions are to be made once more."""
        self._renewed = False
        self._said_s = -math.inf
        self._words = self._answers = self._forged = 0
        if wait_s > 0:
            self.on_answer(now_s, wait_s)

    def on_answer(self, now_s: float, wait_s: float) -> None:
        """The centre says once more that it lies there, or how much longer it takes."""
        if wait_s > 0:
            self._heard_s = max(self._heard_s, now_s + min(wait_s, WAIT_S_MAX))
            self._words = 0
        else:
            self._answers += 1

    def wanted(self, now_s: float) -> frozenset[str]:
        """Pieces to be asked for now."""
        if now_s < self._begins_s or self._anew:
            self._anew = False
            return frozenset()
        if self._rate.wait_s(now_s) > 0:
            return self._asked & self.unpacking.wanted()
        self._asked = self.unpacking.wanted(max(1, int(min(self._window, self._bound))))
        return self._asked

    def take(self, name: str, data: bytes, now_s: float) -> bytes:
        """Take a piece; returns what may be kept now, in order.

        Raises:
            WireError: the parcel is not what it was said to be: give it up.
        """
        if name not in self.unpacking.wanted():
            return b""
        try:
            found = self.unpacking.take(name, data)
        except WireError:
            self._forged += 1
            if self._forged >= FORGED_MAX:
                raise
            return b""
        self._rate.spend(len(data))
        self._took_s = max(0.0, now_s - self._heard_s)
        self._heard_s = max(self._heard_s, now_s + self._rate.wait_s(now_s))
        self._window = min(WINDOW, self._window + 1) if self._took_s < QUICK_S else 1
        self._renewed, self._words, self._answers = False, 0, 0
        return found

    def is_silent(self, now_s: float) -> bool:
        """Whether the centre is to be told, now, that nothing comes. True once for each time it is."""
        if not self._renewed and now_s - self._heard_s >= max(ANEW_S, SLOWER * self._took_s):
            self._renewed = self._anew = True
        if now_s < self._due_s():
            return False
        self._words, self._said_s = self._words + 1, now_s
        return True

    def is_hopeless(self, now_s: float) -> bool:
        """Whether to give it up."""
        return self._answers >= ANSWERS_MAX and now_s >= self._due_s()

    def _due_s(self) -> float:
        """When the centre is to be told next."""
        wait_s = math.ldexp(max(SILENCE_S, SLOWER * self._took_s), min(self._words, 10))
        return max(self._heard_s, self._said_s) + min(wait_s, SILENCE_S_MAX)
