"""A piece of work in a process of its own, and how much memory it takes at its peak."""

import ctypes
import ctypes.util
import gc
import multiprocessing
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5): resets VmHWM to the current resident set

T = TypeVar("T")


def alone(work: Callable[..., T], *arguments: object) -> T:
    """Run it in a fresh process: it finds no memory and no library that another has warmed."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(work, *arguments).result()


class Peak:
    """Peak resident bytes within a `with` block, over those at its begin.

    Free memory that the allocator still holds is given back first, or the block would use it unseen. Where the peak
    cannot be reset (not Linux, or not allowed) it is that of the whole process: too high rather than too low.
    """

    extra_bytes = 0

    def __enter__(self) -> "Peak":
        gc.collect()
        if library := ctypes.util.find_library("c"):
            trim = getattr(ctypes.CDLL(library), "malloc_trim", None)
            if trim is not None:
                trim(0)
        self._before = int(psutil.Process().memory_info().rss)
        try:
            _CLEAR_REFS.write_text(_RESET_PEAK)
            self._resets = True
        except OSError:
            self._resets = False
        return self

    def __exit__(self, *_: object) -> None:
        self.extra_bytes = max(0, self._peak() - self._before)

    def _peak(self) -> int:
        if self._resets:
            line = next(line for line in _STATUS.read_text().splitlines() if line.startswith("VmHWM"))
            return int(line.split()[1]) * 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
