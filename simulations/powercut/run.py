"""Lives of a spool: accept, forget, evict; a power cut at a random operation; look; live on with what is found."""

import copy
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from unittest import mock

import msgspec

import edge.spool
from common import codec
from common.errors import EnvironmentFault, WireError
from common.ids import sample_id
from common.messages import Prediction, Receipt, Sample, Scores
from edge.spool import Spool
from simulations.powercut.disk import CutDisk, PowerCut
from simulations.powercut.sqlite import CutConnection, CutSqlite

LIVES: Final = 4
"""Power cuts of a seed, each on the disk that the one before has left; so recoveries are cut too."""
CHECKPOINT_PAGES: Final = (1000, 30)
"""SQLite's own, and so often that checkpoints are cut."""
OPERATIONS: Final = (5, 400)
"""Of the disk, before the power goes: from the middle of opening to some forty samples."""
SPOOL_BYTES: Final = 60_000
"""So small that it evicts."""
PICTURE_BYTES: Final = (100, 9_000)
PATH: Final = Path("spool.db")


@dataclass
class Outcome:
    """What a number of seeds have shown."""

    seeds: int = 0
    cuts: int = 0
    accepted: int = 0
    lost: int = 0
    corrupt: int = 0
    bad_seeds: list[int] = field(default_factory=list)
    """Seeds in which something was lost or corrupt."""


def run_powercuts(
    seeds: range, synchronous: str | None = None, note: Callable[[str], None] = lambda _: None
) -> Outcome:
    """All lives of all seeds.

    Args:
        synchronous: instead of the spool's own; to compare.
    """
    outcome = Outcome()
    for seed in seeds:
        life = _Lives(seed, synchronous)
        life.run()
        outcome.seeds += 1
        outcome.cuts += life.cuts
        outcome.accepted += life.figures["accepted"]
        outcome.lost += life.figures["lost"]
        outcome.corrupt += life.figures["corrupt"]
        if life.figures["lost"] or life.figures["corrupt"]:
            outcome.bad_seeds.append(seed)
        note(f"{outcome.seeds} of {len(seeds)} seeds, {outcome.cuts} power cuts, {outcome.accepted} samples accepted")
    return outcome


class _Lives:
    """One seed."""

    def __init__(self, seed: int, synchronous: str | None) -> None:
        self._rng, self._synchronous = random.Random(seed), synchronous
        self._disk = CutDisk()
        self._held: dict[bytes, bytes] = {}
        """Payloads of samples whose acceptance returned, as the gateway was told."""
        self._forgotten: set[bytes] = set()
        """Samples whose receipt the spool has taken."""
        self._asked: set[bytes] = set()
        """Samples that were being forgotten when the power went: either way is right."""
        self._number = 0
        self.cuts = 0
        self.figures: Counter[str] = Counter()

    def run(self) -> None:
        for _ in range(LIVES):
            self._live()
            self._disk = self._disk.after_cut(self._rng)
            self.cuts += 1
            if not self._examine():
                return

    def _live(self) -> None:
        """Until the power goes."""
        self._disk.operations_left = self._rng.randrange(*OPERATIONS)
        with self._powered(self._disk) as cut:
            try:
                spool = Spool.open(PATH, SPOOL_BYTES)
                while not self._disk.dead:
                    if self._held and self._rng.random() < 0.25:
                        self._forget(spool)
                    else:
                        self._accept(spool)
            except (PowerCut, EnvironmentFault, cut.Error):
                if not self._disk.dead:
                    raise
            cut.drop()

    def _accept(self, spool: Spool) -> None:
        self._number += 1
        sample = make_sample(self._number, self._rng)
        if spool.accept(sample):
            self._held[sample.sample_id] = _content(codec.encode(sample))
            self.figures["accepted"] += 1

    def _forget(self, spool: Spool) -> None:
        names = self._rng.sample(sorted(self._held), min(len(self._held), self._rng.randrange(1, 5)))
        self._asked.update(names)
        spool.forget(Receipt(stored=tuple(names)))
        self._forgotten.update(names)

    def _examine(self) -> bool:
        """The power is back: is all there that was promised?"""
        with self._powered(copy.deepcopy(self._disk)) as cut:  # the next life recovers for itself
            try:
                spool = Spool.open(PATH, SPOOL_BYTES)
                ledger = spool.ledger()
                waiting = {queued.sample_id: _content(queued.payload) for queued in spool.pending(10**6)}
                sound = cut.check()
                spool.close()
            except (EnvironmentFault, cut.Error) as error:
                self.figures["corrupt"] += 1
                self.figures[str(error)] += 1
                return False
            finally:
                cut.drop()
        self.figures["corrupt"] += not sound
        for name, payload in self._held.items():
            state = ledger.get(name)
            kept = state == "evicted" or (state == "receipted" and name in self._asked)
            if not kept and not (state == "accepted" and waiting.get(name) == payload and name not in self._forgotten):
                self.figures["lost"] += 1
        self._held = {name: payload for name, payload in self._held.items() if ledger.get(name) == "accepted"}
        self._forgotten.clear()
        self._asked.clear()
        return sound

    @contextmanager
    def _powered(self, disk: CutDisk) -> Iterator["_Checked"]:
        """The spool's `sqlite3` is the one on this disk."""
        cut = _Checked(disk, self._synchronous, self._rng.choice(CHECKPOINT_PAGES))
        with mock.patch.object(edge.spool, "sqlite3", cut), mock.patch.object(edge.spool, "EpochMark", _Mark):
            yield cut


class _Mark:
    """In place of the file beside the spool, which is no part of the database: it fits."""

    def __init__(self, spool: Path) -> None:
        """Touches no disk."""

    def fits(self, *_: object) -> bool:
        return True

    def keep(self, *_: object) -> None:
        """Nothing is to be kept."""


class _Checked(CutSqlite):
    """Remembers what it has opened."""

    opened: CutConnection | None = None

    def connect(self, path: object, **options: object) -> CutConnection:
        self.opened = super().connect(path, **options)
        return self.opened

    def check(self) -> bool:
        """Whether SQLite finds the file sound."""
        rows = self.opened.execute("PRAGMA integrity_check").fetchall() if self.opened else []
        return [row[0] for row in rows] == ["ok"]

    def drop(self) -> None:
        """Forget the connection and the file system."""
        if self.opened:
            self.opened.drop()
        self.close()


def _content(payload: bytes) -> bytes:
    """A sample's bytes without the number that the spool gave it; what is torn, as it is."""
    try:
        sample = codec.decode(payload)
    except WireError:
        return payload
    return codec.encode(msgspec.structs.replace(sample, epoch="", sequence=0)) if isinstance(sample, Sample) else b""


def make_sample(number: int, rng: random.Random) -> Sample:
    """A small sample of random bytes; the spool does not look into its picture."""
    jpeg = rng.randbytes(rng.randrange(*PICTURE_BYTES))
    made = Sample(
        sample_id=b"",
        gateway_id="gw-1",
        site_id="north",
        camera_id="belt",
        captured_at_ns=number,
        release_id="r1-00000000",
        backbone="0" * 64,
        width_px=8,
        height_px=8,
        jpeg=jpeg,
        embedding=bytes(8),
        predictions=(Prediction("belt", ("normal", "tear"), (0.5, 0.5), 0.0),),
        scores=Scores(0.0, 0.0, 0.0, 0.0, rng.random()),
        reason="novel",
    )
    return msgspec.structs.replace(made, sample_id=sample_id(jpeg, "gw-1", "belt", number))
