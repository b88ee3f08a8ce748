"""The ledger of rollouts in the store: lines in order, added by whoever has seen all before them."""

from collections.abc import Mapping, Sequence

from sqlalchemy import func, select

from cloud.store.models import AuditRow, ReleaseRow, RolloutLineRow
from cloud.store.operations import make_active
from cloud.store.records import LedgerLine
from cloud.store.sessions import Sessions

AUDITED = frozenset({"started", "paused", "resumed", "aborted", "completed", "rolled-back", "replaced", "superseded"})
"""Kinds that stand in the audit log too; the others are the engine's bookkeeping."""


class RolloutTables(Sessions):
    """Part of `cloud.store.Store`."""

    def ledger(self, after: int = 0) -> list[LedgerLine]:
        """The lines behind number `after`, in order."""
        query = select(RolloutLineRow).where(RolloutLineRow.number > after).order_by(RolloutLineRow.number)
        with self._read() as session:
            return [
                LedgerLine(row.number, row.rollout_id, row.kind, row.actor, row.at_ns, row.line)
                for row in session.scalars(query)
            ]

    def append_ledger(self, lines: Sequence[LedgerLine], *, activate: str = "", statuses: Mapping[str, str]) -> bool:
        """Add lines, numbered on from the last one that the caller has read; all in one commit.

        Args:
            activate: release that becomes the active one with them.
            statuses: releases whose status changes with them.

        Returns:
            False when another has added lines meanwhile: nothing was written; read them first.
        """
        if not lines:
            return True
        with self._write() as session:
            newest = session.scalar(select(func.max(RolloutLineRow.number))) or 0
            if newest != lines[0].number - 1:
                return False
            for line in lines:
                session.add(
                    RolloutLineRow(
                        number=line.number,
                        rollout_id=line.rollout_id,
                        kind=line.kind,
                        actor=line.actor,
                        at_ns=line.at_ns,
                        line=line.line,
                    )
                )
                if line.kind in AUDITED:
                    detail = {"rollout_id": line.rollout_id, "why": line.why}
                    session.add(
                        AuditRow(actor=line.actor, action=f"rollout {line.kind}", detail=detail, at_ns=line.at_ns)
                    )
            for release_id, status in statuses.items():
                row = session.get(ReleaseRow, release_id)
                if row is not None and row.status != "active":
                    row.status = status
            if activate:
                make_active(session, activate)
            return True
