"""Opens the database, brings its schema up to date, and offers the tables as one object."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import sessionmaker

from cloud.store.blobs import Blobs
from cloud.store.operations import OperationTables
from cloud.store.samples import SampleTables
from common.errors import EnvironmentFault

BUSY_MS = 20_000


class Store(SampleTables, OperationTables):
    """All that the centre remembers. Each method is a short session of its own; any thread may call it."""

    def __init__(self, engine: Engine, blobs: Path) -> None:
        self._engine = engine
        self._sessions = sessionmaker(engine, expire_on_commit=False)
        self._blobs = Blobs(blobs)

    @classmethod
    def open(cls, url: str, blobs: Path) -> "Store":
        """Open the database at an SQLAlchemy URL and migrate it.

        Raises:
            EnvironmentFault: the database does not answer or cannot be written.
        """
        engine = create_engine(url)
        if engine.dialect.name == "sqlite":
            event.listen(engine, "connect", _set_sqlite)
        try:
            _migrate(engine)
        except OperationalError as error:
            engine.dispose()
            shown = engine.url.render_as_string(hide_password=True)
            raise EnvironmentFault(f"cannot open the database {shown}: {error.orig}", "Check `database`.") from error
        return cls(engine, blobs)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _set_sqlite(connection: object, _record: object) -> None:
    cursor = connection.cursor()  # type: ignore[attr-defined]
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", f"busy_timeout={BUSY_MS}"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
