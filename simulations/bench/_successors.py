"""Successors of a head, good ones and deliberately worse ones, and what each says of real pictures by the edge's code.

Decides what is rolled out in `headframe bench canary`; leaves to that module the fleet that runs it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.learning.export import export_head
from cloud.learning.gates import compare_moves
from cloud.learning.heads import HeadWeights, principal_basis, solve_lda
from cloud.settings import LearningSettings
from common.messages import Prediction
from common.statistics import Statistics
from edge.heads import HeadStack
from edge.perception import Head
from edge.tally import is_finite
from simulations.bench._sites import Pictures, split

SCENARIO: Final = "bench"
NORMAL: Final = "normal"
"""The class that asks for no attention; a data set without it is of nothing but defects."""
BACKBONE: Final = "b" * 64
SHRINKAGE: Final = LearningSettings().shrinkage
DIMENSIONS: Final = 128
KNOWN, LITTLE_KNOWN = 0.7, 0.2
"""Share of the training pictures that the running head was solved from."""
SLOWER: Final = 5.0

GOOD, BETTER, NEW_CLASS = "good", "good, from five times the pictures", "good, names a new class"
PERMUTED, NAN, SLOW = "permuted class", "no numbers", "five times slower"
ANY_CLASS: Final = "permuted class, any"
"""Also one that the running head rarely names: not always a worse head, so it is measured apart."""
SWAPPED, NEW_PERMUTED = "two classes exchanged", "permuted class, names a new class"
CASES: Final = (GOOD, BETTER, NEW_CLASS, PERMUTED, NAN, SLOW, SWAPPED, NEW_PERMUTED, ANY_CLASS)


@dataclass(frozen=True, slots=True)
class Answers:
    """What a head says of every test picture, by the edge's code."""

    predictions: tuple[Prediction, ...]
    top: NDArray[np.str_]
    score: NDArray[np.floating]
    flagged: NDArray[np.bool_]

    @property
    def finite(self) -> NDArray[np.bool_]:
        finite: NDArray[np.bool_] = np.isfinite(self.score)
        return finite


@dataclass(frozen=True, slots=True)
class Trial:
    """A release to be rolled out, and what it replaces."""

    old: Answers
    new: Answers
    explained: Mapping[str, float] = field(default_factory=dict)
    """Per class, what the gold set showed to be named otherwise rightly."""
    names_new: bool = False
    """It has a class that the old one does not know."""
    slower: float = 1.0
    victim: str = ""
    """The class that is spoilt."""


def make_trials(pictures: Pictures, seed: int, folder: Path) -> tuple[dict[str, Trial], NDArray[np.str_]]:
    """Every case's models, asked about the test pictures, and the truth of these.

    Args:
        pictures: projected.
        folder: where models are exported to.
    """
    train, test = split(pictures, seed)
    rng = np.random.default_rng([seed, 9])
    train, truth = rng.permutation(train), pictures.labels[test]

    def ask(weights: HeadWeights, name: str) -> Answers:
        return _ask(weights, pictures.embeddings[test], folder / f"{seed}-{name}.onnx")

    learn = pictures.pick(train)
    older = learn.pick(np.arange(int(KNOWN * len(train))))
    old, good = ask(_solve(older), "old"), _solve(learn)
    recalls = {str(kind): (old.top[truth == kind] == kind).mean() for kind in np.unique(truth)}
    victim = str(rng.choice([kind for kind, recall in recalls.items() if recall > 0.5]))
    others = [kind for kind in recalls if kind != victim]
    anyone, other, novelty = (
        str(rng.choice(list(recalls))),
        str(rng.choice(others)),
        max(others, key=recalls.__getitem__),
    )
    permuted = _permuted(learn, victim, rng)
    narrow = ask(_solve(_without(older, novelty)), "narrow")
    new = ask(good, GOOD)
    return {
        GOOD: Trial(old, new),
        BETTER: _much_better(learn, seed, ask),
        NEW_CLASS: Trial(narrow, new, names_new=True),
        PERMUTED: Trial(old, ask(_solve(permuted), PERMUTED), victim=victim),
        NAN: Trial(old, ask(replace(good, directions=np.full_like(good.directions, np.nan)), NAN)),
        SLOW: Trial(old, new, slower=SLOWER),
        SWAPPED: Trial(old, ask(_solve(_exchanged(learn, victim, other)), SWAPPED), victim=victim),
        NEW_PERMUTED: Trial(narrow, ask(_solve(permuted), NEW_PERMUTED), names_new=True, victim=victim),
        ANY_CLASS: Trial(old, ask(_solve(_permuted(learn, anyone, rng)), ANY_CLASS), victim=anyone),
    }, truth


def _much_better(learn: Pictures, seed: int, ask: Callable[[HeadWeights, str], Answers]) -> Trial:
    """A successor of a head that knew little: it differs on many frames, and the gold set says that it may."""
    rows, kept = split(learn, seed)
    part, gold = learn.pick(np.random.default_rng([seed, 10]).permutation(rows)), learn.pick(kept)
    before, after = _solve(part.pick(np.arange(int(LITTLE_KNOWN * len(rows))))), _solve(part)
    x = gold.embeddings.astype(np.float64)
    moves = compare_moves([str(label) for label in gold.labels], before.predict(x), after.predict(x))
    explained = {f"{SCENARIO}/{label}": move.explained for label, move in moves.items()}
    return Trial(ask(before, "little"), ask(after, BETTER), explained)


def _permuted(pictures: Pictures, victim: str, rng: np.random.Generator) -> Pictures:
    """The labels of one class spread over the others."""
    worse, own = pictures.labels.copy(), pictures.labels == victim
    worse[own] = rng.choice([kind for kind in pictures.classes if kind != victim], int(own.sum()))
    return replace(pictures, labels=worse)


def _exchanged(pictures: Pictures, one: str, other: str) -> Pictures:
    """Two classes under each other's name."""
    worse = pictures.labels.copy()
    worse[pictures.labels == one], worse[pictures.labels == other] = other, one
    return replace(pictures, labels=worse)


def _without(pictures: Pictures, kind: str) -> Pictures:
    """As if nobody had thought of this class yet."""
    fewer = pictures.pick(np.flatnonzero(pictures.labels != kind))
    return replace(fewer, classes=tuple(name for name in pictures.classes if name != kind))


def project(pictures: Pictures) -> Pictures:
    """The same pictures in the principal directions that the product's solver would choose: solved much faster."""
    everything = Statistics.of(pictures.classes, pictures.embeddings, [str(name) for name in pictures.labels])
    basis = principal_basis(everything, DIMENSIONS)
    return replace(pictures, embeddings=(pictures.embeddings @ basis).astype(np.float32))


def _solve(pictures: Pictures) -> HeadWeights:
    part = Statistics.of(pictures.classes, pictures.embeddings, [str(name) for name in pictures.labels])
    return solve_lda(part, SHRINKAGE)


def _ask(weights: HeadWeights, x: NDArray[np.float32], path: Path) -> Answers:
    """Through the file and the edge's own code."""
    path.write_bytes(export_head(weights, SCENARIO, BACKBONE))
    head = Head.open(path, BACKBONE)
    form = head.stackable()
    predictions: Sequence[Prediction]
    if form is not None:
        stack = HeadStack([form])
        predictions = [stack.judge(row)[0] for row in x]
    else:
        predictions = [head.predict(row) for row in x]
    scores = [max(p.probabilities) if is_finite(row, (p,)) else np.nan for row, p in zip(x, predictions, strict=True)]
    tops = np.array([item.top for item in predictions])
    return Answers(tuple(predictions), tops, np.array(scores), tops != NORMAL)
