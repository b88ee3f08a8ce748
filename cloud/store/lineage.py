"""Where layers come from, and which gateway was assigned which release, in the store."""

import hashlib
from collections.abc import Iterable, Sequence

import numpy as np
from sqlalchemy import select

from cloud.store.models import AssignmentRow, LayerRow, SampleRow, SampleSetRow
from cloud.store.records import Assignment, LayerRecord
from cloud.store.sessions import Sessions
from common.ids import SAMPLE_ID_BYTES


class LineageTables(Sessions):
    """Part of `cloud.store.Store`."""

    def put_layer(self, record: LayerRecord) -> None:
        """Record where a layer comes from; the same layer made again keeps its first record."""
        with self._write() as session:
            if session.get(LayerRow, record.layer) is None:
                session.add(
                    LayerRow(
                        layer=record.layer,
                        kind=record.kind,
                        scenario=record.scenario,
                        parent=record.parent,
                        samples=record.samples,
                        record=record.record,
                        at_ns=record.at_ns,
                    )
                )

    def layers(self) -> list[LayerRecord]:
        """Every layer whose origin is known, oldest first."""
        with self._read() as session:
            rows = session.scalars(select(LayerRow).order_by(LayerRow.at_ns, LayerRow.layer))
            return [
                LayerRecord(row.layer, row.kind, row.scenario, row.parent, row.samples, row.record, row.at_ns)
                for row in rows
            ]

    def put_sample_set(self, ids: Iterable[bytes]) -> str:
        """Keep a set of sample ids and return its name, a hash: the same set is kept once, an empty one not at all."""
        data = b"".join(sorted(set(ids)))
        if not data:
            return ""
        name = hashlib.blake2b(data, digest_size=32).hexdigest()
        with self._write() as session:
            if session.get(SampleSetRow, name) is None:
                session.add(SampleSetRow(name=name, ids=data))
        return name

    def sample_set(self, name: str) -> list[bytes]:
        """The ids of a set, in order."""
        with self._read() as session:
            row = session.get(SampleSetRow, name)
            data = row.ids if row else b""
        return [data[start : start + SAMPLE_ID_BYTES] for start in range(0, len(data), SAMPLE_ID_BYTES)]

    def sets_with(self, sample_id: bytes) -> list[str]:
        """Names of the sets that hold a sample."""
        wanted, found = np.void(sample_id), []
        with self._read() as session:
            for row in session.scalars(select(SampleSetRow).execution_options(yield_per=16)):
                ids = np.frombuffer(row.ids, dtype=f"V{SAMPLE_ID_BYTES}")
                if bool((ids == wanted).any()):
                    found.append(row.name)
        return found

    def seen_by(self, release_id: str) -> list[bytes]:
        """Ids of the samples that a release chose, oldest first."""
        query = select(SampleRow.sample_id).where(SampleRow.release_id == release_id)
        with self._read() as session:
            return list(session.scalars(query.order_by(SampleRow.captured_at_ns)))

    def assignment(self, gateway_id: str) -> Assignment | None:
        """What a gateway was told last."""
        with self._read() as session:
            row = session.get(AssignmentRow, gateway_id)
            return (
                Assignment(row.gateway_id, row.release_id, row.sequence, row.renew_at_ns, row.signed) if row else None
            )

    def put_assignments(self, assignments: Sequence[Assignment]) -> None:
        """Replace what gateways are told."""
        with self._write() as session:
            for item in assignments:
                session.merge(
                    AssignmentRow(
                        gateway_id=item.gateway_id,
                        release_id=item.release_id,
                        sequence=item.sequence,
                        renew_at_ns=item.renew_at_ns,
                        signed=item.signed,
                    )
                )

    def assigned(self) -> set[str]:
        """Every release that some gateway is told to run."""
        with self._read() as session:
            return set(session.scalars(select(AssignmentRow.release_id).distinct()))
