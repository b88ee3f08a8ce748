"""Every key of cloud.toml. `headframe cloud config keys` prints them from here."""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import SettingsConfigDict

from common.errors import OperatorError
from common.settings import BrokerSection, RoleSettings, Section
from common.topics import SHARDS


class CloudBrokerSection(BrokerSection):
    """[broker]"""

    embedded: bool = Field(True, description="Start our own broker (nats-server) on host:port; false uses yours.")


class ConsoleSettings(Section):
    """[console]: the web page."""

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8080, ge=0, le=65535, description="0 picks a free port, written to data_dir/console.json.")


class IngestSettings(Section):
    """[ingest]"""

    shards: str = Field(
        "0-255",
        pattern=r"^(\d{1,3}-\d{1,3})?$",
        description="Shards whose samples this centre takes itself; empty: all are left to `headframe cloud ingest`.",
    )
    batch: int = Field(512, ge=1, le=10_000, description="Samples per commit at most.")
    batch_wait_s: float = Field(0.02, gt=0, description="A commit waits so long for its batch to fill.")
    queue: int = Field(2048, ge=1, description="Samples held in memory; above it the centre stops reading.")
    queue_bytes: int = Field(
        128_000_000, ge=1_000_000, description="Bytes of samples held in memory; above it the centre stops reading."
    )
    jpeg_bytes_max: int = Field(8_000_000, ge=10_000, description="Larger pictures are refused.")
    pixels_max: int = Field(40_000_000, ge=10_000, description="Pictures with more pixels are refused.")


def parse_shards(text: str) -> range:
    """`0-127`.

    Raises:
        OperatorError: no such range.
    """
    first, dash, last = text.partition("-")
    if not dash or not first.isdigit() or not last.isdigit() or not 0 <= int(first) <= int(last) < SHARDS:
        raise OperatorError(f"{text!r} is no range of shards", f"Write 0-127: they are numbered 0 to {SHARDS - 1}.")
    return range(int(first), int(last) + 1)


class LearningSettings(Section):
    """[learning]: when and how the centre learns."""

    new_labels: int = Field(0, ge=0, description="Start a round by itself after so many new labels; 0: only by hand.")
    round_deadline_s: float = Field(60.0, gt=0, description="A round closes at this deadline with whoever answered.")
    quorum: float = Field(0.5, ge=0, le=1, description="A round needs answers of this share of the gateways online.")
    shrinkage: float = Field(0.3, gt=0, le=1, description="Share of the identity in the covariance of the head.")
    dimensions: int = Field(512, ge=8, description="The head is solved in so many principal directions.")
    personal_weight: float = Field(20.0, ge=1, description="Weight of a site's own samples in its personal head.")
    personal_labels_min: int = Field(4, ge=1, description="Labels a site needs before it can get a head of its own.")
    tolerance: float = Field(0.02, ge=0, le=1, description="Gate: how far a site or a class may drop.")
    quarantine: bool = Field(True, description="Leave out gateways whose statistics are scaled or whose labels lie.")


class CloudSettings(RoleSettings):
    """cloud.toml"""

    model_config = SettingsConfigDict(env_prefix="HEADFRAME_CLOUD_")

    data_dir: Path = Field(Path("/var/lib/headframe/cloud"), description="Database, blobs, releases, signing key.")
    database: str | None = Field(None, description="SQLAlchemy URL; by default SQLite in data_dir.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Lowest level logged.")
    broker: CloudBrokerSection = CloudBrokerSection()
    console: ConsoleSettings = ConsoleSettings()
    ingest: IngestSettings = IngestSettings()
    learning: LearningSettings = LearningSettings()

    @property
    def database_url(self) -> str:
        """`database`, or SQLite in data_dir."""
        return self.database or f"sqlite:///{self.data_dir / 'headframe.db'}"
