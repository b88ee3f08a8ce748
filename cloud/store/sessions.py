"""How a transaction begins, and what the database's errors mean. Leaves the tables to the modules beside it.

SQLite: WAL and synchronous=FULL (NORMAL loses acknowledged rows in a power cut). Python's driver would begin a
transaction late and leave schema changes outside of it; here every transaction is begun explicitly. Writers take the
lock at once, so they wait for each other (`BUSY_MS`) instead of failing half-way; readers see one snapshot.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DataError,
    IntegrityError,
    InterfaceError,
    NoSuchModuleError,
    NotSupportedError,
    ProgrammingError,
    SQLAlchemyError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session, sessionmaker

from common.errors import EnvironmentFault, OperatorError

BUSY_MS = 20_000
PAGE_BYTES = 16_384
"""Of a new database: a sample's row is 3 KB, and pages of 4 KB that hold one each cost twice the time (measured)."""
CHECKPOINT_PAGES = 2048
"""SQLite copies its log of 32 MB into the database at once; by default 4 MB, which at a few thousand samples a second
is two more flushes of the disk for every batch."""
CACHE_KB = 65_536
"""Of pages, for each connection. In SQLite's 2 MB a batch from a whole fleet does not find its index pages: 55 us a row
instead of 40 with 150,000 samples of 12,000 gateways (measured)."""
DIALECTS = ("sqlite", "postgresql")
_WRITES = "headframe_writes"
_OURS = (IntegrityError, DataError, ProgrammingError, NotSupportedError)  # a wrong value or query, not a fault


class Sessions:
    """Short sessions on one engine; any thread may open one."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._readers = sessionmaker(engine, expire_on_commit=False)
        self._writers = sessionmaker(engine.execution_options(**{_WRITES: True}), expire_on_commit=False)

    @contextmanager
    def _read(self) -> Iterator[Session]:
        """Raises:
        EnvironmentFault: the database does not answer.
        """
        with translate_faults(self._engine), self._readers() as session:
            yield session

    @contextmanager
    def _write(self) -> Iterator[Session]:
        """Commits at the end; rolls back on any error.

        Raises:
            EnvironmentFault: the disk is full, or the database is locked or out of reach; nothing was written.
        """
        with translate_faults(self._engine), self._writers.begin() as session:
            yield session


def connect(url: str) -> Engine:
    """An engine for SQLite or PostgreSQL; nothing is opened yet.

    Raises:
        OperatorError: the URL is wrong, of another kind, or its driver is not installed.
    """
    hint = "Set `database` to sqlite:////path/to/file.db or postgresql+psycopg://user@host/name."
    try:
        engine = create_engine(url, json_serializer=lambda value: msgspec.json.encode(value).decode())
    except (ArgumentError, NoSuchModuleError) as error:
        raise OperatorError("`database` is not a database URL that can be used", hint) from error
    except ImportError as error:
        raise OperatorError(f"`database` needs a driver that is not installed: {error}", "Install it.") from error
    if engine.dialect.name not in DIALECTS:
        raise OperatorError(f"`database` is of kind {engine.dialect.name}", hint)
    if engine.dialect.name == "sqlite":
        event.listen(engine, "connect", _set_sqlite)
        event.listen(engine, "begin", _begin_sqlite)
    return engine


@contextmanager
def begin_writing(engine: Engine) -> Iterator[Connection]:
    """A bare connection inside a write transaction, for the migrations."""
    with engine.execution_options(**{_WRITES: True}).begin() as connection:
        yield connection


@contextmanager
def translate_faults(engine: Engine) -> Iterator[None]:
    """Turn what the environment did to the database into an `EnvironmentFault` that says where."""
    try:
        yield
    except (DatabaseError, InterfaceError, PoolTimeoutError) as error:
        if isinstance(error, _OURS):
            raise
        raise _fault(engine, error) from error


def _fault(engine: Engine, error: SQLAlchemyError) -> EnvironmentFault:
    is_file = engine.dialect.name == "sqlite"
    where = engine.url.database if is_file else engine.url.render_as_string(hide_password=True)
    reason = str(getattr(error, "orig", None) or error)
    if "disk is full" in reason or "No space left" in reason:
        return EnvironmentFault(f"The disk that holds {where} is full", "Free space or move data_dir to a larger disk.")
    return EnvironmentFault(
        f"The database {where} does not answer: {reason}",
        "Check the disk and its permissions." if is_file else "Check that it runs and `database` in cloud.toml.",
    )


def _set_sqlite(connection: object, _record: object) -> None:
    connection.isolation_level = None  # type: ignore[attr-defined]  # we begin ourselves, see _begin_sqlite
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in (
        f"page_size={PAGE_BYTES}",
        f"cache_size=-{CACHE_KB}",
        f"busy_timeout={BUSY_MS}",
        "journal_mode=WAL",
        "synchronous=FULL",
        "foreign_keys=ON",
        f"wal_autocheckpoint={CHECKPOINT_PAGES}",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")
