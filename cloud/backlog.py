"""What has been admitted and waits for its commit: bounded in samples and in bytes.

Decides when there is room; leaves to the link what to do while there is none.
"""

import threading
import time
from collections import deque

from common.messages import Sample

EXTRA_BYTES = 4096
"""Of a sample beside its picture and embedding, in memory."""


def bytes_of(sample: Sample) -> int:
    """Roughly what a sample takes in memory."""
    return len(sample.jpeg) + len(sample.embedding) + EXTRA_BYTES


class Backlog:
    """A bounded queue that gives batches. One that is larger than the bound alone still passes, when it is empty."""

    def __init__(self, samples_max: int, bytes_max: int) -> None:
        self._samples_max, self._bytes_max = samples_max, bytes_max
        self._waiting: deque[tuple[float, Sample]] = deque()
        self.waited_s = 0.0
        """How long the first of the last batch was here."""
        self._bytes = 0
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def fullness(self) -> float:
        """0 empty, 1 no room."""
        return max(len(self._waiting) / self._samples_max, self._bytes / self._bytes_max)

    def has_room(self) -> bool:
        """Whether `put` would take the next one at once."""
        return not self._waiting or (len(self._waiting) < self._samples_max and self._bytes < self._bytes_max)

    def put(self, sample: Sample, timeout_s: float) -> bool:
        """False when there was no room in time; nothing is kept then."""
        with self._changed:
            if not self.has_room() and not self._changed.wait_for(self.has_room, timeout_s):
                return False
            self._waiting.append((time.monotonic(), sample))
            self._bytes += bytes_of(sample)
            self._changed.notify()
            return True

    def take(self, samples_max: int, bytes_max: int, first_s: float, more_s: float) -> list[Sample]:
        """A batch: waits for the first for `first_s`, then for others until it is full, at most for `more_s`."""
        with self._changed:
            if not self._changed.wait_for(self._waiting.__len__, first_s):
                return []
            until_s = time.monotonic() + more_s
            while len(self._waiting) < min(samples_max, self._samples_max) and self._bytes < bytes_max:
                left_s = until_s - time.monotonic()
                if left_s <= 0 or not self.has_room():
                    break
                self._changed.wait(left_s)
            batch: list[Sample] = []
            size = 0
            self.waited_s = time.monotonic() - self._waiting[0][0]
            while self._waiting and len(batch) < samples_max and (not batch or size < bytes_max):
                _, sample = self._waiting.popleft()
                batch.append(sample)
                size += bytes_of(sample)
            self._bytes -= size
            self._changed.notify_all()
            return batch
