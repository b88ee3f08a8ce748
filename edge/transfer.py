"""A large sample on its way in chunks: what is still to be sent. No I/O.

After a lost connection the first chunk is sent alone: a centre that holds others of the transfer answers which ones it
lacks, and only these follow. One that holds nothing says nothing, and after `ANSWER_S` all of them follow.
"""

from collections import deque
from collections.abc import Iterable

ANSWER_S = 3.0


class Transfer:
    """The chunks of one payload, in the order in which they are to go."""

    def __init__(self, transfer_id: bytes, count: int) -> None:
        self.transfer_id, self.count = transfer_id, count
        self._left = deque(range(count))
        self._asked_at_s: float | None = None
        self._resumed = False

    @property
    def done(self) -> bool:
        """Whether every chunk has been sent."""
        return not self._left

    @property
    def untouched(self) -> bool:
        """Whether none has been sent."""
        return len(self._left) == self.count

    def next(self, now_s: float) -> int | None:
        """Index of the chunk to send now; None when there is none, or an answer is awaited."""
        if not self._left or (self._asked_at_s is not None and now_s - self._asked_at_s < ANSWER_S):
            return None
        self._asked_at_s = None
        return self._left[0]

    def sent(self, now_s: float) -> None:
        """The chunk that `next` named has gone."""
        self._left.popleft()
        if self._resumed:
            self._resumed, self._asked_at_s = False, now_s

    def lost(self) -> None:
        """The connection went, and with it nobody knows what: begin again, asking first."""
        self._left = deque(range(self.count))
        self._asked_at_s, self._resumed = None, self.count > 1

    def lacks(self, missing: Iterable[int]) -> None:
        """The centre has all but these."""
        known = set(self._left)
        self._left = deque(index for index in sorted(set(missing)) if index in known or index == 0)
        self._asked_at_s = None
