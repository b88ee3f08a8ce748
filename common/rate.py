"""A bound on bytes a second. Pure: time comes as an argument."""


class Rate:
    """A bucket of tokens: on average at most so many bytes a second; 0 is without limit."""

    def __init__(self, bytes_per_s: float, now_s: float) -> None:
        self._bytes_per_s, self._at_s = bytes_per_s, now_s
        self._owed = 0.0

    def wait_s(self, now_s: float) -> float:
        """How long until something may be sent; 0 when it may be now."""
        if not self._bytes_per_s:
            return 0.0
        self._owed = max(0.0, self._owed - max(0.0, now_s - self._at_s) * self._bytes_per_s)
        self._at_s = now_s
        return self._owed / self._bytes_per_s

    def spend(self, size: int) -> None:
        """What was sent; the next waits until it would have gone at this rate."""
        self._owed += size if self._bytes_per_s else 0
