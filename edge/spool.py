"""The durable queue: a sample is on disk before anything else happens to it, and leaves on the centre's receipt only.

SQLite in WAL mode with synchronous=FULL: no accepted row is lost to a power cut (WAL with NORMAL loses some). Bounded
in bytes: the least valuable are evicted first, counted, and stay in the ledger.
"""

import logging
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import codec
from common.errors import EnvironmentFault
from common.messages import Receipt, Sample

log = logging.getLogger(__name__)

LEDGER_MAX = 200_000
NAMES_MAX = 500  # parameters of one query
_SCHEMA = """
CREATE TABLE IF NOT EXISTS queue (
    sample_id BLOB PRIMARY KEY, value REAL NOT NULL, bytes INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS queue_by_value ON queue (value DESC, bytes);  -- also covers the sum of bytes
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY, sample_id BLOB NOT NULL UNIQUE, state TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS figures (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class Queued:
    """A sample that waits for its receipt: the encoded message as it goes over the wire."""

    sample_id: bytes
    value: float
    payload: bytes


@dataclass(frozen=True, slots=True)
class SpoolFigures:
    """What is in the spool, and what has been since it was made."""

    rows: int
    bytes: int
    accepted: int
    receipted: int
    evicted: int
    refused: int
    by_reason: dict[str, int]
    declined: int = 0


class Spool:
    """All methods may be called from any thread; each is one transaction."""

    def __init__(self, connection: sqlite3.Connection, path: Path, bytes_max: int) -> None:
        self._db, self._path, self._bytes_max = connection, path, bytes_max
        self._lock = threading.Lock()
        self._bytes = self._held()

    @classmethod
    def open(cls, path: Path, bytes_max: int) -> "Spool":
        """Open or make the spool; a file that is no longer a database is put aside, never deleted.

        Raises:
            EnvironmentFault: the folder cannot be written.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                return cls(_connect(path), path, bytes_max)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
                path.rename(aside)
                for leftover in ("-wal", "-shm"):
                    path.with_name(path.name + leftover).unlink(missing_ok=True)
                log.error("spool %s was damaged (%s); put aside as %s", path, error, aside)
                return cls(_connect(path), path, bytes_max)
        except (OSError, sqlite3.OperationalError) as error:
            raise EnvironmentFault(f"cannot open the spool {path}: {error}", "Check data_dir and its disk.") from error

    def accept(self, sample: Sample) -> bool:
        """Keep a sample; durable when this returns. False when its id is known already.

        Raises:
            EnvironmentFault: the disk is full or fails; the sample was not kept.
        """
        payload = codec.encode(sample)
        with self._lock, _Transaction(self._db, self._path):
            known = "SELECT count(*) FROM ledger WHERE sample_id = ?"
            if self._one(known, sample.sample_id):
                return False
            self._db.execute(
                "INSERT INTO queue VALUES (?, ?, ?, ?)",
                (sample.sample_id, sample.scores.value, len(payload), payload),
            )
            self._db.execute(
                "INSERT INTO ledger (sample_id, state, reason) VALUES (?, 'accepted', ?)",
                (sample.sample_id, sample.reason),
            )
            self._count("accepted")
            self._count(f"reason:{sample.reason}")
            held = self._evict()
        self._bytes = held
        return True

    def pending(self, limit: int, exclude: Collection[bytes] = ()) -> list[Queued]:
        """The most valuable samples that wait, without those in `exclude`."""
        with self._lock:
            rows = self._db.execute(
                "SELECT sample_id, value FROM queue ORDER BY value DESC LIMIT ?", (limit + len(exclude),)
            ).fetchall()
            wanted = [row for row in rows if row[0] not in exclude][:limit]
            return [
                Queued(name, value, self._one("SELECT payload FROM queue WHERE sample_id = ?", name))
                for name, value in wanted
            ]

    def held(self, names: Collection[bytes], limit: int) -> list[Queued]:
        """Those of `names` that wait here, the most valuable first."""
        found: list[tuple[bytes, float]] = []
        with self._lock:
            for part in _batches(names, NAMES_MAX):
                marks = ", ".join("?" * len(part))
                query = f"SELECT sample_id, value FROM queue WHERE sample_id IN ({marks})"  # noqa: S608  marks only
                found += self._db.execute(query, part).fetchall()
            found.sort(key=lambda row: -row[1])
            return [
                Queued(name, value, self._one("SELECT payload FROM queue WHERE sample_id = ?", name))
                for name, value in found[:limit]
            ]

    def decline(self, names: Collection[bytes]) -> None:
        """Remove what was offered and nobody asked for; ids that are not here are ignored.

        Raises:
            EnvironmentFault: the disk fails; the samples stay.
        """
        with self._lock, _Transaction(self._db, self._path):
            for name in names:
                self._end(name, "declined")
            self._prune()
            held = self._held()
        self._bytes = held

    def forget(self, receipt: Receipt) -> None:
        """Remove what the centre has stored or will never store; ids that are not here are ignored.

        Raises:
            EnvironmentFault: the disk fails; the samples stay and the centre will receipt them again.
        """
        with self._lock, _Transaction(self._db, self._path):
            for name in receipt.stored:
                self._end(name, "receipted")
            for refusal in receipt.refused:
                if self._end(refusal.sample_id, "refused"):
                    log.warning("the centre refused sample %s: %s", refusal.sample_id.hex(), refusal.reason)
            self._prune()
            held = self._held()
        self._bytes = held

    def figures(self) -> SpoolFigures:
        """Counts for the heartbeat."""
        with self._lock:
            counted = dict(self._db.execute("SELECT name, value FROM figures").fetchall())
            rows = int(self._one("SELECT count(*) FROM queue"))
        reasons = {name.split(":")[1]: value for name, value in counted.items() if name.startswith("reason:")}
        accepted, receipted, evicted, refused = (
            counted.get(name, 0) for name in ("accepted", "receipted", "evicted", "refused")
        )
        declined = counted.get("declined", 0)
        return SpoolFigures(rows, self._bytes, accepted, receipted, evicted, refused, reasons, declined)

    def ledger(self) -> dict[bytes, str]:
        """State of the last `LEDGER_MAX` samples accepted: accepted, receipted, evicted, refused or declined."""
        with self._lock:
            return dict(self._db.execute("SELECT sample_id, state FROM ledger").fetchall())

    def close(self) -> None:
        """Close the file; nothing is pending in memory."""
        with self._lock:
            self._db.close()

    def _evict(self) -> int:
        """Drop the least valuable until the bound holds; it may be the newest. Returns the bytes that stay."""
        held = self._held()
        while held > self._bytes_max:
            name, size = self._db.execute("SELECT sample_id, bytes FROM queue ORDER BY value LIMIT 1").fetchone()
            self._end(name, "evicted")
            held -= size
        return held

    def _held(self) -> int:
        return int(self._one("SELECT coalesce(sum(bytes), 0) FROM queue"))

    def _end(self, name: bytes, state: str) -> bool:
        removed = self._db.execute("DELETE FROM queue WHERE sample_id = ?", (name,)).rowcount
        if not removed:
            return False
        self._db.execute("UPDATE ledger SET state = ? WHERE sample_id = ?", (state, name))
        self._count(state)
        return True

    def _prune(self) -> None:
        """Forget the oldest ended entries beyond the bound."""
        self._db.execute(
            "DELETE FROM ledger WHERE state != 'accepted' AND number <= (SELECT max(number) - ? FROM ledger)",
            (LEDGER_MAX,),
        )

    def _count(self, name: str) -> None:
        self._db.execute(
            "INSERT INTO figures VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1", (name,)
        )

    def _one(self, query: str, *parameters: object) -> Any:
        return self._db.execute(query, parameters).fetchone()[0]


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _batches(names: Collection[bytes], size: int) -> Iterator[list[bytes]]:
    """The names in lists of at most `size`."""
    rest = list(names)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


class _Transaction:
    """BEGIN IMMEDIATE … COMMIT; a failure rolls back and becomes a sentence about the disk."""

    def __init__(self, connection: sqlite3.Connection, path: Path) -> None:
        self._db, self._path = connection, path

    def __enter__(self) -> None:
        try:
            self._db.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            raise self._fault(error) from error

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if error is None:
            try:
                self._db.execute("COMMIT")
            except sqlite3.OperationalError as failure:
                self._roll_back()
                raise self._fault(failure) from failure
            return
        self._roll_back()
        if isinstance(error, sqlite3.OperationalError):
            raise self._fault(error) from error

    def _roll_back(self) -> None:
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _fault(self, error: sqlite3.OperationalError) -> EnvironmentFault:
        if "full" in str(error):
            return EnvironmentFault(
                f"the disk that holds {self._path} is full", "Free space or lower spool.bytes_max in edge.toml."
            )
        return EnvironmentFault(f"cannot write {self._path}: {error}", "Check the disk that holds data_dir.")
