"""What is counted of a release while it looks: the figures that an install is judged by and the centre is told. Pure.

A `Tally` counts what one release said, a `Pair` what two said of the same frames. Both add up over look loops.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from statistics import median
from typing import Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from common.manifest import Manifest
from common.messages import Prediction
from edge.judge import Seen

RECENT: Final = 101
"""Looks whose time is kept: enough for a median, few enough that a slow start is forgotten."""


class Tally(msgspec.Struct):
    """Looks of one release since it began to look here."""

    frames: int = 0
    errors: int = 0
    """Looks that raised, or whose answer held numbers that are none."""
    flagged: int = 0
    score_sum: float = 0.0
    score_squares: float = 0.0
    took_ms: list[float] = []
    """Of the recent looks, the model alone."""
    unseen: float = 0.0
    """Looks that were due while it ran and did not happen: the box was too slow for them."""

    @property
    def median_ms(self) -> float:
        """0 before the first look."""
        return median(self.took_ms) if self.took_ms else 0.0

    def count(self, predictions: Sequence[Prediction], *, flagged: bool, took_ms: float) -> None:
        """A look that went well."""
        top = max((max(item.probabilities) for item in predictions), default=0.0)
        self.frames += 1
        self.flagged += flagged
        self.score_sum += top
        self.score_squares += top * top
        self.took_ms = [*self.took_ms[-RECENT + 1 :], took_ms]


Moves = dict[str, tuple[int, int]]
"""Per `scenario/class` of one release: frames on which it named it, and those of them on which the other named another.
Frames on which the other names a class that it does not know are left out: they say nothing of the classes it knows."""


class Pair(msgspec.Struct):
    """Frames that the running release and the one beside it have both looked at."""

    compared: int = 0
    disagreed: int = 0
    """The two named another class in some scenario that both watch for."""
    flagged_running: int = 0
    flagged_beside: int = 0
    moves_running: Moves = {}
    """Of what the running release named."""
    moves_beside: Moves = {}
    """Of what the one beside named."""

    @property
    def shift(self) -> float:
        """How much more often the one beside asks for attention, -1..1."""
        return (self.flagged_beside - self.flagged_running) / self.compared if self.compared else 0.0

    def count(
        self,
        running: Sequence[Prediction],
        beside: Sequence[Prediction],
        *,
        flagged_running: bool,
        flagged_beside: bool,
    ) -> None:
        """Both have looked at a frame."""
        said, differ = {item.scenario: item for item in running}, False
        for other in beside:
            one = said.get(other.scenario)
            if one is None:
                continue
            mine, yours = one.top, other.top
            differ = differ or mine != yours
            if yours in one.classes:
                _note_move(self.moves_running, f"{one.scenario}/{mine}", moved=mine != yours)
            if mine in other.classes:
                _note_move(self.moves_beside, f"{one.scenario}/{yours}", moved=mine != yours)
        self.compared += 1
        self.disagreed += differ
        self.flagged_running += flagged_running
        self.flagged_beside += flagged_beside

    def copy(self) -> "Pair":
        """As it is now; this one may go on counting."""
        return msgspec.structs.replace(
            self, moves_running=dict(self.moves_running), moves_beside=dict(self.moves_beside)
        )

    def turned(self) -> "Pair":
        """The same, had the two changed places."""
        return Pair(
            self.compared,
            self.disagreed,
            self.flagged_beside,
            self.flagged_running,
            self.moves_beside,
            self.moves_running,
        )

    def plus(self, other: "Pair") -> "Pair":
        """Both together."""
        return Pair(
            self.compared + other.compared,
            self.disagreed + other.disagreed,
            self.flagged_running + other.flagged_running,
            self.flagged_beside + other.flagged_beside,
            _sum_moves(self.moves_running, other.moves_running),
            _sum_moves(self.moves_beside, other.moves_beside),
        )


class Observation(msgspec.Struct, frozen=True):
    """What look loops say about the releases they run."""

    running: str = ""
    """What looks now; empty while loops differ or nothing runs."""
    tallies: dict[str, Tally] = {}
    pair: Pair = msgspec.field(default_factory=Pair)
    """Of the release that runs and the one that was told to look beside it."""
    stuck_s: float = 0.0
    """For how long the look under way has taken."""
    beside_stuck_s: float = 0.0
    """The same of the release beside."""
    failed: str = ""
    """Why a worker could not load the release, or a loop went back to the release beside by itself."""
    deaths: int = 0
    """Worker processes that died since the last order."""

    def of(self, release_id: str) -> Tally:
        """Zero where it has never looked."""
        return self.tallies.get(release_id, Tally())


def add_up(observations: Iterable[Observation]) -> Observation:
    """One observation of several look loops."""
    items = list(observations)
    running = {item.running for item in items}
    names = {name for item in items for name in item.tallies}
    return Observation(
        running=running.pop() if len(running) == 1 else "",
        tallies={name: _sum_tallies([item.of(name) for item in items]) for name in names},
        pair=reduce(Pair.plus, (item.pair for item in items), Pair()),
        stuck_s=max((item.stuck_s for item in items), default=0.0),
        beside_stuck_s=max((item.beside_stuck_s for item in items), default=0.0),
        failed=next((item.failed for item in items if item.failed), ""),
        deaths=sum(item.deaths for item in items),
    )


def _sum_tallies(tallies: Sequence[Tally]) -> Tally:
    return Tally(
        frames=sum(item.frames for item in tallies),
        errors=sum(item.errors for item in tallies),
        flagged=sum(item.flagged for item in tallies),
        score_sum=sum(item.score_sum for item in tallies),
        score_squares=sum(item.score_squares for item in tallies),
        took_ms=[took_ms for item in tallies for took_ms in item.took_ms],
        unseen=sum(item.unseen for item in tallies),
    )


def _note_move(moves: Moves, key: str, *, moved: bool) -> None:
    before = moves.get(key, (0, 0))
    moves[key] = before[0] + 1, before[1] + moved


def _sum_moves(one: Moves, other: Moves) -> Moves:
    total = dict(one)
    for key, (named, moved) in other.items():
        before = total.get(key, (0, 0))
        total[key] = before[0] + named, before[1] + moved
    return total


def asks_attention(manifest: Manifest, predictions: Sequence[Prediction], sightings: Sequence[Seen] = ()) -> bool:
    """Some scenario's most probable class is not its normal one, or a detector found what raises an event.

    Of this look alone: unlike an event or a striking look it needs no past, so two releases can be compared by it.
    """
    normal: Mapping[str, str] = {scenario.name: scenario.normal for scenario in manifest.scenarios}
    return any(item.top != normal.get(item.scenario, item.top) for item in predictions) or any(
        seen.declared.raises(box.label) for seen in sightings for box in seen.boxes
    )


def is_finite(embedding: NDArray[np.float32], predictions: Sequence[Prediction]) -> bool:
    """Whether all numbers of an answer are numbers."""
    return bool(np.isfinite(embedding).all()) and all(
        math.isfinite(item.novelty) and all(map(math.isfinite, item.probabilities)) for item in predictions
    )
