"""A parcel on its way to this gateway: how fast, when to say that nothing comes, when to give up on it. Pure.

Decides when pieces are asked for; `common.parcels` knows which, `edge.download` and `edge.proofs` what is made of them.
A site's line carries pictures too, and a wave reaches many gateways in one second: with a bound on the bytes a second
each begins at a moment of its own and asks for no more than the bound lets through.
"""

import random
from typing import Final

from common.errors import WireError
from common.messages import Parcel
from common.parcels import PIECE_BYTES, WINDOW, Unpacking
from common.rate import Rate

SILENCE_S: Final = 5.0
"""Nothing has come for so long: the centre is told, and told again."""
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
        self._bytes_per_s, self._rate = bytes_per_s, Rate(bytes_per_s, now_s)
        spread_s = min(SPREAD_S_MAX, parcel.total_bytes / bytes_per_s) if bytes_per_s else 0.0
        self._begins_s = now_s + spread_s * rng.random()
        self._said_s = self._begins_s
        """When something came or may come, or the centre was told that nothing does."""
        self._asked: frozenset[str] = frozenset()
        self._answers = self._forged = 0
        if wait_s > 0:
            self.on_answer(now_s, wait_s)

    def on_answer(self, now_s: float, wait_s: float) -> None:
        """The centre says once more that it lies there, or how much longer it takes."""
        if wait_s > 0:
            self._said_s = max(self._said_s, now_s + min(wait_s, WAIT_S_MAX))
        else:
            self._answers += 1

    def wanted(self, now_s: float) -> frozenset[str]:
        """Pieces to be asked for now."""
        if now_s < self._begins_s:
            return frozenset()
        if self._rate.wait_s(now_s) > 0:
            return self._asked & self.unpacking.wanted()
        window = max(1, int(min(WINDOW, self._bytes_per_s / PIECE_BYTES))) if self._bytes_per_s else WINDOW
        self._asked = self.unpacking.wanted(window)
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
        self._said_s = max(self._said_s, now_s + self._rate.wait_s(now_s))
        self._answers = 0
        return found

    def is_silent(self, now_s: float) -> bool:
        """Whether the centre is to be told, now, that nothing comes. True once for each time it is."""
        if now_s - self._said_s < SILENCE_S:
            return False
        self._said_s = now_s
        return True

    def is_hopeless(self, now_s: float) -> bool:
        """Whether to give it up."""
        return self._answers >= ANSWERS_MAX and now_s - self._said_s >= SILENCE_S
