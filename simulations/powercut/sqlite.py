"""SQLite on a `CutDisk`, in the shape of Python's own `sqlite3`: what the spool and any such code needs of it.

Python's module cannot take a virtual file system, apsw's SQLite can. The database has the disk for itself
(`locking_mode=EXCLUSIVE`): WAL then needs no shared memory, which a virtual file system in Python cannot give.
"""

import contextlib
import itertools
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import apsw

from simulations.powercut.disk import CutDisk, PowerCut

SECTOR_BYTES: Final = 4096
"""What Linux says of a disk."""
_numbers = itertools.count()


class CutSqlite:
    """Stands where a module has `sqlite3`. `connect` opens a file of the disk, whatever its folder.

    Args:
        synchronous: instead of what the code asks for; to show that the disk has teeth.
        checkpoint_pages: of the WAL, from which SQLite copies it into the database.
    """

    Error, DatabaseError, OperationalError = sqlite3.Error, sqlite3.DatabaseError, sqlite3.OperationalError
    IntegrityError, Connection = sqlite3.IntegrityError, sqlite3.Connection

    def __init__(self, disk: CutDisk, synchronous: str | None = None, checkpoint_pages: int = 1000) -> None:
        self._synchronous, self._checkpoint_pages = synchronous, checkpoint_pages
        self._vfs = _Vfs(f"cut-{next(_numbers)}", disk)

    def connect(self, path: object, **_: object) -> "CutConnection":
        """Open the database of this path's last part."""
        name = str(path).rpartition("/")[2]
        with _in_our_words():
            made = apsw.Connection(f"/{name}", vfs=self._vfs.name)
            made.execute("PRAGMA locking_mode=EXCLUSIVE")
            made.execute(f"PRAGMA wal_autocheckpoint={self._checkpoint_pages}")
        return CutConnection(made, self._synchronous)

    def close(self) -> None:
        """Take the file system out of SQLite."""
        self._vfs.unregister()


class CutConnection:
    """The methods of `sqlite3.Connection` that we use."""

    def __init__(self, connection: apsw.Connection, synchronous: str | None) -> None:
        self._connection, self._synchronous = connection, synchronous

    def execute(self, query: str, parameters: Sequence[Any] = ()) -> "CutCursor":
        if self._synchronous and "synchronous" in query.lower():
            query = f"PRAGMA synchronous={self._synchronous}"
        with _in_our_words():
            rows = self._connection.execute(query, tuple(parameters)).fetchall()
            return CutCursor(rows, self._connection.changes())

    def executescript(self, script: str) -> None:
        self.execute(script)

    @property
    def in_transaction(self) -> bool:
        return bool(self._connection.in_transaction)

    def close(self) -> None:
        with _in_our_words():
            self._connection.close()

    def drop(self) -> None:
        """Close after a power cut, whatever the disk says: who held it is gone as well."""
        with contextlib.suppress(apsw.Error, PowerCut):
            self._connection.close(True)


class CutCursor:
    """The rows of a query."""

    def __init__(self, rows: list[Any], rowcount: int) -> None:
        self._rows, self.rowcount = iter(rows), rowcount

    def fetchone(self) -> Any:
        return next(self._rows, None)

    def fetchall(self) -> list[Any]:
        return list(self._rows)

    def __iter__(self) -> Iterator[Any]:
        return self._rows


@contextmanager
def _in_our_words() -> Iterator[None]:
    """apsw's errors as those of `sqlite3`."""
    try:
        yield
    except (apsw.CorruptError, apsw.NotADBError) as error:
        raise sqlite3.DatabaseError(str(error)) from error
    except apsw.ConstraintError as error:
        raise sqlite3.IntegrityError(str(error)) from error
    except apsw.Error as error:
        raise sqlite3.OperationalError(str(error)) from error


class _Vfs(apsw.VFS):
    """SQLite's door to the disk."""

    def __init__(self, name: str, disk: CutDisk) -> None:
        self._disk, self.name = disk, name
        super().__init__(name, base="")

    def xOpen(self, name: Any, flags: list[int]) -> Any:  # noqa: N802  SQLite's name
        text = name.filename() if isinstance(name, apsw.URIFilename) else str(name)
        self._disk.create(text)
        flags[1] = flags[0]
        return _VfsFile(self._disk, text)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        if self._disk.exists(filename):
            self._disk.delete(filename, synced=syncdir)

    def xAccess(self, pathname: str, flags: int) -> bool:  # noqa: N802, ARG002
        return self._disk.exists(pathname)

    def xFullPathname(self, name: str) -> str:  # noqa: N802
        return name


class _VfsFile:
    """An open file of it."""

    def __init__(self, disk: CutDisk, name: str) -> None:
        self._disk, self._name = disk, name

    def xRead(self, amount: int, offset: int) -> bytes:  # noqa: N802
        return self._disk.read(self._name, offset, amount)

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        self._disk.write(self._name, offset, bytes(data))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        self._disk.truncate(self._name, size)

    def xSync(self, _flags: int) -> None:  # noqa: N802
        self._disk.sync(self._name)

    def xFileSize(self) -> int:  # noqa: N802
        return self._disk.size(self._name)

    def xLock(self, _level: int) -> None:  # noqa: N802
        """Nobody else is here."""

    def xUnlock(self, _level: int) -> None:  # noqa: N802
        """Nobody else is here."""

    def xCheckReservedLock(self) -> bool:  # noqa: N802
        return False

    def xFileControl(self, _op: int, _pointer: int) -> bool:  # noqa: N802
        return False

    def xSectorSize(self) -> int:  # noqa: N802
        return SECTOR_BYTES

    def xDeviceCharacteristics(self) -> int:  # noqa: N802
        return int(apsw.SQLITE_IOCAP_POWERSAFE_OVERWRITE)  # as on Linux

    def xClose(self) -> None:  # noqa: N802
        """Nothing is held."""
