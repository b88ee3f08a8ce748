"""Samples and labels in the store."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Select, and_, func, or_, select
from sqlalchemy.exc import StatementError
from sqlalchemy.orm import Session

from cloud.store.blobs import Blobs
from cloud.store.inserts import IN_MAX, insert_rows, row_of, stored_ids
from cloud.store.models import EmbeddingRow, LabelRow, QuarantineRow, SampleRow
from cloud.store.records import LabelledSet, StoredSample
from cloud.store.sessions import Sessions
from common.errors import EnvironmentFault, OperatorError, WireError
from common.ids import check_name
from common.ids import sample_id as content_id
from common.messages import Box, Prediction, Sample, Scores

log = logging.getLogger(__name__)

LABEL_MAX = 120
Alone = Callable[[], AbstractContextManager[None]]


class SampleTables(Sessions):
    """Part of `cloud.store.Store`."""

    _blobs: Blobs

    def add_samples(self, batch: Sequence[Sample], at_ns: int, alone: Alone = nullcontext) -> int:
        """Store samples, pictures first, then all rows in one transaction; returns how many were new.

        What is known already is left out before its picture is written; another process that stores the same sample at
        the same moment loses or wins at the row, and one of the two pictures is named by nothing.

        Args:
            alone: entered for what is done in Python, and left while the disk works.

        Raises:
            EnvironmentFault: the disk is full or the database does not answer; nothing of the batch is stored.
            WireError: the database does not take a value; nothing of the batch is stored.
        """
        with alone():
            fresh = self._fresh(batch)
        if not fresh:
            return 0
        places = self._blobs.append([(sample.sample_id, sample.jpeg) for sample in fresh])
        try:
            with self._write() as session, alone():
                rows = [row_of(sample, place, at_ns) for sample, place in zip(fresh, places, strict=True)]
                return insert_rows(session.connection(), rows)
        except (StatementError, OverflowError, ValueError) as error:
            reason = getattr(error, "orig", None) or error  # without the statement and its parameters
            raise WireError(f"the database does not take a value of the sample: {reason}") from error

    def sample(self, sample_id: bytes) -> StoredSample | None:
        """One sample, or None."""
        with self._read() as session:
            row = session.get(SampleRow, sample_id)
            return next(self._stored(session, [row])) if row else None

    def jpeg(self, sample_id: bytes) -> bytes:
        """The picture of a sample; its id is the hash of it, so a damaged disk is noticed.

        Raises:
            KeyError: no such sample.
            EnvironmentFault: the disk has damaged the picture.
        """
        with self._read() as session:
            row = session.get(SampleRow, sample_id)
        if row is None:
            raise KeyError(sample_id.hex())
        jpeg = self._blobs.get(row.jpeg)
        if content_id(jpeg, row.gateway_id, row.camera_id, row.captured_at_ns) != sample_id:
            raise EnvironmentFault(f"the picture of sample {sample_id.hex()} is damaged", "Restore it from a backup.")
        return jpeg

    def sample_ids(self) -> set[bytes]:
        """Ids of all samples."""
        with self._read() as session:
            return set(session.scalars(select(SampleRow.sample_id)))

    def recent_embeddings(self, limit: int) -> list[tuple[str, bytes, bytes]]:
        """Backbone, id and embedding (float16) of the newest samples, oldest first."""
        query = select(SampleRow.backbone, SampleRow.sample_id, SampleRow.embedding)
        with self._read() as session:
            rows = session.execute(query.order_by(SampleRow.received_at_ns.desc()).limit(limit)).all()
        return [(row[0], row[1], row[2]) for row in reversed(rows)]

    def known_ids(self, names: Sequence[bytes]) -> set[bytes]:
        """Those of `names` that are ids of samples."""
        with self._read() as session:
            return stored_ids(session.connection(), names)

    def samples(
        self,
        *,
        site: str | None = None,
        scenario: str | None = None,
        labelled: bool | None = None,
        limit: int | None = 100,
        offset: int = 0,
    ) -> list[StoredSample]:
        """Samples, newest first.

        Args:
            labelled: only those with a label, or only those without.
            scenario: whose labels `labelled` asks about; by default any.
            limit: None returns all.
        """
        query = select(SampleRow).order_by(SampleRow.received_at_ns.desc(), SampleRow.sample_id)
        if site is not None:
            query = query.where(SampleRow.site_id == site)
        if labelled is not None:
            given = SampleRow.sample_id.in_(current_labels(scenario).with_only_columns(LabelRow.sample_id))
            query = query.where(given if labelled else ~given)
        with self._read() as session:
            return list(self._stored(session, session.scalars(query.limit(limit).offset(offset)).all()))

    def queue(self, scenario: str, limit: int) -> list[StoredSample]:
        """What waits for a label of this scenario: most valuable first, the sites in turn."""
        return self.by_ids([name for name, _ in self._in_turn(scenario, limit)])

    def waiting(self, scenario: str, backbone: str, limit: int) -> tuple[list[bytes], NDArray[np.float32]]:
        """Ids and embeddings (n, d) of the first of `queue` whose embedding is of this backbone."""
        found = self._in_turn(scenario, limit, backbone)
        sizes = Counter(len(data) for _, data in found)
        size = max(sizes, key=lambda bytes_: (sizes[bytes_], bytes_), default=0)  # as in `labelled`
        kept = [(name, np.frombuffer(data, "<f2")) for name, data in found if len(data) == size]
        rows = np.array([row for _, row in kept], dtype=np.float32).reshape(len(kept), size // 2)
        return [name for name, _ in kept], rows

    def by_ids(self, names: Sequence[bytes]) -> list[StoredSample]:
        """These samples, in this order; those that there are not are left out."""
        found: dict[bytes, SampleRow] = {}
        with self._read() as session:
            for start in range(0, len(names), IN_MAX):
                query = select(SampleRow).where(SampleRow.sample_id.in_(names[start : start + IN_MAX]))
                found |= {row.sample_id: row for row in session.scalars(query)}
            return list(self._stored(session, [found[name] for name in names if name in found]))

    def newest_label(self) -> int:
        """Number of the newest label, of any scenario: it changes with each label that is given or taken back."""
        with self._read() as session:
            return session.scalar(select(func.max(LabelRow.number))) or 0

    def _in_turn(self, scenario: str, limit: int, backbone: str | None = None) -> list[tuple[bytes, bytes]]:
        """Id and embedding of what waits for a label: most valuable first, the sites in turn."""
        done = current_labels(scenario).with_only_columns(LabelRow.sample_id)
        place = func.row_number().over(partition_by=SampleRow.site_id, order_by=SampleRow.value.desc())
        ranked = select(SampleRow.sample_id, SampleRow.value, place.label("place")).where(
            SampleRow.sample_id.not_in(done)
        )
        inner = ranked.subquery()  # of an index alone (samples_by_value): a row is large, and only `limit` are read
        query = (
            select(SampleRow.sample_id, SampleRow.embedding)
            .join(inner, inner.c.sample_id == SampleRow.sample_id)
            .order_by(inner.c.place, inner.c.value.desc())
            .limit(limit)
        )
        if backbone is not None:
            query = query.where(SampleRow.backbone == backbone)
        with self._read() as session:
            return [(row[0], row[1]) for row in session.execute(query)]

    def add_label(self, sample_id: bytes, scenario: str, label: str, author: str, at_ns: int) -> None:
        """Add to a sample's history; an empty label takes the last one back. Saying the same again changes nothing.

        Raises:
            OperatorError: there is no such sample.
        """
        self.add_labels([(sample_id, scenario, label)], author, at_ns)

    def add_labels(self, labels: Sequence[tuple[bytes, str, str]], author: str, at_ns: int) -> int:
        """Several labels (sample, scenario, label) in one transaction: all or none; returns how many were new.

        Raises:
            OperatorError: a sample does not exist, or a label is no line of text; nothing was stored.
        """
        for _, scenario, label in labels:
            check_label(scenario, label)
        new = 0
        with self._write() as session:
            known = stored_ids(session.connection(), [name for name, _, _ in labels])
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
        with self._read() as session:
            return {row.sample_id: row.label for row in session.scalars(current_labels(scenario))}

    def gateways(self) -> list[tuple[str, str]]:
        """(gateway, site) of all samples."""
        with self._read() as session:
            rows = session.execute(select(SampleRow.gateway_id, SampleRow.site_id).distinct())
            return sorted((row[0], row[1]) for row in rows)

    def labelled_scenarios(self) -> list[str]:
        """Scenarios that people have labelled samples of."""
        with self._read() as session:
            return sorted(session.scalars(select(LabelRow.scenario).distinct()))

    def labelled(self, scenario: str, backbone: str) -> LabelledSet:
        """Labelled samples with their embeddings on this backbone: the gateway's, or one computed here.

        A backbone has one dimension. A gateway that names it and sends another one is outvoted and its rows are left
        out, so that it cannot stop the others from learning.
        """
        ours = and_(EmbeddingRow.sample_id == SampleRow.sample_id, EmbeddingRow.backbone == backbone)
        embedding = func.coalesce(EmbeddingRow.embedding, SampleRow.embedding)
        query = (
            current_labels(scenario)
            .join(SampleRow, SampleRow.sample_id == LabelRow.sample_id)
            .outerjoin(EmbeddingRow, ours)
            .where(or_(SampleRow.backbone == backbone, EmbeddingRow.embedding.is_not(None)))
            .with_only_columns(SampleRow.sample_id, SampleRow.gateway_id, SampleRow.site_id, embedding, LabelRow.label)
            .order_by(SampleRow.sample_id)
        )
        with self._read() as session:
            found = session.execute(query).all()
        sizes = Counter(len(row[3]) for row in found)
        size = max(sizes, key=lambda bytes_: (sizes[bytes_], bytes_), default=0)
        rows = [row for row in found if len(row[3]) == size]
        if len(rows) < len(found):
            log.warning("%d samples have an embedding of another size than the rest", len(found) - len(rows))
        embeddings = [np.frombuffer(row[3], "<f2").astype(np.float32) for row in rows]
        return LabelledSet(
            [row[0] for row in rows],
            [row[1] for row in rows],
            [row[2] for row in rows],
            np.stack(embeddings) if embeddings else np.zeros((0, 0), np.float32),
            [row[4] for row in rows],
        )

    def judged(self, scenario: str, backbone: str) -> list[tuple[bytes, str, str]]:
        """Sample, gateway and newest label of every sample that was ever labelled; empty where it was taken back."""
        newest = select(func.max(LabelRow.number)).where(LabelRow.scenario == scenario).group_by(LabelRow.sample_id)
        query = (
            select(SampleRow.sample_id, SampleRow.gateway_id, LabelRow.label)
            .join(LabelRow, SampleRow.sample_id == LabelRow.sample_id)
            .where(LabelRow.number.in_(newest), SampleRow.backbone == backbone)
        )
        with self._read() as session:
            return [(row[0], row[1], row[2]) for row in session.execute(query)]

    def label_count(self) -> int:
        """Labels that count."""
        with self._read() as session:
            return session.scalar(select(func.count()).select_from(current_labels().subquery())) or 0

    def counts(self) -> dict[str, Any]:
        """Samples, labels that count, refused messages that are kept, and samples by site."""
        with self._read() as session:
            counted = session.execute(select(SampleRow.site_id, func.count()).group_by(SampleRow.site_id)).all()
            by_site = {row[0]: row[1] for row in counted}
            labelled = session.scalar(select(func.count()).select_from(current_labels().subquery()))
            quarantined = session.scalar(select(func.count()).select_from(QuarantineRow))
        return {
            "samples": sum(by_site.values()),
            "labels": labelled or 0,
            "quarantined": quarantined or 0,
            "by_site": by_site,
        }

    def _fresh(self, batch: Sequence[Sample]) -> list[Sample]:
        """The first of each id, without those that are stored."""
        by_id: dict[bytes, Sample] = {}
        for sample in batch:
            by_id.setdefault(sample.sample_id, sample)
        if not by_id:
            return []
        with self._read() as session:
            known = stored_ids(session.connection(), list(by_id))
        return [sample for name, sample in by_id.items() if name not in known]

    def _stored(self, session: Session, rows: Sequence[SampleRow]) -> Iterator[StoredSample]:
        names = [row.sample_id for row in rows]
        labels: dict[bytes, dict[str, str]] = {}
        for start in range(0, len(names), IN_MAX):
            part = current_labels().where(LabelRow.sample_id.in_(names[start : start + IN_MAX]))
            for label in session.scalars(part):
                labels.setdefault(label.sample_id, {})[label.scenario] = label.label
        for row in rows:
            yield StoredSample(
                **{name: getattr(row, name) for name in _PLAIN},
                predictions=msgspec.convert(row.predictions, tuple[Prediction, ...]),
                scores=msgspec.convert(row.scores, Scores),
                boxes=msgspec.convert(row.boxes or [], tuple[Box, ...]),
                variant=row.variant or "",
                epoch=row.epoch or "",
                sequence=row.sequence or 0,
                labels=labels.get(row.sample_id, {}),
            )


_PLAIN = (
    "sample_id", "gateway_id", "site_id", "camera_id", "captured_at_ns", "received_at_ns", "release_id", "backbone",
    "width_px", "height_px", "reason", "pixel_path",
)  # fmt: skip


def check_label(scenario: str, label: str) -> None:
    """Raises:
    OperatorError: the scenario is no name, or the label is not one line of at most 120 characters.
    """
    check_name("scenario", scenario)
    if len(label) > LABEL_MAX or (label and not label.isprintable()) or label != label.strip():
        raise OperatorError(f"label {label[:40]!r} is not valid", f"Use one line of at most {LABEL_MAX} characters.")


def current_labels(scenario: str | None = None) -> Select[LabelRow]:
    """The newest label of each (sample, scenario), without those taken back."""
    newest = select(func.max(LabelRow.number)).group_by(LabelRow.sample_id, LabelRow.scenario)
    if scenario is not None:
        newest = newest.where(LabelRow.scenario == scenario)
    return select(LabelRow).where(LabelRow.number.in_(newest), LabelRow.label != "")
