"""The verdict: what was accepted against what is stored, whatever happened in between. All processes have ended.

Accepted is what a journal outside of the cheated disks has witnessed, and what any spool's ledger knows. Each accepted
sample must be in the store, or evicted or refused for a reason that the ledger keeps, or still wait in a spool. The one
other way is a disk that was taken out of its box: what waited only there is gone with it, and counted by name.
"""

import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from edge.spool import Spool
from simulations.chaos.boxes import Gateway
from simulations.chaos.feeder import read_journal
from simulations.load.check import read_stored

ANY_SIZE = 10**12


@dataclass(frozen=True, slots=True)
class Verdict:
    """Samples by what became of them."""

    accepted: int
    stored: int
    lost: int
    duplicates: int
    evicted: int
    refused: int
    waiting: int
    gone_with_a_disk: int
    """Waited only on a disk that was replaced by an older image."""
    unknown: int
    """In the store, and no spool has ever accepted them."""


def judge(gateways: Sequence[Gateway], database: Path) -> Verdict:
    """Compare journals, ledgers and store."""
    witnessed = set().union(*(read_journal(gateway.journal) for gateway in gateways))
    ledgers = [read_ledger(gateway.data / "spool.db") for gateway in gateways]
    taken_out = [read_ledger(disk / "spool.db") for gateway in gateways for disk in gateway.replaced]
    return weigh(witnessed, ledgers, taken_out, database)


def weigh(
    witnessed: set[bytes],
    ledgers: Sequence[dict[bytes, str]],
    taken_out: Sequence[dict[bytes, str]],
    database: Path,
) -> Verdict:
    """`judge`, on what was read."""
    accepted = witnessed.union(*ledgers, *taken_out)
    stored = read_stored(database)
    here = accepted & stored.ids
    evicted = _with_state(ledgers, "evicted") | _with_state(taken_out, "evicted")
    refused = _with_state(ledgers, "refused") | _with_state(taken_out, "refused")
    waiting = _with_state(ledgers, "accepted")
    gone = _with_state(taken_out, "accepted") - waiting
    explained = (here, evicted, refused, waiting, gone)
    return Verdict(
        accepted=len(accepted),
        stored=len(here),
        lost=len(accepted.difference(*explained)),
        duplicates=stored.duplicates,
        evicted=len(evicted - here),
        refused=len(refused - here),
        waiting=len(waiting - here),
        gone_with_a_disk=len(gone - here - evicted - refused),
        unknown=len(stored.ids - accepted),
    )


def read_ledger(spool: Path) -> dict[bytes, str]:
    """The ledger of a spool at rest; a copy is opened, so that the evidence stays as it is."""
    with tempfile.TemporaryDirectory(prefix="headframe-evidence-") as name:
        copies = [shutil.copy(path, name) for path in spool.parent.glob(spool.name + "*")]
        if not copies:
            return {}
        opened = Spool.open(Path(name) / spool.name, ANY_SIZE)
        try:
            return opened.ledger()
        finally:
            opened.close()


def _with_state(ledgers: Iterable[dict[bytes, str]], state: str) -> set[bytes]:
    return {name for ledger in ledgers for name, found in ledger.items() if found == state}
