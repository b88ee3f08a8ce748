"""The gateway's memory of its own samples: embeddings and labels, from which it teaches without sending pixels.

Embeddings are kept as uploaded (float16), so that the centre and the gateway sum the very same numbers.
"""

import sqlite3
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import EnvironmentFault
from common.messages import Sample

_SCHEMA = """
CREATE TABLE IF NOT EXISTS exemplars (
    number INTEGER PRIMARY KEY, sample_id BLOB NOT NULL UNIQUE, backbone TEXT NOT NULL, value REAL NOT NULL,
    embedding BLOB NOT NULL, jpeg BLOB
);
CREATE TABLE IF NOT EXISTS labels (
    sample_id BLOB NOT NULL REFERENCES exemplars (sample_id) ON DELETE CASCADE, scenario TEXT NOT NULL,
    label TEXT NOT NULL, PRIMARY KEY (sample_id, scenario)
) WITHOUT ROWID;
"""


class Exemplars:
    """Bounded: beyond `rows_max` the oldest unlabelled go first, then the oldest."""

    def __init__(self, connection: sqlite3.Connection, rows_max: int) -> None:
        self._db, self._rows_max = connection, rows_max
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: Path, rows_max: int = 20_000) -> "Exemplars":
        """Raises:
        EnvironmentFault: the file cannot be opened.
        """
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA foreign_keys=ON")
            connection.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise EnvironmentFault(f"cannot open {path}: {error}", "Check data_dir and its disk.") from error
        return cls(connection, rows_max)

    def remember(self, sample: Sample, *, keep_picture: bool) -> None:
        """Keep a sample's embedding, and its picture where labels are given on the site.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        row = (
            sample.sample_id,
            sample.backbone,
            sample.scores.value,
            sample.embedding,
            sample.jpeg if keep_picture else None,
        )
        with self._lock, self._transaction():
            self._db.execute(
                "INSERT OR IGNORE INTO exemplars (sample_id, backbone, value, embedding, jpeg) VALUES (?,?,?,?,?)", row
            )
            self._prune()

    def label(self, labels: Mapping[bytes, Mapping[str, str]]) -> int:
        """Set labels (sample -> scenario -> label; an empty one takes it back); returns how many samples are known.

        Raises:
            EnvironmentFault: the disk is full or fails; no label was set.
        """
        known = 0
        with self._lock, self._transaction():
            for name, given in labels.items():
                if not self._db.execute("SELECT 1 FROM exemplars WHERE sample_id = ?", (name,)).fetchone():
                    continue
                known += 1
                for scenario, label in given.items():
                    self._db.execute("DELETE FROM labels WHERE sample_id = ? AND scenario = ?", (name, scenario))
                    if label:
                        self._db.execute("INSERT INTO labels VALUES (?, ?, ?)", (name, scenario, label))
        return known

    def labelled(self, scenario: str, backbone: str) -> tuple[list[bytes], NDArray[np.float32], list[str]]:
        """Ids, embeddings float32 (n, d) and labels of a scenario on a backbone, in order of id."""
        with self._lock:
            rows = self._db.execute(
                "SELECT e.sample_id, e.embedding, l.label FROM exemplars e JOIN labels l USING (sample_id) "
                "WHERE l.scenario = ? AND e.backbone = ? ORDER BY e.sample_id",
                (scenario, backbone),
            ).fetchall()
        embeddings = [np.frombuffer(row[1], "<f2").astype(np.float32) for row in rows]
        stacked = np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32)
        return [row[0] for row in rows], stacked, [row[2] for row in rows]

    def stale(self, backbone: str, limit: int) -> list[tuple[bytes, bytes]]:
        """Ids and JPEGs of samples with a picture here and an embedding of another backbone; labelled ones first."""
        with self._lock:
            return self._db.execute(
                "SELECT sample_id, jpeg FROM exemplars WHERE jpeg IS NOT NULL AND backbone <> ? "
                "ORDER BY sample_id NOT IN (SELECT sample_id FROM labels), number LIMIT ?",
                (backbone, limit),
            ).fetchall()

    def look_again(self, sample_id: bytes, backbone: str, embedding: bytes) -> None:
        """Replace a sample's embedding by that of another backbone.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        with self._lock, self._transaction():
            row = backbone, embedding, sample_id
            self._db.execute("UPDATE exemplars SET backbone = ?, embedding = ? WHERE sample_id = ?", row)

    def drop_picture(self, sample_id: bytes) -> None:
        """Let a picture go that does not decode.

        Raises:
            EnvironmentFault: the disk is full or fails.
        """
        with self._lock, self._transaction():
            self._db.execute("UPDATE exemplars SET jpeg = NULL WHERE sample_id = ?", (sample_id,))

    def waiting(self, scenario: str, limit: int) -> list[bytes]:
        """Ids of pictures that wait for a label of this scenario, most valuable first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT sample_id FROM exemplars WHERE jpeg IS NOT NULL AND sample_id NOT IN "
                "(SELECT sample_id FROM labels WHERE scenario = ?) ORDER BY value DESC LIMIT ?",
                (scenario, limit),
            ).fetchall()
        return [row[0] for row in rows]

    def picture(self, sample_id: bytes) -> bytes | None:
        """JPEG of a sample whose picture is kept here."""
        with self._lock:
            row = self._db.execute("SELECT jpeg FROM exemplars WHERE sample_id = ?", (sample_id,)).fetchone()
        return row[0] if row else None

    def counts(self) -> dict[str, int]:
        """Samples remembered, and labels known."""
        with self._lock:
            return {
                "samples": self._db.execute("SELECT count(*) FROM exemplars").fetchone()[0],
                "labels": self._db.execute("SELECT count(*) FROM labels").fetchone()[0],
            }

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise EnvironmentFault(f"cannot write the exemplars: {error}", "Free space in data_dir.") from error
        finally:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")

    def _prune(self) -> None:
        (count,) = self._db.execute("SELECT count(*) FROM exemplars").fetchone()
        if count > self._rows_max:
            self._db.execute(
                "DELETE FROM exemplars WHERE number IN (SELECT number FROM exemplars ORDER BY sample_id IN "
                "(SELECT sample_id FROM labels), number LIMIT ?)",
                (count - self._rows_max,),
            )
