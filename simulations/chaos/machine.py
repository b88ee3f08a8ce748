"""What a box stands on, and can be cheated with: its disk and its clock. The processes on it are not changed.

The disk is a small tmpfs that a ballast file fills; without root, a limit on the size of files that the running process
may write, which fails the same writes with another error. The clock is stepped while the process runs.
"""

import contextlib
import os
import resource
import subprocess
from pathlib import Path
from typing import Final

import psutil

from common.files import write_atomically

BALLAST: Final = "ballast"
PIECE: Final = bytes(1 << 20)
FILE_LIMIT_BYTES: Final = 4096
CLOCK_TRUE, CLOCK_1970, CLOCK_10_YEARS, CLOCK_BACK = "0", "@60", str(10 * 365 * 86_400), "-3600"
"""In the language of `simulations.chaos.cheated`."""


class Disk:
    """A folder on a small disk of its own. `mount`, `fill`, `free`, `unmount`."""

    def __init__(self, folder: Path, bytes_max: int) -> None:
        self.folder = folder
        self._bytes_max = bytes_max
        self.mounted = False

    @property
    def kind(self) -> str:
        """How a full disk is made."""
        return "tmpfs" if self.mounted else "limit of file size"

    def mount(self) -> None:
        """Make the folder a tmpfs, if we may."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            options = f"size={self._bytes_max},mode=700"
            done = subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "headframe-chaos", str(self.folder)],
                capture_output=True,
                check=False,
            )
            self.mounted = done.returncode == 0

    def fill(self, process: int | None) -> None:
        """No byte more fits. `process` is who writes here, for the case without tmpfs."""
        if not self.mounted:
            _limit_files(process, FILE_LIMIT_BYTES)
            return
        free = os.statvfs(self.folder)
        with contextlib.suppress(OSError), (self.folder / BALLAST).open("ab", buffering=0) as ballast:
            with contextlib.suppress(OSError):  # most of it at once; others write meanwhile
                os.posix_fallocate(ballast.fileno(), 0, max(1, free.f_bavail * free.f_frsize - len(PIECE)))
            size = len(PIECE)
            while True:
                try:
                    ballast.write(PIECE[:size])
                except OSError:
                    if size <= FILE_LIMIT_BYTES:
                        raise
                    size //= 2

    def free(self, process: int | None) -> None:
        """There is room again."""
        (self.folder / BALLAST).unlink(missing_ok=True)
        if not self.mounted:
            _limit_files(process, resource.RLIM_INFINITY)

    def unmount(self) -> None:
        """Give the memory back, whoever still looks at it."""
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.folder)], capture_output=True, check=False)
            self.mounted = False


def _limit_files(process: int | None, bytes_max: int) -> None:
    if process is not None:
        with contextlib.suppress(psutil.Error, OSError, ValueError):
            psutil.Process(process).rlimit(psutil.RLIMIT_FSIZE, (bytes_max, resource.RLIM_INFINITY))


class BoxClock:
    """The wall clock of one process (`simulations.chaos.cheated`), set by a file; the monotonic clock stays true."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.set(CLOCK_TRUE)

    def set(self, time: str) -> None:
        """Step the clock, of a running process too (within a second)."""
        write_atomically(self.file, time.encode())
