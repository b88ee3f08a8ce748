"""Opens the database, brings its schema up to date, and offers the tables as one object."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy import Engine

from cloud.store.blobs import Blobs
from cloud.store.curation import CurationTables
from cloud.store.delivery import DeliveryTables
from cloud.store.embeddings import EmbeddingTables
from cloud.store.lineage import LineageTables
from cloud.store.operations import OperationTables
from cloud.store.rollouts import RolloutTables
from cloud.store.sessions import Sessions, begin_writing, connect, translate_faults
from common.errors import HeadframeError, OperatorError


class Store(EmbeddingTables, DeliveryTables, OperationTables, RolloutTables, LineageTables, CurationTables):
    """All that the centre remembers. Each method is a short session of its own; any thread may call it."""

    def __init__(self, engine: Engine, blobs: Path) -> None:
        Sessions.__init__(self, engine)
        self._blobs = Blobs(blobs)

    @classmethod
    def open(cls, url: str, blobs: Path) -> "Store":
        """Open the database at an SQLAlchemy URL and migrate it, in one transaction: all of it or nothing.

        Raises:
            EnvironmentFault: the database does not answer or cannot be written.
            OperatorError: the URL is wrong, or a newer version of the software has migrated the database.
        """
        engine = connect(url)
        try:
            _migrate(engine)
        except CommandError as error:
            engine.dispose()
            raise OperatorError(
                f"the database {engine.url.render_as_string(hide_password=True)} is of another version: {error}",
                "Run the version of headframe that wrote it, or a newer one.",
            ) from error
        except HeadframeError:
            engine.dispose()
            raise
        return cls(engine, blobs)

    def close(self) -> None:
        """Close all connections and leave the segment."""
        self._engine.dispose()
        self._blobs.close()


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")).replace("%", "%%"))
    with translate_faults(engine), begin_writing(engine) as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")
