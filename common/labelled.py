"""The labelled pictures in a gateway's `exemplars.db`, which `edge.exemplars` writes, for whoever trains beside it."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import EnvironmentFault, OperatorError


def labelled_pictures(file: Path) -> list[tuple[bytes, str, str]]:
    """(sample id, scenario, label) of every sample with a picture here, in order.

    Raises:
        EnvironmentFault: the file cannot be read.
    """
    with _opened(file) as connection:
        rows = connection.execute(
            "SELECT e.sample_id, l.scenario, l.label FROM exemplars e JOIN labels l USING (sample_id) "
            "WHERE e.jpeg IS NOT NULL ORDER BY e.sample_id, l.scenario"
        ).fetchall()
    return [(bytes(name), str(scenario), str(label)) for name, scenario, label in rows]


def picture_of(file: Path, sample_id: bytes) -> bytes:
    """The JPEG of a sample.

    Raises:
        OperatorError: it has gone since: the oldest make room.
        EnvironmentFault: the file cannot be read.
    """
    with _opened(file) as connection:
        row = connection.execute("SELECT jpeg FROM exemplars WHERE sample_id = ?", (sample_id,)).fetchone()
    if not row or row[0] is None:
        raise OperatorError(f"the picture of {sample_id.hex()} is not kept any more", "The next round has others.")
    return bytes(row[0])


@contextmanager
def _opened(file: Path) -> Iterator[sqlite3.Connection]:
    """Read only."""
    try:
        connection = sqlite3.connect(f"{file.resolve().as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            yield connection
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise EnvironmentFault(f"cannot read {file}: {error}", "Check data_dir and its disk.") from error
