"""Runs a module of ours with a wall clock that can be stepped from outside while it runs.

`python -m simulations.chaos.cheated FILE MODULE ARGUMENTS…`: `FILE` holds one number, the seconds to add to the
machine's clock, or `@` and the seconds since 1970 that it showed when the file was written. The module runs unchanged:
`time.time` and `time.time_ns` are replaced before it is imported. The monotonic clock stays true, as in a box whose
clock is set by a person or by NTP. (libfaketime cheats C code too, but its sleep fails after a step with EINVAL.)
"""

import contextlib
import runpy
import sys
import time
from pathlib import Path
from typing import Final

LOOK_S: Final = 0.2


class CheatedClock:
    """`now_ns` as the file says; what cannot be read or understood changes nothing."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._true_ns, self._monotonic_ns = time.time_ns, time.monotonic_ns
        self._looked_ns, self._offset_ns = -(10**18), 0

    def now_ns(self) -> int:
        """Nanoseconds since 1970, or so this box believes."""
        monotonic_ns = self._monotonic_ns()
        if monotonic_ns - self._looked_ns > LOOK_S * 1e9:
            self._looked_ns = monotonic_ns
            with contextlib.suppress(OSError, ValueError):
                self._offset_ns = self._read()
        return self._true_ns() + self._offset_ns

    def _read(self) -> int:
        text = self._file.read_text().strip()
        if text.startswith("@"):
            return int(float(text[1:]) * 1e9) - self._file.stat().st_mtime_ns
        return int(float(text) * 1e9)


def main() -> None:
    """Cheat, then be the module."""
    _, file, module, *arguments = sys.argv
    clock = CheatedClock(Path(file))
    time.time_ns = clock.now_ns
    time.time = lambda: clock.now_ns() / 1e9
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
