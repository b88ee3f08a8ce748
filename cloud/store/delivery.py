"""Which samples of a gateway are accounted for: how far its spool was, what is stored, and what will never come.

Every sample has a number in its spool's epoch, without holes. A number is stored, or ended (evicted, expired, refused),
or still with the gateway; one that is none of these is lost, and the report says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec
from sqlalchemy import Select, case, delete, func, select
from sqlalchemy.dialects import postgresql, sqlite

from cloud.store.models import EPOCH_MAX, EndedRow, EpochRow, SampleRow
from cloud.store.sessions import Sessions
from common.errors import WireError
from common.messages import Ended

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


class SpoolLife(msgspec.Struct, frozen=True):
    """The furthest that a gateway's spool was in one epoch, and what it said last."""

    gateway_id: str
    epoch: str
    head: int
    tail: int
    waiting: int
    went_back: int
    at_ns: int


class DeliveryTables(Sessions):
    """Part of `cloud.store.Store`."""

    def spool_lives(self) -> list[SpoolLife]:
        """What every gateway said of its spool, as far as it is written."""
        with self._read() as session:
            return [_life(row) for row in session.scalars(select(EpochRow))]

    def put_spool_lives(self, lives: Sequence[SpoolLife], forgotten: Sequence[tuple[str, str]] = ()) -> None:
        """Replace what several gateways said, each epoch named once, and forget others, in one transaction."""
        rows = [msgspec.structs.asdict(life) for life in lives]
        insert = (postgresql if self._engine.dialect.name == "postgresql" else sqlite).insert(EpochRow)
        new = {name: insert.excluded[name] for name in ("head", "tail", "waiting", "went_back", "at_ns")}
        query = insert.on_conflict_do_update(index_elements=[EpochRow.gateway_id, EpochRow.epoch], set_=new)
        with self._write() as session:
            if rows:
                session.execute(query, rows)
            for gateway_id, epoch in forgotten:
                session.execute(delete(EpochRow).where(EpochRow.gateway_id == gateway_id, EpochRow.epoch == epoch))

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


def _life(row: EpochRow) -> SpoolLife:
    return SpoolLife(**{name: getattr(row, name) for name in SpoolLife.__struct_fields__})


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
