"""One thread per library: many cameras keep the cores busy by themselves.

OpenCV and the linear algebra under numpy start a thread per core and let them spin after each call, for pictures and
matrices that one core does in a fraction of a millisecond. Measured: a quarter of the CPU of a quiet camera.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import cv2
from threadpoolctl import threadpool_limits


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
