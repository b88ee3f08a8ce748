"""Samples and labels in the store."""

from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import numpy as np
from sqlalchemy import Select, func, select
from sqlalchemy.orm import Session, sessionmaker

from cloud.store.blobs import Blobs
from cloud.store.models import LabelRow, SampleRow
from cloud.store.records import LabelledSet, StoredSample
from common.errors import OperatorError
from common.messages import Prediction, Sample, Scores

IN_MAX = 500  # parameters of one IN (...)


class SampleTables:
    """Part of `cloud.store.Store`."""

    _sessions: sessionmaker[Session]
    _blobs: Blobs

    def add_samples(self, batch: Sequence[Sample], at_ns: int) -> int:
        """Store samples, pictures first, then all rows in one transaction; returns how many were new.

        Raises:
            EnvironmentFault: the disk is full; nothing of the batch may be receipted.
        """
        names = [self._blobs.put(sample.jpeg) for sample in batch]
        with self._sessions.begin() as session:
            known = set(self._known(session, [sample.sample_id for sample in batch]))
            new = 0
            for sample, name in zip(batch, names, strict=True):
                if sample.sample_id not in known:
                    known.add(sample.sample_id)
                    session.add(_row(sample, name, at_ns))
                    new += 1
        return new

    def sample(self, sample_id: bytes) -> StoredSample | None:
        """One sample, or None."""
        with self._sessions() as session:
            row = session.get(SampleRow, sample_id)
            return next(self._stored(session, [row])) if row else None

    def jpeg(self, sample_id: bytes) -> bytes:
        """The picture of a sample.

        Raises:
            KeyError: no such sample.
        """
        with self._sessions() as session:
            row = session.get(SampleRow, sample_id)
            if row is None:
                raise KeyError(sample_id.hex())
            return self._blobs.get(row.jpeg)

    def sample_ids(self) -> set[bytes]:
        """Ids of all samples."""
        with self._sessions() as session:
            return set(session.scalars(select(SampleRow.sample_id)))

    def samples(
        self, *, site: str | None = None, labelled: bool | None = None, limit: int = 100, offset: int = 0
    ) -> list[StoredSample]:
        """Samples, newest first."""
        query = select(SampleRow).order_by(SampleRow.received_at_ns.desc(), SampleRow.sample_id)
        if site is not None:
            query = query.where(SampleRow.site_id == site)
        if labelled is not None:
            given = SampleRow.sample_id.in_(_current().with_only_columns(LabelRow.sample_id))
            query = query.where(given if labelled else ~given)
        with self._sessions() as session:
            return list(self._stored(session, session.scalars(query.limit(limit).offset(offset)).all()))

    def queue(self, scenario: str, limit: int) -> list[StoredSample]:
        """What waits for a label of this scenario: most valuable first, the sites in turn."""
        done = _current(scenario).with_only_columns(LabelRow.sample_id)
        place = func.row_number().over(partition_by=SampleRow.site_id, order_by=SampleRow.value.desc())
        ranked = select(SampleRow.sample_id, SampleRow.value, place.label("place")).where(
            SampleRow.sample_id.not_in(done)
        )
        inner = ranked.subquery()
        query = (
            select(SampleRow)
            .join(inner, inner.c.sample_id == SampleRow.sample_id)
            .order_by(inner.c.place, inner.c.value.desc())
            .limit(limit)
        )
        with self._sessions() as session:
            return list(self._stored(session, session.scalars(query).all()))

    def add_label(self, sample_id: bytes, scenario: str, label: str, author: str, at_ns: int) -> None:
        """Add to a sample's history; an empty label takes the last one back. Saying the same again changes nothing.

        Raises:
            OperatorError: there is no such sample.
        """
        self.add_labels([(sample_id, scenario, label)], author, at_ns)

    def add_labels(self, labels: Sequence[tuple[bytes, str, str]], author: str, at_ns: int) -> int:
        """Several labels (sample, scenario, label) in one transaction: all or none; returns how many were new.

        Raises:
            OperatorError: a sample does not exist; nothing was stored.
        """
        new = 0
        with self._sessions.begin() as session:
            known = set(self._known(session, [name for name, _, _ in labels]))
            for name, scenario, label in labels:
                if name not in known:
                    raise OperatorError(f"there is no sample {name.hex()}", "Labels refer to uploaded samples.")
                history = select(LabelRow.label).where(LabelRow.sample_id == name, LabelRow.scenario == scenario)
                last = session.scalars(history.order_by(LabelRow.number.desc()).limit(1)).first()
                if (last or "") != label:
                    session.add(LabelRow(sample_id=name, scenario=scenario, label=label, author=author, at_ns=at_ns))
                    session.flush()
                    new += 1
        return new

    def labels(self, scenario: str) -> dict[bytes, str]:
        """The newest label of each sample."""
        with self._sessions() as session:
            return {row.sample_id: row.label for row in session.scalars(_current(scenario))}

    def labelled(self, scenario: str, backbone: str) -> LabelledSet:
        """Labelled samples whose embedding is of this backbone."""
        query = (
            _current(scenario)
            .join(SampleRow, SampleRow.sample_id == LabelRow.sample_id)
            .where(SampleRow.backbone == backbone)
            .with_only_columns(
                SampleRow.sample_id, SampleRow.gateway_id, SampleRow.site_id, SampleRow.embedding, LabelRow.label
            )
            .order_by(SampleRow.sample_id)
        )
        with self._sessions() as session:
            rows = session.execute(query).all()
        embeddings = [np.frombuffer(row[3], "<f2").astype(np.float32) for row in rows]
        return LabelledSet(
            [row[0] for row in rows],
            [row[1] for row in rows],
            [row[2] for row in rows],
            np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32),
            [row[4] for row in rows],
        )

    def counts(self) -> dict[str, Any]:
        """Samples, labelled samples, and samples by site."""
        with self._sessions() as session:
            counted = session.execute(select(SampleRow.site_id, func.count()).group_by(SampleRow.site_id)).all()
            by_site = {row[0]: row[1] for row in counted}
            labelled = session.scalar(select(func.count()).select_from(_current().subquery()))
        return {"samples": sum(by_site.values()), "labels": labelled or 0, "by_site": by_site}

    @staticmethod
    def _known(session: Session, names: Sequence[bytes]) -> Iterator[bytes]:
        for start in range(0, len(names), IN_MAX):
            part = names[start : start + IN_MAX]
            yield from session.scalars(select(SampleRow.sample_id).where(SampleRow.sample_id.in_(part)))

    def _stored(self, session: Session, rows: Sequence[SampleRow]) -> Iterator[StoredSample]:
        names = [row.sample_id for row in rows]
        labels: dict[bytes, dict[str, str]] = {}
        for start in range(0, len(names), IN_MAX):
            part = _current().where(LabelRow.sample_id.in_(names[start : start + IN_MAX]))
            for label in session.scalars(part):
                labels.setdefault(label.sample_id, {})[label.scenario] = label.label
        for row in rows:
            yield StoredSample(
                **{name: getattr(row, name) for name in _PLAIN},
                predictions=msgspec.convert(row.predictions, tuple[Prediction, ...]),
                scores=msgspec.convert(row.scores, Scores),
                labels=labels.get(row.sample_id, {}),
            )


_PLAIN = (
    "sample_id", "gateway_id", "site_id", "camera_id", "captured_at_ns", "received_at_ns", "release_id", "backbone",
    "width_px", "height_px", "reason", "pixel_path",
)  # fmt: skip


def _row(sample: Sample, jpeg: str, at_ns: int) -> SampleRow:
    return SampleRow(
        sample_id=sample.sample_id,
        gateway_id=sample.gateway_id,
        site_id=sample.site_id,
        camera_id=sample.camera_id,
        captured_at_ns=sample.captured_at_ns,
        received_at_ns=at_ns,
        release_id=sample.release_id,
        backbone=sample.backbone,
        width_px=sample.width_px,
        height_px=sample.height_px,
        jpeg=jpeg,
        embedding=sample.embedding,
        predictions=msgspec.to_builtins(sample.predictions),
        scores=msgspec.to_builtins(sample.scores),
        value=sample.scores.value,
        reason=sample.reason,
        pixel_path=sample.pixel_path,
    )


def _current(scenario: str | None = None) -> Select[LabelRow]:
    """The newest label of each (sample, scenario), without those taken back."""
    newest = select(func.max(LabelRow.number)).group_by(LabelRow.sample_id, LabelRow.scenario)
    if scenario is not None:
        newest = newest.where(LabelRow.scenario == scenario)
    return select(LabelRow).where(LabelRow.number.in_(newest), LabelRow.label != "")
