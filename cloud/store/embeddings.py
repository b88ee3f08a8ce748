"""Embeddings that the centre computed itself, of backbones that came after a sample."""

from collections.abc import Mapping

from sqlalchemy import delete, select

from cloud.store.models import ContributionRow, EmbeddingRow, LabelRow, SampleRow
from cloud.store.samples import SampleTables, current_labels


class EmbeddingTables(SampleTables):
    """Part of `cloud.store.Store`."""

    def put_embeddings(self, backbone: str, embeddings: Mapping[bytes, bytes]) -> None:
        """Keep embeddings (float16) of samples on a backbone."""
        with self._write() as session:
            for name, embedding in embeddings.items():
                session.merge(EmbeddingRow(sample_id=name, backbone=backbone, embedding=embedding))

    def unembedded(self, backbone: str, *, unlabelled: int = 0) -> list[bytes]:
        """Ids of labelled samples that have no embedding on a backbone.

        Args:
            unlabelled: of the others, the newest so many are meant as well.
        """
        others = select(EmbeddingRow.sample_id).where(EmbeddingRow.backbone == backbone)
        labelled = current_labels().with_only_columns(LabelRow.sample_id)
        query = select(SampleRow.sample_id).where(SampleRow.backbone != backbone, SampleRow.sample_id.not_in(others))
        given = SampleRow.sample_id.in_(labelled)
        newest = query.where(~given).order_by(SampleRow.received_at_ns.desc(), SampleRow.sample_id).limit(unlabelled)
        with self._read() as session:
            found = list(session.scalars(query.where(given).order_by(SampleRow.sample_id)))
            return found + (list(session.scalars(newest)) if unlabelled else [])

    def pairs(self, old: str, new: str, limit: int) -> list[tuple[bytes, str, bytes, bytes]]:
        """Sample, site, and its embeddings (float16) on two backbones, where there are both; the newest."""
        names, sites = SampleRow.sample_id, SampleRow.site_id
        query = (
            select(names, sites, SampleRow.backbone, SampleRow.embedding)
            .where(names.in_(select(EmbeddingRow.sample_id).where(EmbeddingRow.backbone == new)))
            .order_by(SampleRow.received_at_ns.desc(), names)
            .limit(limit)
        )
        with self._read() as session:
            rows = session.execute(query).all()
            found = []
            for name, site, backbone, own in rows:
                before = own if backbone == old else _embedding(session.get(EmbeddingRow, (name, old)))
                after = _embedding(session.get(EmbeddingRow, (name, new)))
                if before and after:
                    found.append((name, site, before, after))
            return found

    def forget_backbone(self, backbone: str) -> None:
        """Remove what was computed or carried over for a backbone that no release has."""
        with self._write() as session:
            session.execute(delete(EmbeddingRow).where(EmbeddingRow.backbone == backbone))
            session.execute(delete(ContributionRow).where(ContributionRow.backbone == backbone))


def _embedding(row: EmbeddingRow | None) -> bytes:
    return row.embedding if row else b""
