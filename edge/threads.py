"""One thread per library: many cameras keep the cores busy by themselves.

OpenCV and the linear algebra under numpy start a thread per core and let them spin after each call, for pictures and
matrices that one core does in a fraction of a millisecond. Measured: a quarter of the CPU of a quiet camera.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import cv2
from threadpoolctl import threadpool_limits


def usable_cores() -> int:
    """Cores that this process may run on: what `taskset`, a container or systemd left of the machine's."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def one_thread_each() -> Iterator[None]:
    """While this lasts, in the whole process, OpenCV and BLAS work in the thread that calls them."""
    before = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        with threadpool_limits(1):
            yield
    finally:
        cv2.setNumThreads(before)
