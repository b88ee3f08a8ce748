"""What the gateway remembers of its releases: two slots, the attempt under way, and what went back and why.

`current` is what runs after the next start, `previous` the last release that was committed before it; layers are
shared by hash. `current` may be on trial; then starts are counted in it, so that a release that brings the agent down
again and again is left. Every change is one file replaced atomically, in an order in which a power cut between any two
leaves the old or the new release.
"""

from pathlib import Path
from typing import Final, TypeVar

import msgspec

from common.errors import EnvironmentFault
from common.files import disk_fault, sync_folder, write_atomically

CURRENT: Final = "current"
PREVIOUS: Final = "previous"
FETCH: Final = "fetch"
ATTEMPT: Final = "attempt"
GONE_BACK: Final = "gone-back"
REMEMBERED_MAX: Final = 16
STARTS_MAX: Final = 16

T = TypeVar("T")


class Slot(msgspec.Struct, frozen=True):
    """What `current` and `previous` hold."""

    manifest: bytes
    signature: bytes
    seen_at_ns: int
    """Latest trustworthy time: a clock that falls back behind it is not believed."""
    on_trial: bool = False
    """It has not been committed yet."""
    starts_ns: tuple[int, ...] = ()
    """Of the agent on it while on trial, save those that ended in order."""


class Fetching(msgspec.Struct, frozen=True):
    """A release whose layers are being fetched; written before the first is asked for."""

    release_id: str
    starts: int
    """How often that was begun and did not end in order."""


class Attempt(msgspec.Struct, frozen=True):
    """A release that is loaded and tried beside the running one; written before it is first loaded."""

    release_id: str
    starts_ns: tuple[int, ...]


class GoneBack(msgspec.Struct, frozen=True):
    """A release that is not installed again here."""

    release_id: str
    sequence: int
    reason: str
    at_ns: int


class Slots:
    """The files of one folder.

    Every method that writes raises EnvironmentFault when the disk does not take it; what was there before stands.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> Slot | None:
        """A slot; None when it is empty or torn.

        Raises:
            EnvironmentFault: it is there and cannot be read now.
        """
        return self._read(name, Slot)

    def install(self, slot: Slot, running: Slot | None) -> None:
        """Put a release into `current`, on trial; the one that runs now is kept as `previous`."""
        if running:
            self._write(PREVIOUS, msgspec.structs.replace(running, on_trial=False, starts_ns=()))
        self._write(CURRENT, msgspec.structs.replace(slot, on_trial=True, starts_ns=()))
        self._remove(ATTEMPT)

    def commit(self) -> None:
        """`current` is on trial no more."""
        slot = self.read(CURRENT)
        if slot and slot.on_trial:
            self._write(CURRENT, msgspec.structs.replace(slot, on_trial=False, starts_ns=()))

    def count_start(self, at_ns: int, window_ns: int) -> int:
        """The agent is about to start on a `current` that is on trial: how often it has within the window."""
        slot = self.read(CURRENT)
        if slot is None or not slot.on_trial:
            return 0
        starts_ns = _recent(slot.starts_ns, at_ns, window_ns)
        self._write(CURRENT, msgspec.structs.replace(slot, starts_ns=starts_ns))
        return len(starts_ns)

    def fetches(self, release_id: str) -> int:
        """How often a release was begun to be fetched and the agent came to an end before it was there."""
        before = self._read(FETCH, Fetching)
        return before.starts if before and before.release_id == release_id else 0

    def count_fetch(self, release_id: str) -> None:
        """A release is about to be fetched."""
        self._write(FETCH, Fetching(release_id, self.fetches(release_id) + 1))

    def end_fetch(self) -> None:
        """It is here, or not wanted any more."""
        self._remove(FETCH)

    def count_attempt(self, release_id: str, at_ns: int, window_ns: int) -> int:
        """A release is about to be loaded and tried: how often it has been within the window."""
        before = self._read(ATTEMPT, Attempt)
        starts_ns = before.starts_ns if before and before.release_id == release_id else ()
        starts_ns = _recent(starts_ns, at_ns, window_ns)
        self._write(ATTEMPT, Attempt(release_id, starts_ns))
        return len(starts_ns)

    def end_attempt(self) -> None:
        """It has been decided on."""
        self._remove(ATTEMPT)

    def end_in_order(self) -> None:
        """The agent stops because it was told to: neither start, fetch nor attempt counts as one that went wrong."""
        slot = self.read(CURRENT)
        if slot and slot.on_trial and slot.starts_ns:
            self._write(CURRENT, msgspec.structs.replace(slot, starts_ns=slot.starts_ns[:-1]))
        self._remove(FETCH)
        self._remove(ATTEMPT)

    def remember(self, gone: GoneBack) -> None:
        """It is not installed again. Of many, the latest are kept."""
        known = [item for item in self.gone_back() if item.release_id != gone.release_id]
        self._write(GONE_BACK, (*known, gone)[-REMEMBERED_MAX:])

    def gone_back(self) -> tuple[GoneBack, ...]:
        """What is remembered, the latest last."""
        return self._read(GONE_BACK, tuple[GoneBack, ...]) or ()

    def go_back(self) -> None:
        """`current` becomes what `previous` holds, or nothing on a box that never had another."""
        before = self.read(PREVIOUS)
        if before:
            self._write(CURRENT, before)
        else:
            self._remove(CURRENT)

    def _read(self, name: str, kind: type[T]) -> T | None:
        path = self._folder / name
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=kind)
        except (FileNotFoundError, msgspec.DecodeError):
            return None
        except OSError as error:
            raise EnvironmentFault(f"Cannot read {path}: {error.strerror or error}", "Check the disk.") from error

    def _write(self, name: str, content: object) -> None:
        write_atomically(self._folder / name, msgspec.msgpack.encode(content))

    def _remove(self, name: str) -> None:
        path = self._folder / name
        try:
            if path.exists():
                path.unlink()
                sync_folder(self._folder)
        except OSError as error:
            raise disk_fault(path, error) from error


def _recent(starts_ns: tuple[int, ...], at_ns: int, window_ns: int) -> tuple[int, ...]:
    """Those within the window and this one."""
    return (*(start for start in starts_ns if start >= at_ns - window_ns), at_ns)[-STARTS_MAX:]
