"""`headframe bench canary`: is a worse model stopped while few run it, and is a good one let through?

Real heads on real embeddings: the running one, a good successor (solved from more of the same pictures), and three
deliberately worse ones: the labels of one class are drawn anew among the others before it is solved; its weights are no
numbers; it is five times slower. Each is exported, loaded and asked by the edge's own code (`edge.perception`,
`edge.heads`, `edge.striking`); what a gateway counts from that is its report. Engine and gates are the product's, time
is simulated. Stopped at the canary means: in the stages up to 30 of the 3,000 sites. The worse models are taken to have
slipped through the centre's own gate, which compares on labelled pictures before anything is signed.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.learning.export import export_head
from cloud.learning.gates import balanced_accuracy
from cloud.learning.heads import HeadWeights, principal_basis, solve_lda
from cloud.rollout.gates import LabelTally
from cloud.rollout.plan import Plan, stratified
from cloud.rollout.rules import Report
from cloud.rollout.state import Phase, Rollout
from common.messages import Prediction, ReleaseHealth
from common.statistics import Statistics
from edge.heads import HeadStack
from edge.perception import Head
from edge.settings import GearSettings
from edge.striking import Striking
from simulations.bench._rollouts import BEGIN_NS, NEW, OLD, ROLLOUT, SimulatedFleet
from simulations.bench._sites import Pictures, embed_folder, find_folders, split

SITES: Final = 3_000
RUNS, QUICK_RUNS = 100, 25
CANARY_WAVES: Final = 3
"""1, 5 and 30 sites."""
PLAN: Final = Plan(healthy_frames=1000, soak_s=4 * 3600, deadline_s=4 * 3600)
MEASURED: Final = 40
"""The first sites in the order: those that a canary can reach, with what the running release did there."""
BACKBONE: Final = "b" * 64
SHRINKAGE: Final = 0.3  # the default of cloud.settings.LearningSettings
DIMENSIONS: Final = 128
KNOWN: Final = 0.7
"""Share of the training pictures that the running head was solved from."""
DRAWS_MAX: Final = 20
MIXTURE: Final = 1.0
"""Dirichlet: what a site sees of the classes."""
BASELINE_FRAMES, SHADOW_FRAMES, FRAMES = 1000, 200, 1000
LABELLED: Final = 20
"""Frames of a gateway that people label while a wave is watched: the random trickle of 2 %."""
LATENCY_MS, LATENCY_SPREAD, LATENCY_NOISE = 20.0, 0.3, 0.1
SLOWER: Final = 5.0
UNTIL_S, TICK_S = 48 * 3600.0, 300.0
CASES: Final = ("good", "permuted class", "no numbers", "five times slower")


@dataclass(frozen=True, slots=True)
class Answers:
    """What a head says of every test picture, by the edge's code."""

    predictions: tuple[Prediction, ...]
    top: NDArray[np.integer]
    score: NDArray[np.floating]

    @property
    def finite(self) -> NDArray[np.bool_]:
        finite: NDArray[np.bool_] = np.isfinite(self.score)
        return finite


class Canaries:
    """Gateways that run one of the models; what each sees is drawn once."""

    def __init__(self, case: str, old: Answers, new: Answers, truth: NDArray[np.integer], seed: int) -> None:
        self._case, self._old, self._new, self._truth, self._seed = case, old, new, truth, seed
        self._by_class = [np.flatnonzero(truth == kind) for kind in np.unique(truth)]
        self._decided: dict[int, list[int]] = {}
        """Labels on which exactly one of the two is right, by true class: (old, new)."""

    def told(self, name: str, now_s: float) -> list[tuple[float, Callable[[Report], Report]]]:
        """Shadow, probation, committed: as the edge's installer reports them."""
        rows, rng = self._frames(name, FRAMES, 1)
        shadow = self.health(name, rows[:SHADOW_FRAMES], "shadow")
        later = self.health(name, rows, "committed")
        seen_ns = BEGIN_NS + int(now_s * 1e9)
        labelled = rows[rng.permutation(len(rows))[:LABELLED]]
        was, now = (answers.top[labelled] == self._truth[labelled] for answers in (self._old, self._new))

        def commit(report: Report) -> Report:
            for kind, new_is_right in zip(self._truth[labelled][was != now], now[was != now], strict=True):
                self._decided.setdefault(int(kind), [0, 0])[int(new_is_right)] += 1
            return replace(report, release_id=NEW, health=(later,), seen_ns=seen_ns)

        return [(600.0, lambda r: replace(r, health=(*r.health[:1], shadow))), (3600.0, commit)]

    def labels(self) -> LabelTally:
        """What people have said."""
        by_class = tuple((old, new) for old, new in self._decided.values())
        return LabelTally(
            old_right=sum(old for old, _ in by_class), new_right=sum(new for _, new in by_class), by_class=by_class
        )

    def health(self, name: str, rows: NDArray[np.integer], phase: str) -> ReleaseHealth:
        """What the edge counts of the new release on these frames, which the old one sees too."""
        counts = self._count(self._new, rows, NEW, phase, SLOWER if self._case == "five times slower" else 1.0, name)
        compared = rows[:SHADOW_FRAMES]
        both = self._new.finite[compared] & self._old.finite[compared]
        disagreed = int((self._new.top[compared] != self._old.top[compared])[both].sum())
        return ReleaseHealth(**{**_fields(counts), "compared": int(both.sum()), "disagreed": disagreed})

    def before(self, name: str) -> ReleaseHealth:
        """What the running release did there."""
        rows, _ = self._frames(name, BASELINE_FRAMES, 0)
        return self._count(self._old, rows, OLD, "committed", 1.0, name)

    def _frames(self, name: str, count: int, moment: int) -> tuple[NDArray[np.integer], np.random.Generator]:
        """Test pictures as the site sees them: its own mixture of classes, other pictures at each moment."""
        number = int(name.rpartition("-")[2])
        shares = np.random.default_rng([self._seed, number]).dirichlet(np.full(len(self._by_class), MIXTURE))
        rng = np.random.default_rng([self._seed, number, moment])
        counts = rng.multinomial(count, shares)
        rows = np.concatenate([rng.choice(rows, size) for rows, size in zip(self._by_class, counts, strict=True)])
        return rng.permutation(rows), rng

    def _count(
        self, answers: Answers, rows: NDArray[np.integer], release: str, phase: str, slower: float, name: str
    ) -> ReleaseHealth:
        number = int(name.rpartition("-")[2])
        box = LATENCY_MS * float(np.exp(np.random.default_rng([self._seed, number, 8]).normal(0, LATENCY_SPREAD)))
        noise = np.random.default_rng([self._seed, number, len(release), len(rows)]).normal(0, LATENCY_NOISE)
        fine = answers.finite[rows]
        striking = Striking(GearSettings())
        flagged = sum(striking.judge((answers.predictions[row],)) for row in rows[fine])
        scores = answers.score[rows[fine]]
        return ReleaseHealth(
            release_id=release,
            phase=phase,
            frames=len(rows),
            errors=int((~fine).sum()),
            flagged=flagged,
            score_sum=float(scores.sum()),
            score_squares=float((scores**2).sum()),
            latency_ms=box * slower * float(np.exp(noise)),
        )


def bench_canary(*, quick: bool) -> dict[str, Any]:
    """All cases on all data sets and seeds."""
    began_s = time.monotonic()
    runs = QUICK_RUNS if quick else RUNS
    found: dict[str, list[tuple[bool, int, str]]] = {case: [] for case in CASES}
    folders = find_folders()[1:2] if quick else find_folders()
    with tempfile.TemporaryDirectory(prefix="headframe-canary-") as folder:
        sets = [_projected(embed_folder(path)) for path in folders]
        for seed in range(runs):
            answers, truth = _models(sets[seed % len(sets)], seed, Path(folder))
            for case in CASES:
                new = answers["good" if case == "five times slower" else case]
                found[case].append(_run(case, answers["running"], new, truth, seed))
    bad = [run for case in CASES[1:] for run in found[case]]
    return {
        "bad_stopped": sum(stopped for stopped, _, _ in bad) / len(bad),
        "good_stopped": sum(stopped for stopped, _, _ in found["good"]) / runs,
        "runs": runs,
        "table": [
            {
                "model": case,
                "stopped": sum(stopped for stopped, _, _ in rows) / runs,
                "exposed_p50": float(np.percentile([exposed for _, exposed, _ in rows], 50)),
                "exposed_p95": float(np.percentile([exposed for _, exposed, _ in rows], 95)),
                "by": dict(Counter(gate for _, _, gate in rows if gate)),
            }
            for case, rows in found.items()
        ],
        "data": [pictures.name for pictures in sets],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _run(case: str, old: Answers, new: Answers, truth: NDArray[np.integer], seed: int) -> tuple[bool, int, str]:
    """(stopped at the canary, sites that were told, by which gates)"""
    canaries = Canaries(case, old, new, truth, seed)
    names = [f"site-{number:04d}" for number in range(SITES)]
    fleet = {name: Report(name, name, BEGIN_NS, True, OLD) for name in names}
    for name in stratified([(name, name) for name in names], ROLLOUT)[:MEASURED]:
        fleet[name] = replace(fleet[name], health=(canaries.before(name),))
    simulated = SimulatedFleet(fleet, canaries)

    def passed(rollout: Rollout) -> bool:
        simulated.label_tally = canaries.labels()
        return rollout.wave >= CANARY_WAVES

    rollout = simulated.run(PLAN, UNTIL_S, TICK_S, passed)
    gates = ", ".join(v.gate for v in rollout.verdicts if not v.passed) if rollout.phase is Phase.ABORTED else ""
    return rollout.phase is Phase.ABORTED, len(rollout.members), gates


def _models(pictures: Pictures, seed: int, folder: Path) -> tuple[dict[str, Answers], NDArray[np.integer]]:
    """What each model says of the test pictures, and the truth as class numbers."""
    train, test = split(pictures, seed)
    rng = np.random.default_rng([seed, 9])
    truth = np.array([pictures.classes.index(name) for name in pictures.labels[test]])
    x, labels = pictures.embeddings[test], pictures.labels
    for _ in range(DRAWS_MAX):
        train = rng.permutation(train)
        old, good = _solve(pictures, train[: int(KNOWN * len(train))], labels), _solve(pictures, train, labels)
        said = labels[test].tolist()
        if balanced_accuracy(said, good.predict(x)) >= balanced_accuracy(said, old.predict(x)):
            break  # more pictures do not always help, and one that is worse is no good release
    running = _ask(old, x, folder / f"{seed}-running.onnx")
    victim = _known_class(running, truth, pictures.classes, rng)
    worse = labels.copy()
    worse[labels == victim] = rng.choice([c for c in pictures.classes if c != victim], int((labels == victim).sum()))
    made = {
        "good": good,
        "permuted class": _solve(pictures, train, worse),
        "no numbers": replace(good, directions=np.full_like(good.directions, np.nan)),
    }
    answers = {name: _ask(weights, x, folder / f"{seed}-{name}.onnx") for name, weights in made.items()}
    return {"running": running, **answers}, truth


def _known_class(running: Answers, truth: NDArray[np.integer], classes: Sequence[str], rng: np.random.Generator) -> str:
    """A class that the running head recognises more often than not: to spoil one that it misses changes nothing."""
    recalls = {number: (running.top[truth == number] == number).mean() for number in np.unique(truth)}
    known = [number for number, recall in recalls.items() if recall > 0.5]
    return classes[int(rng.choice(known))]


def _projected(pictures: Pictures) -> Pictures:
    """The same pictures in the principal directions that the product's solver would choose: solved much faster."""
    everything = Statistics.of(pictures.classes, pictures.embeddings, [str(name) for name in pictures.labels])
    basis = principal_basis(everything, DIMENSIONS)
    return replace(pictures, embeddings=(pictures.embeddings @ basis).astype(np.float32))


def _solve(pictures: Pictures, rows: NDArray[np.integer], labels: NDArray[np.str_]) -> HeadWeights:
    part = Statistics.of(pictures.classes, pictures.embeddings[rows], [str(name) for name in labels[rows]])
    return solve_lda(part, SHRINKAGE)


def _ask(weights: HeadWeights, x: NDArray[np.float32], path: Path) -> Answers:
    """Through the file and the edge's own code."""
    path.write_bytes(export_head(weights, "bench", BACKBONE))
    head = Head.open(path, BACKBONE)
    form = head.stackable()
    predictions: Sequence[Prediction]
    if form is not None:
        stack = HeadStack([form])
        predictions = [stack.judge(row)[0] for row in x]
    else:
        predictions = [head.predict(row) for row in x]
    shares = np.array([item.probabilities for item in predictions])
    return Answers(tuple(predictions), shares.argmax(axis=1), shares.max(axis=1))


def _fields(health: ReleaseHealth) -> dict[str, Any]:
    return {name: getattr(health, name) for name in health.__struct_fields__}
