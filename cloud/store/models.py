"""Tables of the centre. SQLite by default, PostgreSQL through the same code."""

from typing import Any

from sqlalchemy import JSON, BigInteger, Float, ForeignKey, Index, Integer, LargeBinary, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

EPOCH_MAX = 32


class Base(DeclarativeBase):
    """Root of the mapping."""


class SampleRow(Base):
    """A sample; its picture is a blob named `jpeg`."""

    __tablename__ = "samples"
    sample_id: Mapped[bytes] = mapped_column(LargeBinary(16), primary_key=True)
    gateway_id: Mapped[str] = mapped_column(String(63))
    site_id: Mapped[str] = mapped_column(String(63))
    camera_id: Mapped[str] = mapped_column(String(63))
    captured_at_ns: Mapped[int] = mapped_column(BigInteger)
    received_at_ns: Mapped[int] = mapped_column(BigInteger)
    release_id: Mapped[str] = mapped_column(String(80))
    backbone: Mapped[str] = mapped_column(String(64))
    width_px: Mapped[int] = mapped_column(Integer)
    height_px: Mapped[int] = mapped_column(Integer)
    jpeg: Mapped[str] = mapped_column(String(64))
    embedding: Mapped[bytes] = mapped_column(LargeBinary)
    predictions: Mapped[list[dict[str, object]]] = mapped_column(JSON)
    scores: Mapped[dict[str, float]] = mapped_column(JSON)
    value: Mapped[float] = mapped_column(Float)
    reason: Mapped[str] = mapped_column(String(20))
    pixel_path: Mapped[str] = mapped_column(String(120))
    boxes: Mapped[list[dict[str, object]] | None] = mapped_column(JSON)
    variant: Mapped[str | None] = mapped_column(String(64))
    epoch: Mapped[str | None] = mapped_column(String(EPOCH_MAX))
    sequence: Mapped[int | None] = mapped_column(BigInteger)
    __table_args__ = (
        Index("samples_by_sequence", "gateway_id", "epoch", "sequence"),
        Index("samples_by_arrival", received_at_ns.desc(), sample_id),
        Index("samples_by_value", site_id, value.desc(), sample_id),
    )


class EmbeddingRow(Base):
    """What another backbone than its own says of a sample, computed here from its picture."""

    __tablename__ = "embeddings"
    sample_id: Mapped[bytes] = mapped_column(LargeBinary(16), primary_key=True)
    backbone: Mapped[str] = mapped_column(String(64), primary_key=True)
    embedding: Mapped[bytes] = mapped_column(LargeBinary)


class EndedRow(Base):
    """A sample that will never come: its gateway let it go, or it was refused here."""

    __tablename__ = "ended"
    gateway_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(EPOCH_MAX), primary_key=True)
    sequence: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    sample_id: Mapped[bytes] = mapped_column(LargeBinary(16))
    value: Mapped[float] = mapped_column(Float)
    state: Mapped[str] = mapped_column(String(20))
    at_ns: Mapped[int] = mapped_column(BigInteger)


class EpochRow(Base):
    """How far a gateway's spool was, the furthest that it ever said."""

    __tablename__ = "epochs"
    gateway_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    epoch: Mapped[str] = mapped_column(String(EPOCH_MAX), primary_key=True)
    head: Mapped[int] = mapped_column(BigInteger)
    tail: Mapped[int] = mapped_column(BigInteger)
    waiting: Mapped[int] = mapped_column(BigInteger)
    went_back: Mapped[int] = mapped_column(Integer)
    at_ns: Mapped[int] = mapped_column(BigInteger)


class LabelRow(Base):
    """What somebody said about a sample; never overwritten, the newest counts, an empty label takes it back."""

    __tablename__ = "labels"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    sample_id: Mapped[bytes] = mapped_column(ForeignKey("samples.sample_id"))
    scenario: Mapped[str] = mapped_column(String(63))
    label: Mapped[str] = mapped_column(String(120))
    author: Mapped[str] = mapped_column(String(120))
    at_ns: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (Index("labels_by_sample", "scenario", "sample_id", "number"),)


class StateRow(Base):
    """The last reported state of a gateway, as JSON of `common.messages.State`."""

    __tablename__ = "states"
    gateway_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    state: Mapped[bytes] = mapped_column(LargeBinary)


class QuarantineRow(Base):
    """A message that was refused, and why."""

    __tablename__ = "quarantine"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    gateway_id: Mapped[str] = mapped_column(String(63))
    topic: Mapped[str] = mapped_column(String(200))
    reason: Mapped[str] = mapped_column(String(500))
    payload: Mapped[bytes] = mapped_column(LargeBinary)
    at_ns: Mapped[int] = mapped_column(BigInteger)


class ContributionRow(Base):
    """A gateway's statistics of a scenario on a backbone; the newest replaces the one before."""

    __tablename__ = "contributions"
    scenario: Mapped[str] = mapped_column(String(63), primary_key=True)
    backbone: Mapped[str] = mapped_column(String(64), primary_key=True)
    client: Mapped[str] = mapped_column(String(63), primary_key=True)
    arrays: Mapped[bytes] = mapped_column(LargeBinary)
    meta: Mapped[dict[str, object]] = mapped_column(JSON)
    at_ns: Mapped[int] = mapped_column(BigInteger)


class ExclusionRow(Base):
    """A site or gateway that was unlearned: nothing of it counts."""

    __tablename__ = "exclusions"
    name: Mapped[str] = mapped_column(String(63), primary_key=True)
    author: Mapped[str] = mapped_column(String(120))
    at_ns: Mapped[int] = mapped_column(BigInteger)


class RunRow(Base):
    """A round: queued, running, and how it ended."""

    __tablename__ = "runs"
    run_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    started_ns: Mapped[int] = mapped_column(BigInteger, index=True)
    finished_ns: Mapped[int | None] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(40))
    record: Mapped[dict[str, object]] = mapped_column(JSON)


class ReleaseRow(Base):
    """A signed release."""

    __tablename__ = "releases"
    release_id: Mapped[str] = mapped_column(String(80), primary_key=True)
    sequence: Mapped[int] = mapped_column(Integer, unique=True)
    manifest: Mapped[bytes] = mapped_column(LargeBinary)
    signature: Mapped[bytes] = mapped_column(LargeBinary)
    gate: Mapped[dict[str, object]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(20))
    created_at_ns: Mapped[int] = mapped_column(BigInteger)
    base: Mapped[str | None] = mapped_column(String(80))


class AssignmentRow(Base):
    """The release that a gateway is told to run, as the roles signed it."""

    __tablename__ = "assignments"
    gateway_id: Mapped[str] = mapped_column(String(63), primary_key=True)
    release_id: Mapped[str] = mapped_column(String(80))
    sequence: Mapped[int] = mapped_column(Integer)
    renew_at_ns: Mapped[int] = mapped_column(BigInteger)
    signed: Mapped[bytes] = mapped_column(LargeBinary)


class LayerRow(Base):
    """Where a layer comes from."""

    __tablename__ = "layers"
    layer: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    scenario: Mapped[str] = mapped_column(String(63))
    parent: Mapped[str] = mapped_column(String(64))
    samples: Mapped[str] = mapped_column(String(64), index=True)
    record: Mapped[dict[str, object]] = mapped_column(JSON)
    at_ns: Mapped[int] = mapped_column(BigInteger)


class SampleSetRow(Base):
    """Sample ids, sorted and joined, under the hash of that."""

    __tablename__ = "sample_sets"
    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    ids: Mapped[bytes] = mapped_column(LargeBinary)


class DatasetVersionRow(Base):
    """A version of what is learnt from (`cloud.curation.versions`); only its conflicts are brought up to date."""

    __tablename__ = "dataset_versions"
    scenario: Mapped[str] = mapped_column(String(63), primary_key=True)
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    hash: Mapped[str] = mapped_column(String(64))
    at_ns: Mapped[int] = mapped_column(BigInteger)
    summary: Mapped[dict[str, object]] = mapped_column(JSON)
    conflicts: Mapped[list[dict[str, Any]]] = mapped_column(JSON)
    content: Mapped[bytes] = mapped_column(LargeBinary)


class LabelDecisionRow(Base):
    """What a person decided about a picture in conflict, of a dataset or uploaded; the newest counts."""

    __tablename__ = "label_decisions"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    scenario: Mapped[str] = mapped_column(String(63))
    picture_id: Mapped[bytes] = mapped_column(LargeBinary(16))
    label: Mapped[str] = mapped_column(String(120))
    author: Mapped[str] = mapped_column(String(120))
    at_ns: Mapped[int] = mapped_column(BigInteger)
    __table_args__ = (Index("label_decisions_by_scenario", "scenario", "picture_id", "number"),)


class AuditRow(Base):
    """Who did what, when. Only ever added to."""

    __tablename__ = "audits"
    number: Mapped[int] = mapped_column(Integer, primary_key=True)
    actor: Mapped[str] = mapped_column(String(120))
    action: Mapped[str] = mapped_column(String(120))
    detail: Mapped[dict[str, object]] = mapped_column(JSON)
    at_ns: Mapped[int] = mapped_column(BigInteger)


class RolloutLineRow(Base):
    """A line of the rollouts' ledger (`cloud.rollout.entries`). Only ever added to."""

    __tablename__ = "rollout_lines"
    number: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    rollout_id: Mapped[str] = mapped_column(String(40), index=True)
    kind: Mapped[str] = mapped_column(String(20))
    actor: Mapped[str] = mapped_column(String(120))
    at_ns: Mapped[int] = mapped_column(BigInteger)
    line: Mapped[bytes] = mapped_column(LargeBinary)
