"""Many sample rows at once, at the pace of the driver.

SQLAlchemy's own executemany costs 30 us a row in Python, three times what SQLite takes to store it (measured); here it
makes the statement, once per dialect, and the driver gets the rows as they are.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final, cast

import msgspec
from sqlalchemy import Connection, Dialect, Table
from sqlalchemy.dialects import postgresql, sqlite

from cloud.store.models import SampleRow
from common.messages import Sample

IN_MAX = 500  # parameters of one IN (...)
_TABLE = cast(Table, SampleRow.__table__)
COLUMNS: Final = tuple(column.name for column in _TABLE.columns)
_json = msgspec.json.Encoder().encode


def row_of(sample: Sample, jpeg: str, at_ns: int) -> tuple[Any, ...]:
    """Values of `COLUMNS`, JSON as text; `jpeg` is where the picture lies."""
    return (
        sample.sample_id, sample.gateway_id, sample.site_id, sample.camera_id, sample.captured_at_ns, at_ns,
        sample.release_id, sample.backbone, sample.width_px, sample.height_px, jpeg, sample.embedding,
        _json(sample.predictions).decode(), _json(sample.scores).decode(), sample.scores.value, sample.reason,
        sample.pixel_path, _json(sample.boxes).decode(), sample.variant, sample.epoch or None,
        sample.sequence if sample.epoch else None,
    )  # fmt: skip


def insert_rows(connection: Connection, rows: Sequence[tuple[Any, ...]]) -> int:
    """Insert rows of `row_of` but those whose id is there already; returns how many were new."""
    statement, is_by_name = _statement(connection.dialect)
    given: Any = [dict(zip(COLUMNS, row, strict=True)) for row in rows] if is_by_name else rows
    return connection.exec_driver_sql(statement, given).rowcount


def stored_ids(connection: Connection, names: Sequence[bytes]) -> set[bytes]:
    """Those of `names` that samples have."""
    place = "?" if connection.dialect.name == "sqlite" else "%s"
    found: set[bytes] = set()
    for start in range(0, len(names), IN_MAX):
        part = tuple(names[start : start + IN_MAX])
        asked = f"SELECT sample_id FROM samples WHERE sample_id IN ({','.join([place] * len(part))})"  # noqa: S608
        found.update(bytes(row[0]) for row in connection.exec_driver_sql(asked, part))
    return found


@lru_cache(maxsize=4)
def _statement(dialect: Dialect) -> tuple[str, bool]:
    """The text, and whether the driver takes its parameters by name; else in the order of `COLUMNS`."""
    insert = postgresql.insert if dialect.name == "postgresql" else sqlite.insert
    compiled = insert(_TABLE).on_conflict_do_nothing(index_elements=["sample_id"]).compile(dialect=dialect)
    places = getattr(compiled, "positiontup", None)
    assert places is None or tuple(places) == COLUMNS  # noqa: S101  an insert of a whole table
    return str(compiled), places is None
