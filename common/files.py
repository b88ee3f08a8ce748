"""Files that survive a power cut: temporary file, fsync, rename, fsync of the folder."""

import errno
import fcntl
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import EnvironmentFault, OperatorError

PRIVATE = 0o600
READABLE = 0o644  # what people open: reports, exports


def write_atomically(path: Path, data: bytes, mode: int = PRIVATE) -> None:
    """Replace `path` by `data` so that after a power cut either the old or the new file is there, whole.

    Args:
        mode: permissions of the new file.

    Raises:
        EnvironmentFault: the disk is full or cannot be written; the old file is untouched.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        temporary = Path(name)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), mode)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise disk_fault(path, error) from error


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Be the only process that works in `folder`; the lock goes with the process, however it ends.

    Raises:
        OperatorError: another process works there.
        EnvironmentFault: the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise disk_fault(folder / "lock", error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OperatorError(
                f"another process already works in {folder}", "Stop it, or give this one a data_dir of its own."
            ) from error
        yield
    finally:
        os.close(descriptor)


def sync_folder(folder: Path) -> None:
    """Make renames inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def disk_fault(path: Path, error: OSError) -> EnvironmentFault:
    """The operator's sentence for a failed write to `path`."""
    if error.errno == errno.ENOSPC:
        return EnvironmentFault(f"The disk that holds {path} is full", "Free space or move data_dir to a larger disk.")
    return EnvironmentFault(f"Cannot write {path}: {error.strerror or error}", "Check the disk and its permissions.")
