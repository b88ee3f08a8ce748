"""Runs a fleet round by round: batches of sites to workers, their sums to a head, the head to the next round.

A run is a folder. After every round its state is replaced atomically, so a run that was killed goes on where it was
and ends with the same figures. Workers are threads of this process, processes, or a Ray cluster; none changes a bit.
"""

import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from cloud.learning.gates import balanced_accuracy
from cloud.learning.heads import HeadWeights, solve_lda
from common.errors import OperatorError
from common.files import READABLE, write_atomically
from common.statistics import Array, Statistics
from simulations.fleet.centre import believed, gold_rows, may_replace, right_at_home, share_right
from simulations.fleet.pool import Pool, on_grid
from simulations.fleet.scenario import Fleet
from simulations.fleet.sites import (
    NONE,
    Contribution,
    Memory,
    Numbers,
    arrived,
    at_home,
    is_poisoned,
    sent_by,
    step,
    styles,
)

SITES_PER_TASK = 256  # a task's arrays (256 x 16 frames x 128 numbers) are 4 MB: in the cache, and few enough tasks
_THREADS = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_HEAD = ("directions", "offsets", "constants", "quadratic")
MEASURED_SITES = 64
"""Sites whose styles the held-out rows are given for measuring."""


@dataclass(frozen=True, slots=True)
class RoundFigures:
    """One round of one fleet, a row of the results."""

    variant: str
    round: int
    accuracy: float | None
    """Balanced, over the classes that have arrived, on held-out rows in the styles of sites; None before a head."""
    first_phase: float | None
    """The same over the classes of the first phase: what is not forgotten."""
    classes: int
    labels: int
    """In all so far."""
    reporting: int
    mb_up: float
    home: float | None = None
    """Share right of what honest sites see, in their own mixtures and styles; None without personal heads."""
    personal: float | None = None
    """The same, each site with a head of its own."""
    quarantined: int = 0
    wrongly_quarantined: int = 0
    """Honest sites among them."""
    refused: bool = False
    """The gate kept the head of the round before."""


class Crew(Protocol):
    """Who does the tasks of a round; results in order."""

    def run(self, tasks: list[tuple[Any, ...]]) -> Iterator[Contribution]: ...


class Alone:
    """This process, one task after the other."""

    def __init__(self, fleet: Fleet, pool: Pool) -> None:
        self._fleet, self._pool = fleet, pool

    def run(self, tasks: list[tuple[Any, ...]]) -> Iterator[Contribution]:
        return (step(self._fleet, self._pool, *task) for task in tasks)


_shared: dict[str, Any] = {}
"""In a worker process: the fleet and the pool, sent once."""


def _prepare(fleet: Fleet, pool: Pool) -> None:
    _shared.update(fleet=fleet, pool=pool)


def _work(task: tuple[Any, ...]) -> Contribution:
    return step(_shared["fleet"], _shared["pool"], *task)


class Processes:
    """Worker processes on this machine, each with one thread: matrix products of a task are too small to share."""

    def __init__(self, fleet: Fleet, pool: Pool, workers: int, stack: ExitStack) -> None:
        before = {name: os.environ.get(name) for name in _THREADS}
        os.environ.update(dict.fromkeys(_THREADS, "1"))
        stack.callback(_restore, before)
        made = ProcessPoolExecutor(workers, get_context("spawn"), _prepare, (fleet, pool))
        self._executor: Executor = stack.enter_context(made)

    def run(self, tasks: list[tuple[Any, ...]]) -> Iterator[Contribution]:
        return self._executor.map(_work, tasks)


class RayCluster:
    """A Ray cluster: `address` is its head node's, or `local` for one on this machine."""

    def __init__(self, fleet: Fleet, pool: Pool, address: str, stack: ExitStack) -> None:
        try:
            import ray
        except ImportError as error:
            raise OperatorError("Ray is not installed", "pip install 'headframe[sim]', or leave out --ray.") from error
        ray.init(address=None if address == "local" else address, include_dashboard=False, log_to_driver=False)
        stack.callback(ray.shutdown)
        self._ray, self._given = ray, ray.put((fleet, pool))
        self._step: Any = ray.remote(_step_given)

    def run(self, tasks: list[tuple[Any, ...]]) -> Iterator[Contribution]:
        for reference in [self._step.remote(self._given, task) for task in tasks]:
            yield self._ray.get(reference)


def _restore(before: dict[str, str | None]) -> None:
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


def _step_given(given: tuple[Fleet, Pool], task: tuple[Any, ...]) -> Contribution:
    return step(*given, *task)


class Simulation:
    """One fleet's run, resumable.

    Args:
        folder: where its state is kept after each round; None keeps none.
    """

    def __init__(self, name: str, fleet: Fleet, pool: Pool, folder: Path | None = None) -> None:
        self.name, self.fleet, self.pool = name, fleet, pool
        self._file = folder / "state.npz" if folder else None
        self._chosen = np.full((fleet.sites, fleet.rounds, fleet.budget), NONE)
        self._sent = np.full(fleet.sites, -1)
        self.total = Statistics.empty(pool.classes, pool.rows.shape[1])
        self.figures: list[RoundFigures] = []
        self.head: HeadWeights | None = None
        if self._file and self._file.is_file():
            self._load(self._file)

    def run(self, crew: Crew, on_round: Callable[[RoundFigures], None], sites_per_task: int = SITES_PER_TASK) -> None:
        """Run the rounds that are left."""
        for moment in range(len(self.figures), self.fleet.rounds):
            figures = self._round(crew, moment, sites_per_task)
            self.figures.append(figures)
            if self._file:
                write_atomically(self._file, self._state(), READABLE)
            on_round(figures)

    def _round(self, crew: Crew, moment: int, sites_per_task: int) -> RoundFigures:
        everyone = np.arange(self.fleet.sites)
        parts = [everyone[start : start + sites_per_task] for start in range(0, len(everyone), sites_per_task)]
        tasks = [(part, moment, self.head, Memory(self._chosen[part], self._sent[part])) for part in parts]
        labels = reporting = bytes_up = 0
        for part, done in zip(parts, crew.run(tasks), strict=True):
            self._chosen[part], self._sent[part] = done.memory.chosen, done.memory.sent
            labels, reporting, bytes_up = labels + done.labels, reporting + done.reporting, bytes_up + done.bytes_up
            if done.statistics is not None:
                self.total = self.total + done.statistics
        total, accused = self._believed()
        refused = not self._learn(total)
        present = arrived(self.fleet, moment, len(self.pool.classes))
        before = self.figures[-1] if self.figures else None
        return RoundFigures(
            self.name,
            moment + 1,
            self._accuracy(present),
            self._accuracy(arrived(self.fleet, 0, len(self.pool.classes))),
            present,
            labels + (before.labels if before else 0),
            reporting,
            round(bytes_up / 1e6, 3),
            *self._at_home(moment, total),
            len(accused),
            int((~is_poisoned(self.fleet, np.array(accused, np.int64))).sum()),
            refused,
        )

    def _believed(self) -> tuple[Statistics, list[int]]:
        """The sum that is learnt from, and the sites that are left out of it."""
        everyone = np.arange(self.fleet.sites if self.fleet.quarantine else 0)
        return believed(self.fleet, self.total, self._sent_by(everyone))

    def _sent_by(self, sites: Numbers) -> list[Statistics]:
        return sent_by(self.fleet, self.pool, sites, Memory(self._chosen[sites], self._sent[sites]))

    def _learn(self, total: Statistics) -> bool:
        """Solve, and take the new head if the gate lets it pass; False when it was refused."""
        if (total.counts > 0).sum() < 2:
            return True
        candidate = solve_lda(total, self.fleet.shrinkage)
        if not may_replace(self.fleet, self.pool, self.head, candidate):
            return False
        self.head = candidate
        return True

    def _measured_sites(self) -> Numbers:
        return np.arange(MEASURED_SITES) * self.fleet.sites // MEASURED_SITES

    def _at_home(self, moment: int, total: Statistics) -> tuple[float | None, float | None]:
        """What the shared head and what heads of their own get right at honest sites; None without such heads."""
        if self.head is None or not self.fleet.personal:
            return None, None
        sites = self._measured_sites()
        sites = sites[~is_poisoned(self.fleet, sites)]
        shift = styles(self.fleet, sites, self._dimensions)
        shared, personal = [], []
        rows_of = at_home(self.fleet, self.pool, sites, moment)
        for rows, style, own in zip(rows_of, shift, self._sent_by(sites), strict=True):
            x = on_grid(self.pool.rows[rows] + style)
            truth = [self.pool.classes[k] for k in self.pool.labels[rows]]
            shared.append(share_right(self.head, x, truth))
            personal.append(right_at_home(total, own, self.fleet, x, truth))
        return float(np.mean(shared)), float(np.mean(personal))

    def _accuracy(self, classes: int) -> float | None:
        """Balanced accuracy over the first classes, on held-out rows, each in the style of a site."""
        rows = np.flatnonzero(self.pool.held_out & (self.pool.labels < classes))
        rows = np.setdiff1d(rows, gold_rows(self.fleet, self.pool))
        if self.head is None or not len(rows):
            return None
        shift = styles(self.fleet, self._measured_sites(), self._dimensions)
        x: Array = on_grid(self.pool.rows[rows] + shift[np.arange(len(rows)) % MEASURED_SITES])
        truth = [self.pool.classes[k] for k in self.pool.labels[rows]]
        return balanced_accuracy(truth, self.head.predict(x))

    @property
    def _dimensions(self) -> int:
        return int(self.pool.rows.shape[1])

    def _state(self) -> bytes:
        buffer = io.BytesIO()
        record = msgspec.json.encode([asdict(row) for row in self.figures])
        np.savez(
            buffer,
            fleet=np.frombuffer(msgspec.json.encode(self.fleet), np.uint8),
            figures=np.frombuffer(record, np.uint8),
            chosen=self._chosen,
            sent=self._sent,
            counts=self.total.counts,
            sums=self.total.sums,
            moment=self.total.moment,
            **({name: getattr(self.head, name) for name in _HEAD} if self.head else {}),
        )
        return buffer.getvalue()

    def _load(self, file: Path) -> None:
        """Raises:
        OperatorError: the folder holds the run of another fleet.
        """
        with np.load(file, allow_pickle=False) as state:
            if msgspec.json.decode(state["fleet"].tobytes(), type=Fleet) != self.fleet:
                raise OperatorError(f"{file.parent} holds the run of another fleet", "Give another --out.")
            self.figures = msgspec.json.decode(state["figures"].tobytes(), type=list[RoundFigures])
            self._chosen, self._sent = state["chosen"], state["sent"]
            self.total = Statistics(self.pool.classes, state["counts"], state["sums"], state["moment"])
            if _HEAD[0] in state:
                self.head = HeadWeights(self.pool.classes, *(state[name] for name in _HEAD))
