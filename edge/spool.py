"""The durable queue: a sample is on disk before anything else happens to it, and leaves on the centre's receipt only.

SQLite in WAL mode with synchronous=FULL: no accepted row is lost to a power cut (WAL with NORMAL loses some). Bounded
in bytes and in age: the least valuable and the oldest go first, and each that goes is an entry of a ledger that travels
to the centre like a sample does. Every sample has a number in the spool's epoch (`edge.epochs`), so that the centre can
tell a gap from a silence.

Age is counted in running time of the agent, as the day of the byte budget is: no clock can be trusted here.
"""

import logging
import math
import sqlite3
import threading
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from common import codec
from common.clock import Clock, SystemClock
from common.errors import EnvironmentFault
from common.files import sync_folder
from common.messages import Ended, Receipt, Sample, SpoolEpoch
from edge.epochs import EpochMark, new_epoch

log = logging.getLogger(__name__)

LEDGER_MAX = 200_000
NAMES_MAX = 500  # parameters of one query
ENDED_MAX = 200_000
"""Entries that wait for their receipt; beyond it the oldest are dropped, counted as `unreported`."""
EPOCHS_REPORTED = 8
_SCHEMA = """
CREATE TABLE IF NOT EXISTS queue (
    sample_id BLOB PRIMARY KEY, value REAL NOT NULL, bytes INTEGER NOT NULL, payload BLOB NOT NULL
);
CREATE INDEX IF NOT EXISTS queue_by_value ON queue (value DESC, bytes);
CREATE TABLE IF NOT EXISTS ledger (
    number INTEGER PRIMARY KEY, sample_id BLOB NOT NULL UNIQUE, state TEXT NOT NULL, reason TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS figures (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS lives (number INTEGER PRIMARY KEY, epoch TEXT NOT NULL, head INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS ended (
    epoch TEXT NOT NULL, sequence INTEGER NOT NULL, sample_id BLOB NOT NULL, value REAL NOT NULL, state TEXT NOT NULL,
    PRIMARY KEY (epoch, sequence)
) WITHOUT ROWID;
"""
_ADDED = (
    ("epoch", "TEXT NOT NULL DEFAULT ''"),
    ("sequence", "INTEGER NOT NULL DEFAULT 0"),
    ("accepted_s", "REAL NOT NULL DEFAULT 0"),
)
"""Columns of `queue` that spools of before have not."""
_SCHEMA_ADDED = """
CREATE INDEX IF NOT EXISTS queue_by_number ON queue (epoch, sequence);
CREATE INDEX IF NOT EXISTS queue_by_age ON queue (accepted_s);
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
    expired: int = 0
    unreported: int = 0


class Spool:
    """All methods may be called from any thread; each is one transaction."""

    def __init__(
        self, connection: sqlite3.Connection, path: Path, bytes_max: int, age_max_s: float, clock: Clock
    ) -> None:
        self._db, self._path, self._bytes_max, self._age_max_s = connection, path, bytes_max, age_max_s
        self._clock = clock
        self._epoch, self._opens = "", 0
        self._lock = threading.Lock()
        self._mark = EpochMark(path)
        self._opened_s = clock.monotonic_s()
        self._ran_before_s = self._figure("running_s") or 0
        try:
            with _Transaction(self._db, self._path):
                self._begin_life()
                if self._figure("held_bytes") is None:  # a spool of before: counted once
                    self._set("held_bytes", int(self._one("SELECT coalesce(sum(bytes), 0) FROM queue")))
                    self._set("held_rows", int(self._one("SELECT count(*) FROM queue")))
            self._mark.keep(self.epoch, self._opens)
        except EnvironmentFault as error:  # a full disk: what waits must be able to leave, or it stays full
            row = self._db.execute("SELECT epoch FROM lives ORDER BY number DESC LIMIT 1").fetchone()
            if row is None:
                raise
            self._epoch, self._opens = row[0], self._figure("opens") or 0
            log.error("%s", error)

    @classmethod
    def open(
        cls, path: Path, bytes_max: int, *, age_max_s: float = float("inf"), clock: Clock | None = None
    ) -> "Spool":
        """Open or make the spool; a file that is no longer a database is put aside, never deleted.

        Raises:
            EnvironmentFault: the folder cannot be written.
        """

        def connected() -> "Spool":
            connection = _connect(path)
            try:
                return cls(connection, path, bytes_max, age_max_s, clock or SystemClock())
            except BaseException:
                connection.close()
                raise

        try:
            if not path.parent.is_dir():  # SQLite makes the names within durable, not that of the folder
                path.parent.mkdir(parents=True, exist_ok=True)
                sync_folder(path.parent.parent)
            try:
                return connected()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                aside = path.with_name(f"{path.name}.corrupt-{time.time_ns()}")
                path.rename(aside)
                for leftover in ("-wal", "-shm"):
                    path.with_name(path.name + leftover).unlink(missing_ok=True)
                log.error("spool %s was damaged (%s); put aside as %s", path, error, aside)
                return connected()
        except (OSError, sqlite3.OperationalError) as error:
            raise EnvironmentFault(f"cannot open the spool {path}: {error}", "Check data_dir and its disk.") from error

    @property
    def epoch(self) -> str:
        """The running life of the spool."""
        return self._epoch

    @property
    def running_s(self) -> float:
        """How long agents have run on this spool."""
        return self._ran_before_s + self._clock.monotonic_s() - self._opened_s

    def accept(self, sample: Sample) -> bool:
        """Number and keep a sample; durable when this returns. False when its id is known already.

        Raises:
            EnvironmentFault: the disk is full or fails; the sample was not kept.
        """
        with self._lock, _Transaction(self._db, self._path):
            known = "SELECT count(*) FROM ledger WHERE sample_id = ?"
            if self._one(known, sample.sample_id):
                return False
            head = int(self._one("SELECT head FROM lives WHERE epoch = ?", self._epoch)) + 1
            self._db.execute("UPDATE lives SET head = ? WHERE epoch = ?", (head, self._epoch))
            payload = codec.encode(msgspec.structs.replace(sample, epoch=self._epoch, sequence=head))
            self._db.execute(
                "INSERT INTO queue (sample_id, value, bytes, payload, epoch, sequence, accepted_s)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (sample.sample_id, sample.scores.value, len(payload), payload, self._epoch, head, self.running_s),
            )
            self._db.execute(
                "INSERT INTO ledger (sample_id, state, reason) VALUES (?, 'accepted', ?)",
                (sample.sample_id, sample.reason),
            )
            self._count("accepted")
            self._count(f"reason:{sample.reason}")
            self._count("held_bytes", len(payload))
            self._count("held_rows")
            self._let_go()
        return True

    def expire(self) -> None:
        """Let go what is too old; the uplink calls it from time to time.

        Raises:
            EnvironmentFault: the disk fails; nothing has changed.
        """
        with self._lock, _Transaction(self._db, self._path):
            self._let_go()

    def pending(self, limit: int, exclude: Collection[bytes] = ()) -> list[Queued]:
        """The most valuable samples that wait, without those in `exclude`.

        Raises:
            EnvironmentFault: the disk cannot be read; so do `held`, `ended`, `epochs` and `figures`.
        """
        with self._lock, _Reading(self._path):
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
        with self._lock, _Reading(self._path):
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
            for entry in receipt.ledger:
                gone = self._db.execute("DELETE FROM ended WHERE epoch = ? AND sequence = ?", entry).rowcount
                self._count("ended_rows", -gone)
            self._prune()
            self._set("running_s", int(self.running_s))

    def renew(self, epoch: str) -> bool:
        """Begin a new epoch, if `epoch` is the running one: the centre has seen it further than it is here.

        Raises:
            EnvironmentFault: the disk fails; the epoch stays.
        """
        with self._lock:
            if epoch != self._epoch:
                return False
            with _Transaction(self._db, self._path):
                self._start_life()
            self._mark.keep(self._epoch, self._opens)
        log.warning("the spool is an old image of itself: it goes on as epoch %s", self._epoch)
        return True

    def ended(self, limit: int) -> list[Ended]:
        """The oldest entries of the ledger that the centre has not receipted."""
        query = "SELECT epoch, sequence, sample_id, value, state FROM ended ORDER BY epoch, sequence LIMIT ?"
        with self._lock, _Reading(self._path):
            return [Ended(*row) for row in self._db.execute(query, (limit,))]

    def epochs(self) -> tuple[SpoolEpoch, ...]:
        """How far each life is: the running one, and those of which something still waits."""
        with self._lock, _Reading(self._path):
            waiting: dict[str, tuple[int, int]] = {}
            for table in ("queue", "ended"):
                query = f"SELECT epoch, min(sequence), count(*) FROM {table} WHERE epoch != '' GROUP BY epoch"  # noqa: S608
                for epoch, tail, count in self._db.execute(query):
                    known = waiting.get(epoch, (tail, 0))
                    waiting[epoch] = min(tail, known[0]), count + known[1]
            lives = self._db.execute("SELECT epoch, head FROM lives ORDER BY number DESC").fetchall()
        found = [
            SpoolEpoch(epoch, head, *waiting.get(epoch, (head + 1, 0)))
            for epoch, head in lives
            if epoch == self._epoch or epoch in waiting
        ]
        return tuple(found[:EPOCHS_REPORTED])

    def spent(self) -> tuple[float, int]:
        """When the day of the byte budget began, in running time, and how many bytes of it are used up."""
        with self._lock:
            return float(self._figure("day_began_s") or 0), self._figure("day_bytes") or 0

    def spend(self, began_s: float, used: int) -> None:
        """Make durable that bytes are used up, before they are.

        Raises:
            EnvironmentFault: the disk fails: nothing may be sent.
        """
        with self._lock, _Transaction(self._db, self._path):
            self._set("day_began_s", math.ceil(began_s))
            self._set("day_bytes", used)
            self._set("running_s", int(self.running_s))

    def figures(self) -> SpoolFigures:
        """Counts for the heartbeat."""
        with self._lock, _Reading(self._path):
            counted = dict(self._db.execute("SELECT name, value FROM figures").fetchall())
        reasons = {name.split(":")[1]: value for name, value in counted.items() if name.startswith("reason:")}
        of = {
            name: counted.get(name, 0)
            for name in ("accepted", "receipted", "evicted", "refused", "declined", "expired", "unreported")
        }
        return SpoolFigures(counted.get("held_rows", 0), counted.get("held_bytes", 0), by_reason=reasons, **of)

    def ledger(self) -> dict[bytes, str]:
        """State of the last `LEDGER_MAX` samples accepted: accepted, receipted, evicted, refused or declined."""
        with self._lock:
            return dict(self._db.execute("SELECT sample_id, state FROM ledger").fetchall())

    def close(self) -> None:
        """Close the file; nothing is pending in memory."""
        with self._lock:
            try:
                with _Transaction(self._db, self._path):
                    self._set("running_s", int(self.running_s))
            except EnvironmentFault as error:  # what was accepted is on disk all the same
                log.warning("%s", error)
            self._db.close()

    def _begin_life(self) -> None:
        """Go on in the epoch of last time, or begin a new one."""
        row = self._db.execute("SELECT epoch FROM lives ORDER BY number DESC LIMIT 1").fetchone()
        self._opens = self._figure("opens") or 0
        if row is None or not self._mark.fits(row[0], self._opens):
            self._start_life()
        else:
            self._epoch = row[0]
        self._opens += 1
        self._set("opens", self._opens)

    def _start_life(self) -> None:
        self._epoch = new_epoch()
        self._db.execute("INSERT INTO lives (epoch, head) VALUES (?, 0)", (self._epoch,))

    def _let_go(self) -> None:
        """Drop what is too old, then the least valuable until the bound holds; it may be the newest."""
        oldest = self.running_s - self._age_max_s
        if oldest > 0:
            query = "SELECT sample_id FROM queue WHERE accepted_s < ? ORDER BY accepted_s LIMIT 1000"
            for (name,) in self._db.execute(query, (oldest,)).fetchall():
                self._end(name, "expired")
        while (self._figure("held_bytes") or 0) > self._bytes_max:
            self._end(self._one("SELECT sample_id FROM queue ORDER BY value LIMIT 1"), "evicted")

    def _end(self, name: bytes, state: str) -> bool:
        row = self._db.execute(
            "DELETE FROM queue WHERE sample_id = ? RETURNING bytes, epoch, sequence, value", (name,)
        ).fetchone()
        if row is None:
            return False
        size, epoch, sequence, value = row
        self._db.execute("UPDATE ledger SET state = ? WHERE sample_id = ?", (state, name))
        self._count(state)
        self._count("held_bytes", -size)
        self._count("held_rows", -1)
        if state in ("evicted", "expired", "declined") and epoch:
            self._db.execute(
                "INSERT OR IGNORE INTO ended VALUES (?, ?, ?, ?, ?)", (epoch, sequence, name, value, state)
            )
            self._count("ended_rows")
            if (self._figure("ended_rows") or 0) > ENDED_MAX:
                oldest = "SELECT epoch, sequence FROM ended ORDER BY epoch, sequence LIMIT 1"
                self._db.execute(f"DELETE FROM ended WHERE (epoch, sequence) = ({oldest})")  # noqa: S608  our own text
                self._count("ended_rows", -1)
                self._count("unreported")
        return True

    def _prune(self) -> None:
        """Forget the oldest ended entries beyond the bound."""
        self._db.execute(
            "DELETE FROM ledger WHERE state != 'accepted' AND number <= (SELECT max(number) - ? FROM ledger)",
            (LEDGER_MAX,),
        )

    def _count(self, name: str, by: int = 1) -> None:
        self._db.execute(
            "INSERT INTO figures VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + ?", (name, by, by)
        )

    def _set(self, name: str, value: int) -> None:
        self._db.execute("INSERT OR REPLACE INTO figures VALUES (?, ?)", (name, value))

    def _figure(self, name: str) -> int | None:
        row = self._db.execute("SELECT value FROM figures WHERE name = ?", (name,)).fetchone()
        return int(row[0]) if row else None

    def _one(self, query: str, *parameters: object) -> Any:
        return self._db.execute(query, parameters).fetchone()[0]


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.executescript(_SCHEMA)
        there = {row[1] for row in connection.execute("PRAGMA table_info(queue)")}
        for name, kind in _ADDED:
            if name not in there:
                connection.execute(f"ALTER TABLE queue ADD COLUMN {name} {kind}")
        connection.executescript(_SCHEMA_ADDED)
    except sqlite3.Error:
        connection.close()
        raise
    return connection


def _batches(names: Collection[bytes], size: int) -> Iterator[list[bytes]]:
    """The names in lists of at most `size`."""
    rest = list(names)
    for start in range(0, len(rest), size):
        yield rest[start : start + size]


class _Reading:
    """A failure to read becomes a sentence about the disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        """Nothing is locked: one connection reads and writes."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.OperationalError):
            raise EnvironmentFault(
                f"cannot read {self._path}: {error}", "Check the disk that holds data_dir."
            ) from error


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
