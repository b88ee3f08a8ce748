"""Time as an argument: the one seam through which tests and simulations replace the clock."""

import time
from typing import Protocol


class Clock(Protocol):
    """Wall clock in nanoseconds since 1970 (UTC), and a monotonic clock in seconds."""

    def wall_ns(self) -> int: ...

    def monotonic_s(self) -> float: ...


class SystemClock:
    """The machine's own clocks."""

    def wall_ns(self) -> int:
        return time.time_ns()

    def monotonic_s(self) -> float:
        return time.monotonic()
