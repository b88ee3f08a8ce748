"""How fast samples may leave: a window that shrinks when receipts fail to come, and the bytes of a day. No I/O.

Decides when and how much; `edge.uplink` sends. A gateway that floods a slow centre with repetitions makes it slower for
all, so silence halves the window and doubles the wait (as TCP does), each gateway with its own jitter.
"""

import math
import random
from collections.abc import Callable

RESEND_S_MAX = 600.0
"""Between two sendings of one sample, however often it had no receipt."""
PAUSE_S_MAX = 300.0
"""The longest pause that a centre can ask for at once."""
JITTER = 0.25
"""Waits are drawn up to so much longer, or the fleet would come back in lockstep."""
DAY_S = 86_400.0
AT_ONCE = 1 / 8
"""Share of the day's bytes that may go at its begin."""
RESERVE_BYTES = 256 * 1024
"""Of the day's bytes, set aside on disk at once: a flush for each such piece; at most this is forgone at a crash."""


class Pacer:
    """Window, repetition and pause.

    Args:
        window_max: samples sent and not receipted.
        resend_s: a sample without a receipt is sent again after so long, then after twice that, and so on.
    """

    def __init__(self, window_max: int, resend_s: float, rng: random.Random) -> None:
        self._window_max, self._resend_s, self._rng = window_max, resend_s, rng
        self.window = window_max
        self._paused_until_s = -math.inf
        self._shrunk_at_s = -math.inf

    def room(self, now_s: float, under_way: int) -> int:
        """How many more samples may be sent now."""
        return 0 if now_s < self._paused_until_s else max(0, self.window - under_way)

    def resend_after_s(self, sendings: int) -> float:
        """How long to wait for the receipt of a sample that has been sent so often."""
        wait_s = min(RESEND_S_MAX, self._resend_s * 2.0 ** min(max(sendings, 1) - 1, 30))
        return wait_s * (1 + JITTER * self._rng.random())

    def on_receipts(self, count: int) -> None:
        """The centre keeps up: the window grows by as many."""
        self.window = min(self._window_max, self.window + count)

    def on_silence(self, now_s: float) -> None:
        """A receipt did not come in time: half the window, at most once per wait."""
        if now_s - self._shrunk_at_s >= self._resend_s:
            self.window, self._shrunk_at_s = max(1, self.window // 2), now_s

    def on_pause(self, now_s: float, pause_s: float) -> None:
        """The centre asks for time."""
        if pause_s > 0:
            self._paused_until_s = now_s + min(pause_s, PAUSE_S_MAX) * (1 + JITTER * self._rng.random())


class DayBytes:
    """At most so many bytes in a day of the agent's running time, over restarts too; 0 is without limit.

    A day is 24 hours of running, not of the clock: a clock that jumps buys nothing. What may be sent is set aside
    through `reserve` before it is sent, so a crash can only lose allowance, never gain it.

    Args:
        reserve: makes durable that so many bytes are used up since that running time; raises when it cannot.
    """

    def __init__(self, limit: int, began_s: float, used: int, reserve: Callable[[float, int], None]) -> None:
        self._limit, self._began_s, self._reserve = limit, began_s, reserve
        self._reserved = used
        self._used = used

    @property
    def used(self) -> int:
        """Bytes of this day."""
        return self._used

    def left(self, running_s: float) -> float:
        """Bytes that may go now: an eighth of the day's from its begin, the rest as it passes.

        Else a morning's samples of little value would take what an evening's best one needs.
        """
        if not self._limit:
            return math.inf
        if running_s - self._began_s >= DAY_S:
            self._reserve(running_s, 0)
            self._began_s, self._used, self._reserved = running_s, 0, 0
        passed = max(0.0, running_s - self._began_s) / DAY_S
        return max(0, int(self._limit * (AT_ONCE + (1 - AT_ONCE) * passed)) - self._used)

    def spend(self, running_s: float, size: int) -> bool:
        """Set bytes aside, before they are sent; False when the day has not as many left."""
        if size > self.left(running_s):
            return False
        if self._limit and self._used + size > self._reserved:
            self._reserved = min(self._limit, max(self._used + size, self._reserved + RESERVE_BYTES))
            self._reserve(self._began_s, self._reserved)
        self._used += size
        return True
