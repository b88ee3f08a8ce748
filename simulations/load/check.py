"""What arrived, read from the centre's own database: samples exactly once, states fresh."""

import sqlite3
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from simulations.ledger import stored_ids

FRESH_S: Final = 30.0


class _Reported(msgspec.Struct):
    gateway_id: str
    at_ns: int
    online: bool


@dataclass(frozen=True, slots=True)
class Freshness:
    """How old the states in the store are at one instant, seconds."""

    known: int
    online: int
    fresh: int
    age_s_p99: float
    age_s_max: float


def read_freshness(database: Path, prefix: str) -> Freshness:
    """The states of the gateways whose name begins with `prefix`."""
    decode = msgspec.json.Decoder(_Reported).decode
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        query = "SELECT state FROM states WHERE gateway_id >= ? AND gateway_id < ?"
        states = [decode(row[0]) for row in connection.execute(query, (prefix, prefix + "~"))]
    now_ns = time.time_ns()
    ages = np.array([(now_ns - state.at_ns) / 1e9 for state in states if state.online] or [float("inf")])
    return Freshness(
        known=len(states),
        online=sum(state.online for state in states),
        fresh=int((ages < FRESH_S).sum()),
        age_s_p99=round(float(np.percentile(ages, 99, method="higher")), 2),
        age_s_max=round(float(ages.max()), 2),
    )


@dataclass(frozen=True, slots=True)
class Stored:
    """What the store holds; `duplicates` counts by id, and by what was photographed when."""

    ids: frozenset[bytes]
    duplicates: int


def read_stored(database: Path) -> Stored:
    """The samples of a centre, running or not."""
    by_id = stored_ids(database)
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=20)) as connection:
        moments = Counter(connection.execute("SELECT gateway_id, camera_id, captured_at_ns FROM samples").fetchall())
    twice = sum(count - 1 for count in (*by_id.values(), *moments.values()))
    return Stored(frozenset(by_id), twice)


def check_store(database: Path, accepted: set[bytes]) -> dict[str, int]:
    """Accepted samples against the store: how many are there, how many are lost, how many are there twice."""
    stored = read_stored(database)
    return {
        "stored": len(accepted & stored.ids),
        "lost": len(accepted - stored.ids),
        "duplicates": stored.duplicates,
    }
