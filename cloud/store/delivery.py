"""Which samples of a gateway are accounted for: how far its spool was, what is stored, and what will never come.

Every sample has a number in its spool's epoch, without holes. A number is stored, or ended (evicted, expired, refused),
or still with the gateway; one that is none of these is lost, and the report says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import Select, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from cloud.store.models import EPOCH_MAX, EndedRow, EpochRow, SampleRow
from cloud.store.sessions import Sessions
from common.errors import WireError
from common.messages import Ended, SpoolEpoch

EPOCHS_MAX = 64
"""Of one gateway; one that invents more than this loses its oldest, and is seen to."""
SEQUENCE_MAX = 2**62
STATES = ("evicted", "expired", "declined", "refused")


@dataclass(frozen=True, slots=True)
class Gap:
    """What is known of one epoch of one gateway."""

    gateway_id: str
    epoch: str
    head: int
    """Samples it has accepted, by the furthest that it said."""
    stored: int
    ended: int
    """Let go or refused, each with its entry."""
    waiting: int
    """Still with the gateway, by its last word."""
    missing: int
    """None of these: lost."""
    clashes: int
    """Numbers that two samples have: an old image of the disk was run."""
    went_back: int
    """How often it said to be less far than before."""


class DeliveryTables(Sessions):
    """Part of `cloud.store.Store`."""

    def put_epochs(self, gateway_id: str, epochs: Sequence[SpoolEpoch], at_ns: int) -> list[str]:
        """Keep what a gateway says of its spool; returns the epochs of which it was further before.

        Raises:
            WireError: a number that no spool gives.
        """
        for said in epochs:
            check_number(said.epoch, said.head, least=0)
            if not 0 < said.tail <= said.head + 1 or not 0 <= said.waiting <= said.head:
                raise WireError(f"epoch {said.epoch} of {gateway_id} contradicts itself")
        back: list[str] = []
        with self._write() as session:
            for said in epochs:
                row = session.get(EpochRow, (gateway_id, said.epoch))
                if row is None:
                    row = EpochRow(gateway_id=gateway_id, epoch=said.epoch, head=0, went_back=0)
                    session.add(row)
                if said.head < row.head:
                    back.append(said.epoch)
                    row.went_back += 1
                row.head = max(row.head, said.head)
                row.tail, row.waiting, row.at_ns = said.tail, said.waiting, at_ns
            session.flush()
            of_gateway = select(EpochRow.epoch).where(EpochRow.gateway_id == gateway_id)
            old = session.scalars(of_gateway.order_by(EpochRow.at_ns.desc()).offset(EPOCHS_MAX)).all()
            if old:
                session.execute(delete(EpochRow).where(EpochRow.gateway_id == gateway_id, EpochRow.epoch.in_(old)))
        return back

    def add_ended(self, gateway_id: str, ended: Sequence[Ended], at_ns: int) -> None:
        """Keep entries of a gateway's ledger; durable on return, and the same again is harmless.

        Raises:
            WireError: an entry is none; nothing was stored.
        """
        for entry in ended:
            check_number(entry.epoch, entry.sequence, least=1)
            if len(entry.sample_id) != 16 or entry.state not in STATES or not abs(entry.value) < float("inf"):
                raise WireError(f"an entry of the ledger of {gateway_id} is none")
        if not ended:
            return
        insert = postgresql.insert if self._engine.dialect.name == "postgresql" else sqlite.insert
        rows = [
            {
                "gateway_id": gateway_id,
                "epoch": entry.epoch,
                "sequence": entry.sequence,
                "sample_id": entry.sample_id,
                "value": entry.value,
                "state": entry.state,
                "at_ns": at_ns,
            }
            for entry in ended
        ]
        with self._write() as session:
            session.execute(insert(EndedRow).on_conflict_do_nothing(), rows)

    def gaps(self) -> list[Gap]:
        """Every epoch of every gateway, accounted for from the stored rows.

        What a gateway said last is compared with the numbers up to there only: what it has accepted since then may not
        hide a loss. Below its tail every number must be accounted for; above, all but as many as it said it still has.
        """
        stored = _accounted(SampleRow)
        both = (SampleRow.gateway_id == EndedRow.gateway_id) & (SampleRow.epoch == EndedRow.epoch)
        came_after_all = select(SampleRow.sample_id).where(both & (SampleRow.sequence == EndedRow.sequence)).exists()
        ended = _accounted(EndedRow).where(~came_after_all)
        with self._read() as session:
            held = {(row[0], row[1]): _Accounted(*row[2:]) for row in session.execute(stored)}
            gone = {(row[0], row[1]): _Accounted(*row[2:]) for row in session.execute(ended)}
            said = {(row.gateway_id, row.epoch): row for row in session.scalars(select(EpochRow))}
        return [
            _gap(*name, held.get(name, _NOTHING), gone.get(name, _NOTHING), said.get(name))
            for name in sorted({*held, *gone, *said})
        ]


@dataclass(frozen=True, slots=True)
class _Accounted:
    rows: int
    distinct: int
    highest: int
    to_head: int
    """Different numbers up to the head that the gateway said last."""
    below_tail: int


_NOTHING = _Accounted(0, 0, 0, 0, 0)


def _accounted(table: type[SampleRow] | type[EndedRow]) -> Select[Any]:
    number = table.sequence
    says = (EpochRow.gateway_id == table.gateway_id) & (EpochRow.epoch == table.epoch)
    query: Any = (
        select(
            table.gateway_id,
            table.epoch,
            func.count(),
            func.count(number.distinct()),
            func.max(number),
            func.count(case((number <= EpochRow.head, number)).distinct()),
            func.count(case((number < EpochRow.tail, number)).distinct()),
        )
        .join(EpochRow, says, isouter=True)
        .where(table.epoch.is_not(None))
        .group_by(table.gateway_id, table.epoch)
    )
    return cast(Select[Any], query)


def _gap(gateway_id: str, epoch: str, held: _Accounted, gone: _Accounted, said: EpochRow | None) -> Gap:
    head = max(held.highest, gone.highest, said.head if said else 0)
    missing = waiting = 0
    if said:
        waiting = min(said.waiting, head - held.distinct - gone.distinct)
        missing = max(
            0,
            said.tail - 1 - held.below_tail - gone.below_tail,
            said.head - held.to_head - gone.to_head - said.waiting,
        )
    return Gap(
        gateway_id=gateway_id,
        epoch=epoch,
        head=head,
        stored=held.distinct,
        ended=gone.distinct,
        waiting=max(0, waiting),
        missing=missing,
        clashes=held.rows - held.distinct,
        went_back=said.went_back if said else 0,
    )


def check_number(epoch: str, sequence: int, *, least: int) -> None:
    """Raises:
    WireError: no number that a spool gives.
    """
    if not 0 < len(epoch) <= EPOCH_MAX or not epoch.isalnum() or not epoch.isascii():
        raise WireError(f"{epoch[:40]!r} is no epoch of a spool")
    if not least <= sequence < SEQUENCE_MAX:
        raise WireError(f"sequence {sequence} is out of bounds")
