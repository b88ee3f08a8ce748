"""How much memory a piece of work takes at its peak, beyond what the process had before."""

import ctypes
import ctypes.util
import gc
import resource
from pathlib import Path

import psutil

_CLEAR_REFS, _STATUS = Path("/proc/self/clear_refs"), Path("/proc/self/status")
_RESET_PEAK = "5"  # proc(5): resets VmHWM to the current resident set


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
