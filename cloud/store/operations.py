"""States, quarantine, contributions, runs, releases and the audit log in the store."""

import io
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from sqlalchemy import delete, func, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from cloud.store.models import AuditRow, ContributionRow, ExclusionRow, QuarantineRow, ReleaseRow, RunRow, StateRow
from cloud.store.records import QUEUED, RUNNING, SUM, Contribution, Release, Run
from cloud.store.sessions import Sessions
from common.errors import OperatorError
from common.messages import State

QUARANTINE_MAX = 10_000
QUARANTINE_BYTES = 64 * 1024


class OperationTables(Sessions):
    """Part of `cloud.store.Store`."""

    def put_state(self, state: State) -> None:
        """Replace the last reported state of a gateway."""
        self.put_states([state])

    def put_states(self, states: Sequence[State]) -> None:
        """Replace the last reported states of several gateways, each named once, in one transaction."""
        rows = [{"gateway_id": state.gateway_id, "state": msgspec.json.encode(state)} for state in states]
        if not rows:
            return
        insert = (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(StateRow)
        query = insert.on_conflict_do_update(
            index_elements=[StateRow.gateway_id], set_={"state": insert.excluded.state}
        )
        with self._write() as session:
            session.execute(query, rows)

    def states(self) -> list[State]:
        """The last reported state of every gateway, by gateway."""
        with self._read() as session:
            rows = session.scalars(select(StateRow).order_by(StateRow.gateway_id))
            return [msgspec.json.decode(row.state, type=State) for row in rows]

    def quarantine(self, gateway_id: str, topic: str, reason: str, payload: bytes, at_ns: int) -> None:
        """Keep a refused message (its first bytes) with the reason; the oldest beyond the bound are dropped."""
        with self._write() as session:
            session.add(
                QuarantineRow(
                    gateway_id=gateway_id[:63],
                    topic=topic[:200],
                    reason=reason[:500],
                    payload=payload[:QUARANTINE_BYTES],
                    at_ns=at_ns,
                )
            )
            session.flush()
            newest = session.scalar(select(func.max(QuarantineRow.number))) or 0
            session.execute(delete(QuarantineRow).where(QuarantineRow.number <= newest - QUARANTINE_MAX))

    def quarantined(self, limit: int = 100) -> list[tuple[str, str, str]]:
        """(gateway, topic, reason) of refused messages, newest first."""
        with self._read() as session:
            rows = session.scalars(select(QuarantineRow).order_by(QuarantineRow.number.desc()).limit(limit))
            return [(row.gateway_id, row.topic, row.reason) for row in rows]

    def put_contribution(
        self,
        scenario: str,
        backbone: str,
        client: str,
        arrays: Mapping[str, NDArray[np.generic]],
        meta: Mapping[str, object],
        at_ns: int,
    ) -> None:
        """Replace a gateway's statistics: repetition is harmless. The arrays are packed (`common.packing`), so they are
        kept as they are: compressing them saves next to nothing."""
        buffer = io.BytesIO()
        np.savez(buffer, allow_pickle=False, **dict(arrays))
        row = ContributionRow(
            scenario=scenario, backbone=backbone, client=client, arrays=buffer.getvalue(), meta=dict(meta), at_ns=at_ns
        )
        with self._write() as session:
            session.merge(row)

    def contributions(self, scenario: str, backbone: str, clients: Collection[str] | None = None) -> list[Contribution]:
        """The newest statistics of every gateway, by gateway, or those of some."""
        query = select(ContributionRow).where(
            ContributionRow.scenario == scenario, ContributionRow.backbone == backbone
        )
        if clients is not None:
            query = query.where(ContributionRow.client.in_(clients))
        found = []
        with self._read() as session:
            for row in session.scalars(query.order_by(ContributionRow.client)):
                with np.load(io.BytesIO(row.arrays), allow_pickle=False) as arrays:
                    found.append(Contribution(row.client, {k: arrays[k] for k in arrays.files}, row.meta, row.at_ns))
        return found

    def contribution_records(self, scenario: str, backbone: str) -> dict[str, dict[str, Any]]:
        """Gateway -> what is noted of its statistics: their classes, the samples that they cover, of which round."""
        query = select(ContributionRow.client, ContributionRow.meta)
        where = ContributionRow.scenario == scenario, ContributionRow.backbone == backbone
        with self._read() as session:
            return {row[0]: row[1] for row in session.execute(query.where(*where))}

    def contributors(self) -> list[str]:
        """Gateways that have statistics here."""
        with self._read() as session:
            return sorted(session.scalars(select(ContributionRow.client).distinct()))

    def sums(self, scenario: str, backbone: str) -> dict[str, tuple[str, ...]]:
        """The masked sums that are kept, with the gateways that are in each."""
        query = select(ContributionRow.client, ContributionRow.meta).where(
            ContributionRow.scenario == scenario,
            ContributionRow.backbone == backbone,
            ContributionRow.client.like(f"{SUM}%"),
        )
        with self._read() as session:
            rows: list[tuple[str, Any]] = [(client, meta) for client, meta in session.execute(query)]
        return {client: tuple(meta.get("members", ())) for client, meta in rows}

    def delete_contributions(self, clients: Collection[str], scenario: str = "", backbone: str = "") -> None:
        """Forget the statistics of these gateways, of all scenarios and backbones or of one."""
        query = delete(ContributionRow).where(ContributionRow.client.in_(clients))
        if scenario:
            query = query.where(ContributionRow.scenario == scenario, ContributionRow.backbone == backbone)
        with self._write() as session:
            session.execute(query)

    def exclude(self, name: str, author: str, at_ns: int) -> None:
        """Let nothing of a site or gateway count from now on."""
        with self._write() as session:
            session.merge(ExclusionRow(name=name, author=author, at_ns=at_ns))

    def include(self, name: str) -> bool:
        """Let it count again; returns whether it did not."""
        with self._write() as session:
            row = session.get(ExclusionRow, name)
            if row is not None:
                session.delete(row)
            return row is not None

    def excluded(self) -> frozenset[str]:
        """Sites and gateways of which nothing counts."""
        with self._read() as session:
            return frozenset(session.scalars(select(ExclusionRow.name)))

    def add_run(self, run: Run) -> None:
        """Record a new run."""
        with self._write() as session:
            session.add(RunRow(**_fields(run)))

    def update_run(self, run: Run) -> None:
        """Replace a run's status and record."""
        with self._write() as session:
            session.merge(RunRow(**_fields(run)))

    def runs(self, limit: int | None = 200) -> list[Run]:
        """Runs, newest first; all of them with a limit of None."""
        with self._read() as session:
            rows = session.scalars(select(RunRow).order_by(RunRow.started_ns.desc()).limit(limit))
            return [_run(row) for row in rows]

    def open_runs(self) -> list[Run]:
        """Rounds that wait or are under way, oldest first."""
        with self._read() as session:
            rows = session.scalars(
                select(RunRow).where(RunRow.status.in_((QUEUED, RUNNING))).order_by(RunRow.started_ns, RunRow.run_id)
            )
            return [_run(row) for row in rows]

    def run(self, run_id: str) -> Run:
        """One of them.

        Raises:
            OperatorError: there is none.
        """
        with self._read() as session:
            row = session.get(RunRow, run_id)
            if row is None:
                raise OperatorError(f"there is no run {run_id!r}", "`headframe cloud runs` lists them.")
            return _run(row)

    def add_release(
        self,
        release_id: str,
        sequence: int,
        manifest: bytes,
        signature: bytes,
        gate: Mapping[str, Any],
        *,
        status: str,
        at_ns: int,
        base: str = "",
    ) -> None:
        """Record a release; when it is the active one, the one that was before is superseded in the same commit."""
        with self._write() as session:
            if status == "active":
                _supersede(session)
            session.add(
                ReleaseRow(
                    release_id=release_id,
                    sequence=sequence,
                    manifest=manifest,
                    signature=signature,
                    gate=dict(gate),
                    status=status,
                    created_at_ns=at_ns,
                    base=base or None,
                )
            )

    def releases(self) -> list[Release]:
        """Releases, newest first."""
        with self._read() as session:
            rows = session.scalars(select(ReleaseRow).order_by(ReleaseRow.sequence.desc()))
            return [_release(row) for row in rows]

    def release(self, release_id: str) -> Release | None:
        """One release, or None."""
        with self._read() as session:
            row = session.get(ReleaseRow, release_id)
            return _release(row) if row else None

    def set_release_status(self, release_id: str, status: str) -> None:
        """Change a release's status; one that becomes active supersedes the active one in the same commit.

        Raises:
            OperatorError: there is no such release; nothing changed.
        """
        with self._write() as session:
            if status == "active":
                make_active(session, release_id)
                return
            row = session.get(ReleaseRow, release_id)
            if row is None:
                raise OperatorError(f"there is no release {release_id}", "`headframe cloud releases` lists them.")
            row.status = status

    def audit(self, actor: str, action: str, detail: Mapping[str, Any], at_ns: int) -> None:
        """Add to the log of who did what."""
        with self._write() as session:
            session.add(AuditRow(actor=actor, action=action, detail=dict(detail), at_ns=at_ns))

    def audits(self, limit: int = 100) -> list[dict[str, Any]]:
        """The log, newest first."""
        with self._read() as session:
            rows = session.scalars(select(AuditRow).order_by(AuditRow.number.desc()).limit(limit))
            return [{"actor": r.actor, "action": r.action, "detail": r.detail, "at_ns": r.at_ns} for r in rows]


def _supersede(session: Session) -> None:
    for row in session.scalars(select(ReleaseRow).where(ReleaseRow.status == "active")):
        row.status = "superseded"


def make_active(session: Session, release_id: str) -> None:
    """A release becomes the active one, and the one that was before is superseded, within the session's commit.

    Raises:
        OperatorError: there is no such release.
    """
    row = session.get(ReleaseRow, release_id)
    if row is None:
        raise OperatorError(f"there is no release {release_id}", "`headframe cloud releases` lists them.")
    _supersede(session)
    row.status = "active"


def _release(row: ReleaseRow) -> Release:
    parts = row.release_id, row.sequence, row.manifest, row.signature, row.gate, row.status, row.created_at_ns
    return Release(*parts, row.base or "")


def _run(row: RunRow) -> Run:
    return Run(row.run_id, row.started_ns, row.finished_ns, row.status, row.record)


def _fields(run: Run) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "started_ns": run.started_ns,
        "finished_ns": run.finished_ns,
        "status": run.status,
        "record": run.record,
    }
