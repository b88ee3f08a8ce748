"""Pools in which two classes are new and rare, and who chooses what of them is labelled. For `headframe bench labels`.

Two classes are held out of training and are one in twenty of a pool. Pictures are chosen, labelled and learnt, one by
one, later in batches of five and twenty, the same for everyone.

*Labels to half of the gain*: where balanced accuracy, in the mean over the seeds and looked at after each label, first
gets half-way from that without the pool to that with all of its labels. Its interval, and that of a ratio of two, is of
seeds drawn again (bootstrap, 95 %). A mean of where each seed first crosses its own line would reward noise.
*Novel recall*: of the held-out classes' pictures in the pool, the share among the first tenth that is chosen.

Where there are scenes there are two places to measure. `here`: at the scenes whose pictures are labelled, on a third of
each scene that is held back; it is what the labels are given for. `elsewhere`: at scenes of which nobody ever saw a
picture.

Ours is the centre's review queue (`cloud.learning.asking`). `edge_value` is the order of what gateways found valuable,
which it replaced. `oracle` knows the new classes and takes theirs in turn, then chance: it says what there is to win.
Sedna's rules get our calibrated head, renewed after each batch.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.learning.asking import NOTHING, Asking
from cloud.learning.candidates import Labelled
from cloud.learning.gates import balanced_accuracy
from cloud.learning.heads import HeadWeights, calibrate, solve_lda
from cloud.settings import LearningSettings
from common.messages import Prediction
from common.statistics import Array, Statistics
from edge.selection import Candidate, Selector, Sight
from edge.selection.rules import Rule, SednaCrossEntropy, SednaIBT, SednaThreshold
from edge.settings import SelectionSettings
from simulations.bench._sites import TEST_SHARE, Pictures, split

HERE: Final = "here"
ELSEWHERE: Final = "elsewhere"
OURS: Final = "ours"
CHANCE: Final = "random"
SHARE: Final = 0.10
NOVEL_SHARE: Final = 0.05
NOVEL_MIN: Final = 6
BATCHES: Final = ((20, 1), (60, 5), (10**9, 20))
"""Below so many labels, so many are chosen at once. The console asks anew every two seconds: one by one."""
EACH: Final = 20
"""Accuracy is looked at after each label up to here, then after each batch; between, it is taken as a straight line."""
DRAWS: Final = 2_000
SECOND_NS: Final = 10**9
SEDNA: Final[dict[str, Rule]] = {
    "sedna_threshold": SednaThreshold(),
    "sedna_cross_entropy": SednaCrossEntropy(),
    "sedna_ibt": SednaIBT(),
}
Rows = NDArray[np.integer]


class Pool:
    """One draw: what was trained, what waits for labels, and where accuracy is measured."""

    def __init__(self, pictures: Pictures, place: str, seed: int) -> None:
        rng = np.random.default_rng(seed)
        names = [name for name in pictures.classes if name != "normal"]
        self.novel = [str(name) for name in rng.permutation(names)[:2]]
        first, self.test_rows = split(pictures, seed) if place == ELSEWHERE else _hold_back(pictures, rng)
        self.pictures, self.is_novel = pictures, np.isin(pictures.labels, self.novel)
        known = rng.permutation(first[~self.is_novel[first]])
        train, ordinary = known[: len(known) // 2], known[len(known) // 2 :]
        self.trained_rows = train
        rare = rng.permutation(first[self.is_novel[first]])[: max(NOVEL_MIN, round(NOVEL_SHARE * len(ordinary)))]
        self.rows: Rows = rng.permutation(np.concatenate([ordinary, rare]))
        gold, learnt = self.labelled(train[::5]), self.labelled(np.delete(train, np.s_[::5]))
        self._shrinkage = LearningSettings().shrinkage
        statistics = Statistics.of(pictures.classes, learnt.embeddings, learnt.labels)
        self.asking = Asking(statistics, self.labelled(train), gold, self._shrinkage)
        self._statistics, self._gold = statistics.project(self.asking.basis), gold.project(self.asking.basis)
        self.x = pictures.embeddings.astype(np.float64) @ self.asking.basis
        self.base, self.full = self.score(self.rows[:0]), self.score(self.rows)

    def labelled(self, rows: Rows) -> Labelled:
        """These pictures with their labels."""
        ids = tuple(int(row).to_bytes(16, "big") for row in rows)
        return Labelled(ids, self.pictures.embeddings[rows], tuple(self.names(rows)))

    def names(self, rows: Rows) -> list[str]:
        return [str(name) for name in self.pictures.labels[rows]]

    def head(self, labelled: Rows) -> HeadWeights:
        """Of what was trained and these."""
        more = Statistics.of(self.pictures.classes, self.x[labelled], self.names(labelled))
        return solve_lda(self._statistics + more, self._shrinkage)

    def calibrated(self, labelled: Rows) -> HeadWeights:
        return calibrate(self.head(labelled), self._gold.embeddings, list(self._gold.labels))

    def score(self, labelled: Rows) -> float:
        """Balanced accuracy once these are labelled."""
        return balanced_accuracy(self.names(self.test_rows), self.head(labelled).predict(self.x[self.test_rows]))


def _hold_back(pictures: Pictures, rng: np.random.Generator) -> tuple[Rows, Rows]:
    """Rows to learn from, and a third of each class, of each scene where there are scenes."""
    groups = pictures.scenes if pictures.has_scenes else pictures.labels
    is_test = np.zeros(len(groups), dtype=bool)
    for group in np.unique(groups):
        own = rng.permutation(np.flatnonzero(groups == group))
        is_test[own[: round(TEST_SHARE * len(own))]] = True
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


# --- who chooses ----------------------------------------------------------------------------------

Choose = Callable[[Pool, Rows, Rows, int, np.random.Generator], Rows]
"""Of (pool, what is labelled, what is left, how many, chance): positions in what is left, the first first."""


def _ours(pool: Pool, labelled: Rows, left: Rows, count: int, rng: np.random.Generator) -> Rows:
    del rng
    fresh = pool.labelled(labelled) if len(labelled) else NOTHING
    return np.array(pool.asking.order(pool.pictures.embeddings[left], count, fresh))


def _by_edge_value(pool: Pool, labelled: Rows, left: Rows, count: int, rng: np.random.Generator) -> Rows:
    """The value that a gateway gives; it has seen much before, so it sees all twice."""
    del rng
    selector = Selector(SelectionSettings(), ["camera"])
    values = np.zeros(len(left))
    for number, said in enumerate(2 * _predictions(pool, labelled, left)):
        row = number % len(left)
        candidate = Candidate("camera", (number + 1) * SECOND_NS, pool.x[left[row]], (said,), None)
        values[row] = selector.appraise(candidate).value
    return np.argsort(-values)[:count]


def _chance(pool: Pool, labelled: Rows, left: Rows, count: int, rng: np.random.Generator) -> Rows:
    del pool, labelled
    return rng.permutation(len(left))[:count]


def _oracle(pool: Pool, labelled: Rows, left: Rows, count: int, rng: np.random.Generator) -> Rows:
    order: list[int] = [int(row) for row in rng.permutation(len(left))]
    had = {name: int((pool.pictures.labels[labelled] == name).sum()) for name in pool.novel}
    turn: dict[int, int] = {}
    for row in order:
        name = str(pool.pictures.labels[left[row]])
        turn[row] = had[name] if name in had else len(pool.rows)
        had[name] = turn[row] + 1
    return np.array(sorted(order, key=turn.__getitem__)[:count])


def _by_rule(rule: Rule) -> Choose:
    def choose(pool: Pool, labelled: Rows, left: Rows, count: int, rng: np.random.Generator) -> Rows:
        scores = [
            rule.score(Sight(Candidate("camera", 0, row, (said,), None), 0.0))
            for row, said in zip(pool.x[left], _predictions(pool, labelled, left), strict=True)
        ]
        return np.lexsort((rng.random(len(scores)), -np.array(scores)))[:count]

    return choose


def _predictions(pool: Pool, labelled: Rows, left: Rows) -> list[Prediction]:
    head = pool.calibrated(labelled)
    shares, novelties = head.probabilities(pool.x[left]), head.novelty(pool.x[left])
    return [
        Prediction("bench", head.classes, tuple(row), float(novelty))
        for row, novelty in zip(shares.tolist(), novelties, strict=True)
    ]


METHODS: Final[dict[str, Choose]] = {
    OURS: _ours,
    "edge_value": _by_edge_value,
    CHANCE: _chance,
    "oracle": _oracle,
    **{name: _by_rule(rule) for name, rule in SEDNA.items()},
}


# --- what is measured -----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Course:
    """How one method did on one pool."""

    counts: tuple[int, ...]
    """Labels given where accuracy was looked at."""
    scores: tuple[float, ...]
    recall: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """One seed: accuracy before and with all labels, and each method's course between."""

    base: float
    full: float
    courses: dict[str, Course]


def measure(pictures: Pictures, place: str, seed: int) -> Drawn:
    """All methods on one pool."""
    pool = Pool(pictures, place, seed)
    courses = {name: _follow(pool, choose, np.random.default_rng(seed)) for name, choose in METHODS.items()}
    return Drawn(pool.base, pool.full, courses)


def _follow(pool: Pool, choose: Choose, rng: np.random.Generator) -> Course:
    labelled: Rows = pool.rows[:0]
    counts, scores = [0], [pool.base]
    while len(labelled) < len(pool.rows):
        left = np.setdiff1d(pool.rows, labelled)
        batch = next(size for below, size in BATCHES if len(labelled) < below)
        taken = left[choose(pool, labelled, left, min(batch, len(left)), rng)]
        for row in taken:
            labelled = np.append(labelled, row)
            if len(labelled) <= EACH or row == taken[-1]:
                counts.append(len(labelled))
                scores.append(pool.score(labelled))
    tenth = labelled[: int(SHARE * len(labelled))]
    return Course(tuple(counts), tuple(scores), float(pool.is_novel[tenth].sum() / pool.is_novel[labelled].sum()))


def summarise(drawn: Sequence[Drawn]) -> dict[str, Any]:
    """Means over the seeds, and intervals of 95 % over seeds drawn again."""
    longest = max(course.counts[-1] for one in drawn for course in one.courses.values())
    grid = np.arange(longest + 1)
    curves = {
        name: np.stack([np.interp(grid, one.courses[name].counts, one.courses[name].scores) for one in drawn])
        for name in METHODS
    }
    ends = np.array([(one.base, one.full) for one in drawn])
    everyone = np.arange(len(drawn))
    rng = np.random.default_rng(0)
    draws = [rng.integers(0, len(drawn), len(drawn)) for _ in range(DRAWS)]
    halves = {name: _half(curve, ends, everyone) for name, curve in curves.items()}
    again = {name: np.array([_half(curve, ends, seeds) for seeds in draws]) for name, curve in curves.items()}
    best = min(SEDNA, key=halves.__getitem__)

    def ratio(name: str) -> dict[str, float]:
        return {"ratio": round(halves[name] / halves[OURS], 2)} | _interval(again[name] / again[OURS])

    gains = ends[:, 1] - ends[:, 0]
    return {
        "fewer_than_random": ratio(CHANCE),
        "fewer_than_sedna": {"rule": best} | ratio(best),
        "oracle_below_random": round(halves[CHANCE] / halves["oracle"], 2),
        "labels_to_half": {name: {"labels": round(halves[name], 1)} | _interval(again[name]) for name in METHODS},
        "novel_recall": {
            name: round(float(np.mean([one.courses[name].recall for one in drawn])), 3) for name in METHODS
        },
        "accuracy_before": round(float(ends[:, 0].mean()), 3),
        "accuracy_with_all": round(float(ends[:, 1].mean()), 3),
        "gain_error": round(float(gains.std(ddof=1) / np.sqrt(len(gains))), 3),
    }


def _half(curves: Array, ends: Array, seeds: Rows) -> float:
    """Labels at which the mean curve (n + 1,) of these seeds gets half-way; nan where there is nothing to gain."""
    base, full = ends[seeds].mean(axis=0)
    if full <= base:
        return float("nan")
    curve, goal = curves[seeds].mean(axis=0), (base + full) / 2
    above = int(np.argmax(curve >= goal))
    return above - 1 + float((goal - curve[above - 1]) / (curve[above] - curve[above - 1]))


def _interval(values: Array) -> dict[str, float]:
    low, high = np.nanpercentile(values, (2.5, 97.5))
    return {"low": round(float(low), 2), "high": round(float(high), 2)}
