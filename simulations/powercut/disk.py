"""A disk that forgets: what was synced stays, everything else is kept, lost or torn when the power goes. No I/O.

The model is a file system and a drive with a volatile cache. Writes reach the platter in any order, and in part (by
sectors of 512 bytes). Files made or deleted since the last sync of anything may not be there, or be back: the folder is
journalled in order, as ext4 and xfs do. What a sync has covered is safe. Bytes beside a write are never harmed, as
drives of the last decades promise.
"""

import random
from dataclasses import dataclass, field
from typing import Final

SECTOR_BYTES: Final = 512


class PowerCut(Exception):
    """The power is gone; so it is for every operation after."""


@dataclass(frozen=True, slots=True)
class _Write:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class _Truncate:
    size: int


@dataclass
class _File:
    live: bytearray = field(default_factory=bytearray)
    """What reads see."""
    safe: bytes = b""
    """As of the last sync."""
    unsynced: list[_Write | _Truncate] = field(default_factory=list)
    entry_is_safe: bool = False
    deleted: bool = False
    """Deleted, and the folder not yet synced."""


class CutDisk:
    """Files by name. After `operations_left` writes, truncates, deletes and syncs the power goes; None: it stays."""

    def __init__(self) -> None:
        self._files: dict[str, _File] = {}
        self.operations_left: int | None = None
        self.operations = 0

    @property
    def dead(self) -> bool:
        """Whether the power is gone."""
        return self.operations_left is not None and self.operations_left < 0

    def exists(self, name: str) -> bool:
        found = self._files.get(name)
        return found is not None and not found.deleted

    def create(self, name: str) -> None:
        """Make an empty file, if there is none."""
        if not self.exists(name):
            self._work()
            self._files[name] = _File()

    def size(self, name: str) -> int:
        return len(self._files[name].live)

    def read(self, name: str, offset: int, amount: int) -> bytes:
        return bytes(self._files[name].live[offset : offset + amount])

    def write(self, name: str, offset: int, data: bytes) -> None:
        """A write that is under way when the power goes may still reach the platter."""
        self._look()
        file = self._files[name]
        file.unsynced.append(_Write(offset, data))
        _apply(file.live, file.unsynced[-1])
        self._work()

    def truncate(self, name: str, size: int) -> None:
        self._look()
        file = self._files[name]
        file.unsynced.append(_Truncate(size))
        _apply(file.live, file.unsynced[-1])
        self._work()

    def sync(self, name: str) -> None:
        """What was written to the file is safe when this returns, and its entry in the folder too."""
        self._work()
        file = self._files[name]
        file.safe, file.unsynced = bytes(file.live), []
        for other, entry in list(self._files.items()):
            entry.entry_is_safe = True
            if entry.deleted:
                del self._files[other]

    def delete(self, name: str, *, synced: bool) -> None:
        self._work()
        if synced or not self._files[name].entry_is_safe:
            del self._files[name]
        else:
            self._files[name].deleted = True

    def after_cut(self, rng: random.Random) -> "CutDisk":
        """The disk as it is found when the power is back."""
        found = CutDisk()
        for name, file in self._files.items():
            if not file.entry_is_safe and rng.random() < 0.5:
                continue
            if file.deleted and rng.random() < 0.5:
                continue
            content = bytearray(file.safe)
            fate = rng.choice(("kept", "lost", "mixed", "mixed"))
            for change in file.unsynced:
                if fate == "kept" or (fate == "mixed" and rng.random() < 0.6):
                    _apply(content, _tear(change, rng) if fate == "mixed" else change)
            found._files[name] = _File(bytearray(content), bytes(content), [], entry_is_safe=True)
        return found

    def _look(self) -> None:
        if self.dead:
            raise PowerCut

    def _work(self) -> None:
        self._look()
        self.operations += 1
        if self.operations_left is not None:
            self.operations_left -= 1
            self._look()


def _apply(content: bytearray, change: _Write | _Truncate) -> None:
    match change:
        case _Write(offset, data):
            if len(content) < offset:
                content.extend(bytes(offset - len(content)))
            content[offset : offset + len(data)] = data
        case _Truncate(size):
            del content[size:]
            content.extend(bytes(size - len(content)))


def _tear(change: _Write | _Truncate, rng: random.Random) -> _Write | _Truncate:
    """Half of the writes whole, the others only up to some sector."""
    if isinstance(change, _Truncate) or rng.random() < 0.5:
        return change
    sectors = rng.randrange(0, len(change.data) // SECTOR_BYTES + 1)
    first = SECTOR_BYTES - change.offset % SECTOR_BYTES  # sectors are the drive's, not the write's
    return _Write(change.offset, change.data[: first + SECTOR_BYTES * (sectors - 1) if sectors else 0])
