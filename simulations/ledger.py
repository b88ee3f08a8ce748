"""The check behind "nothing lost, nothing twice": what the spools accepted against what the store holds."""

import sqlite3
from collections import Counter
from pathlib import Path

from edge.spool import Spool
from simulations.processes import Centre


def check_ledgers(out: Path, sites: list[str], centre: Centre) -> dict[str, bool]:
    """Compare every gateway's ledger of accepted samples with the centre's database. The gateways are stopped.

    Returns:
        A sentence per check, and whether it holds.
    """
    stored = stored_ids(centre.folder / "data" / "headframe.db")
    receipted, waiting, evicted = set(), set(), 0
    for site in sites:
        spool = Spool.open(out / "gateways" / site / "data" / "spool.db", 10**12)
        try:
            for name, state in spool.ledger().items():
                if state == "receipted":
                    receipted.add(name)
                elif state == "accepted":
                    waiting.add(name)
                else:
                    evicted += 1
        finally:
            spool.close()
    return {
        f"all {len(receipted)} receipted samples are in the store": receipted <= set(stored),
        "no sample is stored twice": all(count == 1 for count in stored.values()),
        "the store holds nothing that no spool accepted": set(stored) <= receipted | waiting,
        "nothing was evicted": evicted == 0,
    }


def stored_ids(database: Path) -> Counter[bytes]:
    """Sample ids in the store, counted by reading the file itself: SQLite of a centre, running or not."""
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as connection:
        rows = connection.execute("SELECT sample_id FROM samples").fetchall()
    return Counter(bytes(row[0]) for row in rows)
