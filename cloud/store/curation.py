"""Versions of datasets and people's decisions about labels in conflict, in the store."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, func, select
from sqlalchemy.orm import load_only

from cloud.store.models import DatasetVersionRow, LabelDecisionRow, LabelRow
from cloud.store.records import DatasetVersion
from cloud.store.sessions import Sessions


class CurationTables(Sessions):
    """Part of `cloud.store.Store`."""

    def put_version(
        self,
        scenario: str,
        hash_: str,
        content: bytes,
        summary: dict[str, Any],
        conflicts: list[dict[str, Any]],
        at_ns: int,
    ) -> int:
        """Keep a version and return its number; where it is the last one again, only the conflicts are renewed."""
        with self._write() as session:
            last = session.scalars(_newest(scenario)).first()
            if last is not None and last.hash == hash_:
                last.conflicts = list(conflicts)
                return last.number
            number = last.number + 1 if last else 1
            session.add(
                DatasetVersionRow(
                    scenario=scenario,
                    number=number,
                    hash=hash_,
                    at_ns=at_ns,
                    summary=summary,
                    conflicts=list(conflicts),
                    content=content,
                )
            )
        return number

    def versions(self, scenario: str | None = None, limit: int = 200) -> list[DatasetVersion]:
        """Versions without their content, by scenario, newest first."""
        query = select(DatasetVersionRow).order_by(DatasetVersionRow.scenario, DatasetVersionRow.number.desc())
        if scenario is not None:
            query = query.where(DatasetVersionRow.scenario == scenario)
        columns = ("number", "hash", "at_ns", "summary", "conflicts")
        with self._read() as session:
            rows = session.scalars(
                query.limit(limit).options(load_only(*(getattr(DatasetVersionRow, c) for c in columns)))
            )
            return [
                DatasetVersion(row.scenario, row.number, row.hash, row.at_ns, row.summary, row.conflicts)
                for row in rows
            ]

    def version_content(self, scenario: str, number: int | None = None) -> tuple[str, bytes] | None:
        """Hash and content of a version, by default of the newest; None where there is none."""
        query = select(DatasetVersionRow.hash, DatasetVersionRow.content).where(DatasetVersionRow.scenario == scenario)
        if number is not None:
            query = query.where(DatasetVersionRow.number == number)
        with self._read() as session:
            row = session.execute(query.order_by(DatasetVersionRow.number.desc()).limit(1)).first()
        return (row[0], row[1]) if row else None

    def add_decisions(self, scenario: str, labels: Sequence[tuple[bytes, str]], author: str, at_ns: int) -> None:
        """Record what a person decided about pictures; conflicts of the newest version that are about these only, and
        no others, are taken off its list."""
        names = {name.hex() for name, _ in labels}
        with self._write() as session:
            session.add_all(
                LabelDecisionRow(scenario=scenario, picture_id=name, label=label, author=author, at_ns=at_ns)
                for name, label in labels
            )
            last = session.scalars(_newest(scenario)).first()
            if last is not None:
                last.conflicts = [c for c in last.conflicts if not _is_about(c, names)]

    def decisions(self, scenario: str) -> dict[bytes, str]:
        """Picture -> the label last decided on."""
        newest = select(func.max(LabelDecisionRow.number)).where(LabelDecisionRow.scenario == scenario)
        newest = newest.group_by(LabelDecisionRow.picture_id)
        query = select(LabelDecisionRow.picture_id, LabelDecisionRow.label)
        with self._read() as session:
            return {row[0]: row[1] for row in session.execute(query.where(LabelDecisionRow.number.in_(newest)))}

    def disagreements(self, scenario: str) -> dict[bytes, tuple[str, ...]]:
        """Sample -> labels, where the newest labels that different people gave it differ."""
        newest = select(func.max(LabelRow.number)).where(LabelRow.scenario == scenario)
        newest = newest.group_by(LabelRow.sample_id, LabelRow.author)
        query = select(LabelRow.sample_id, LabelRow.label).where(LabelRow.number.in_(newest), LabelRow.label != "")
        found: dict[bytes, list[str]] = {}
        with self._read() as session:
            for name, label in session.execute(query.order_by(LabelRow.number)):
                found.setdefault(name, []).append(label)
        return {name: tuple(labels) for name, labels in found.items() if len(set(labels)) > 1}


def _newest(scenario: str) -> Select[DatasetVersionRow]:
    query = select(DatasetVersionRow).where(DatasetVersionRow.scenario == scenario)
    return query.order_by(DatasetVersionRow.number.desc()).limit(1)


def _is_about(conflict: dict[str, Any], names: set[str]) -> bool:
    return all(picture["id"] in names for picture in conflict["pictures"])
