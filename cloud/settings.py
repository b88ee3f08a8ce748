"""Every key of cloud.toml. `headframe cloud config keys` prints them from here."""

from datetime import time
from pathlib import Path
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator
from pydantic_settings import SettingsConfigDict

from common.errors import OperatorError
from common.settings import BrokerSection, RoleSettings, Section
from common.topics import SHARDS


class CloudBrokerSection(BrokerSection):
    """[broker]"""

    embedded: bool = Field(True, description="Start our own broker (nats-server) on host:port; false uses yours.")
    tls: bool = Field(
        False, description="Our own broker takes TLS with client certificates only: first `headframe cloud ca init`."
    )
    log_file: Path | None = Field(
        None, description="Log of your broker: what it refuses is counted, audited and an alarm on the console."
    )


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


class OfferSettings(Section):
    """[offers]: what the centre asks for of sites that offer before they send."""

    samples_per_hour: int = Field(600, ge=1, description="Samples asked for per hour, over all sites that offer.")
    similarity_max: float = Field(
        0.92, gt=0, le=1, description="An offer more similar (cosine) to a known sample of any site is not asked for."
    )


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
    every_hours: float = Field(
        0.0, ge=0, description="Start a round by itself when the last one began so long ago; 0: never by time."
    )
    drift_cameras: int = Field(
        0,
        ge=0,
        description="Start a round by itself when so many cameras have drifted since the last; 0: never by drift.",
    )
    rounds_per_day: int = Field(
        24, ge=0, description="Rounds that may start by themselves within 24 hours; 0: no bound. Yours always start."
    )
    round_deadline_s: float = Field(60.0, gt=0, description="A round closes at this deadline with whoever answered.")
    quorum: float = Field(0.5, ge=0, le=1, description="A round needs answers of this share of the gateways online.")
    head: Literal["lda", "ridge"] = Field(
        "lda", description="How heads are solved: by linear discriminant analysis, or by least squares."
    )
    shrinkage: float = Field(0.3, gt=0, le=1, description="Share of the identity in the covariance of the head.")
    dimensions: int = Field(512, ge=8, description="The head is solved in so many principal directions.")
    personal_weight: float = Field(20.0, ge=1, description="Weight of a site's own samples in its personal head.")
    personal_labels_min: int = Field(4, ge=1, description="Labels a site needs before it can get a head of its own.")
    tolerance: float = Field(0.02, ge=0, le=1, description="Gate: how far a site or a class may drop.")
    statistics_bytes_max: int = Field(
        0,
        ge=0,
        description="Bytes that a gateway's statistics of a scenario may have; 0 loses nothing, 600000 costs next to"
        " nothing, 55000 some tenths of a point (docs/learning.md).",
    )
    quarantine: bool = Field(True, description="Leave out gateways whose statistics are scaled or whose labels lie.")
    gateway_samples_ratio_max: float = Field(
        10.0,
        ge=0,
        description="A gateway's statistics count for at most so many times the median gateway's samples; 0: no bound.",
    )


class PrivacySettings(Section):
    """[privacy]: what the centre may see of what gateways have learnt (docs/privacy.md)."""

    class_samples_min: int = Field(
        0, ge=0, description="A gateway does not tell of a class of which it has fewer labelled samples."
    )
    masked: tuple[str, ...] = Field(
        (), description="Scenarios of which the centre sees sums over several gateways only; no gateway by itself."
    )
    cohort: int = Field(16, ge=3, le=256, description="Gateways of a masked sum, about.")
    cohort_min: int = Field(5, ge=2, le=256, description="A masked sum over fewer gateways is not opened.")
    directions: int = Field(
        128, ge=2, le=1024, description="Masked statistics describe so many directions of the embedding."
    )
    epsilon: float = Field(
        0.0,
        ge=0,
        description="ε of a round: gateways add noise to masked statistics; 0: none. Needs headframe[privacy].",
    )
    delta: float = Field(1e-6, gt=0, lt=0.1, description="δ of it: well below one over the number of samples.")
    epsilon_total: float = Field(
        0.0, ge=0, description="ε of all rounds of a scenario together; beyond it is not asked. 0: no bound."
    )


class WaveSettings(Section):
    """[[rollout.waves]]: counted from the beginning; one without number, share and list asks for everyone."""

    gateways: int = Field(0, ge=0, description="So many gateways.")
    share: float = Field(0.0, ge=0, le=1, description="This share of the fleet; the larger of the two counts.")
    among: tuple[str, ...] = Field((), description="Only these gateways, sites or labels of `rollout.labels`.")


class LimitSettings(Section):
    """[rollout.limits]: what a new release may do before it is stopped."""

    false_alarm: float = Field(0.01, gt=0, le=0.5, description="Chance that a release within its limits is stopped.")
    failed_ok: float = Field(0.02, gt=0, lt=0.5, description="Gateways that may fail after it ran, and say so.")
    failed_bad: float = Field(0.05, gt=0, lt=1, description="The failure rate that must be found.")
    silent_ok: float = Field(
        0.004, gt=0, lt=0.5, description="Gateways that may fall silent under it, beyond those that do without it."
    )
    silent_bad: float = Field(0.04, gt=0, lt=1, description="The rate of silence that must be found.")
    refused_ok: float = Field(0.05, gt=0, lt=0.5, description="Gateways that may refuse it before it runs.")
    refused_bad: float = Field(0.20, gt=0, lt=1, description="The rate of refusals that must be found.")
    errors_max: float = Field(0.01, ge=0, le=1, description="Errors per look from which a gateway has failed.")
    restarts_max: int = Field(2, ge=0, description="Starts of the agent from which on a gateway has failed.")
    disagreement_max: float = Field(
        0.20, ge=0, le=1, description="Looks named otherwise than by the release before, beyond measured improvement."
    )
    moved_max: float = Field(
        0.6,
        gt=0,
        lt=1,
        description="Of the frames that the release before names a class on, those it may name otherwise.",
    )
    flags_change_max: float = Field(0.15, ge=0, le=1, description="Change of the share of striking looks.")
    scores_change_max: float = Field(0.10, ge=0, le=1, description="Change of the mean top probability.")
    latency_ratio_max: float = Field(2.0, gt=1, description="Latency over that of the release before.")
    unseen_more_max: float = Field(
        0.10, gt=0, lt=1, description="Growth of the share of due looks that do not happen, for the box is too slow."
    )
    labels_against_max: float = Field(
        0.55, ge=0.5, lt=1, description="Of the labels on which one release alone is right, those for the old one."
    )


class RolloutSettings(Section):
    """[rollout]: how a new release reaches the fleet. A rollout under way keeps the plan it began with."""

    enabled: bool = Field(True, description="false: every gateway gets a new release at once.")
    waves: tuple[WaveSettings, ...] = Field((), description="By default 1, 5, 30, 150, 750 gateways, then everyone.")
    labels: dict[str, tuple[str, ...]] = Field({}, description="Names for lists of gateways and sites, for `among`.")
    healthy_frames: int = Field(200, ge=0, description="Looks by the new release before a gateway counts as healthy.")
    soak_s: float = Field(600.0, ge=0, description="A full wave is watched so long before the next one begins.")
    deadline_s: float = Field(3600.0, gt=0, description="A gateway that is silent so long after being told has failed.")
    offline_age_max_s: float = Field(2_592_000.0, gt=0, description="Not heard of for longer: no part of the fleet.")
    windows: tuple[str, ...] = Field((), description="Hours in which gateways are told, e.g. 22:00-04:00, site time.")
    timezone: str = Field("UTC", description="Time zone of sites, e.g. Asia/Shanghai.")
    timezones: dict[str, str] = Field({}, description="Sites with another time zone.")
    site_bytes_per_s: float = Field(0.0, ge=0, description="What a site's line may carry for releases; 0: no limit.")
    pace: float = Field(0.25, gt=0, le=1, description="Gateways under way at once, as a share of those judged.")
    limits: LimitSettings = LimitSettings()

    @field_validator("windows")
    @classmethod
    def _check_windows(cls, windows: tuple[str, ...]) -> tuple[str, ...]:
        for text in windows:
            parse_window(text)
        return windows

    @field_validator("timezone")
    @classmethod
    def _check_zone(cls, name: str) -> str:
        return _check_timezone(name)

    @field_validator("timezones")
    @classmethod
    def _check_zones(cls, zones: dict[str, str]) -> dict[str, str]:
        return {site: _check_timezone(name) for site, name in zones.items()}


class SharingSettings(Section):
    """[sharing]: releases are published once for all gateways that need the same bytes."""

    enabled: bool = Field(True, description="false: each gateway is told, and given, everything by itself.")
    bytes_per_s: float = Field(
        0.0,
        ge=0,
        description="What the centre may publish of releases; a bound for layers given one by one too. 0: none.",
    )
    keep_s: float = Field(3600.0, gt=0, description="Cleared from the broker when nobody has asked for it so long.")
    bytes_max: int = Field(
        1_000_000_000, ge=0, description="What may lie at the broker, retained, at once; the oldest goes first."
    )


def parse_window(text: str) -> tuple[int, int]:
    """`22:00-04:00` as minutes of the day.

    Raises:
        ValueError: not of this form.
    """
    begin, separator, end = text.partition("-")
    if not separator:
        raise ValueError(f"{text!r} is no window: write 22:00-04:00")
    return _minute(begin), _minute(end)


def _minute(text: str) -> int:
    found = time.fromisoformat(text.strip())
    return found.hour * 60 + found.minute


def _check_timezone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"there is no time zone {name!r}") from error
    return name


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
    offers: OfferSettings = OfferSettings()
    privacy: PrivacySettings = PrivacySettings()
    rollout: RolloutSettings = RolloutSettings()
    sharing: SharingSettings = SharingSettings()

    def broker_log(self) -> Path | None:
        """The log of the broker in use, when it can be read."""
        return self.data_dir / "broker" / "broker.log" if self.broker.embedded else self.broker.log_file

    @property
    def database_url(self) -> str:
        """`database`, or SQLite in data_dir."""
        return self.database or f"sqlite:///{self.data_dir / 'headframe.db'}"
