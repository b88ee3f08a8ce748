"""`headframe bench canary`: is a worse model stopped while few run it, and is a good one let through?

Real heads on real embeddings: a running one, successors that are good, and some that are deliberately worse. Each is
exported, loaded and asked by the edge's own code; what a gateway counts of that is its report. Engine, gates and plan
are the product's with its defaults, time is simulated, and nobody labels anything while a wave is watched. Stopped at
the canary means: in the stages up to 30 of the 3,000 sites. The worse models are taken to have slipped through the
centre's own gate, which compares on labelled pictures before anything is signed.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.learning.export import export_head
from cloud.learning.gates import compare_moves
from cloud.learning.heads import HeadWeights, principal_basis, solve_lda
from cloud.rollout.defaults import plan_of
from cloud.rollout.plan import Plan, stratified, without_likeness
from cloud.rollout.rules import Report
from cloud.rollout.state import Phase, Rollout
from cloud.settings import LearningSettings, RolloutSettings
from common.messages import Prediction, ReleaseHealth
from common.statistics import Statistics
from edge.heads import HeadStack
from edge.perception import Head
from edge.settings import InstallSettings
from edge.tally import Pair, is_finite
from simulations.bench._rollouts import BEGIN_NS, NEW, OLD, ROLLOUT, SimulatedFleet
from simulations.bench._sites import Pictures, Rows, embed_folder, find_folders, split

SITES: Final = 3_000
RUNS, QUICK_RUNS = 100, 25
SEED: Final = 1_000
"""Of the first run. Limits and weights of the gates were chosen on other seeds."""
CANARY_WAVES: Final = 3
"""1, 5 and 30 sites."""
PLAN: Final = plan_of(RolloutSettings(), SITES)
TRIAL: Final = InstallSettings()
COMPARED: Final = TRIAL.shadow_frames + TRIAL.probation_frames
"""Frames on which a gateway compares the two: where none is passed over."""
NAMES: Final = tuple(f"site-{number:04d}" for number in range(SITES))
ORDER: Final = tuple(stratified(zip(NAMES, NAMES, strict=True), ROLLOUT))
MEASURED: Final = 40
"""The first sites in the order: those that a canary can reach, with what the running release did there."""
SCENARIO: Final = "bench"
NORMAL: Final = "normal"
"""The class that asks for no attention; a data set without it is of nothing but defects."""
BACKBONE: Final = "b" * 64
SHRINKAGE: Final = LearningSettings().shrinkage
DIMENSIONS: Final = 128
KNOWN, LITTLE_KNOWN = 0.7, 0.2
"""Share of the training pictures that the running head was solved from."""
MIXTURE: Final = 1.0
"""Dirichlet: what a site sees of the classes."""
BASELINE_FRAMES: Final = 1000
TRIED_S, COMMITTED_S = 120.0, 600.0
"""After being told: shadow is reported, and enough looks by the committed release."""
LATENCY_MS, LATENCY_SPREAD, LATENCY_NOISE = 20.0, 0.3, 0.1
SLOWER: Final = 5.0
UNTIL_S, TICK_S = 24 * 3600.0, 300.0

GOOD, BETTER, NEW_CLASS = "good", "good, from five times the pictures", "good, names a new class"
PERMUTED, NAN, SLOW = "permuted class", "no numbers", "five times slower"
ANY_CLASS: Final = "permuted class, any"
"""Also one that the running head rarely names: not always a worse head, so it is measured apart."""
SWAPPED, NEW_PERMUTED = "two classes exchanged", "permuted class, names a new class"
CASES: Final = (GOOD, BETTER, NEW_CLASS, PERMUTED, NAN, SLOW, SWAPPED, NEW_PERMUTED, ANY_CLASS)
NAMED_EDGES: Final = (0.0, 1e-9, 0.01, 0.05, 1.0)
BANDS: Final = ("never", "under 1 %", "1 to 5 %", "5 % and more")
"""Of all frames, those on which the running head names the class that is spoilt."""


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
    plan: Plan = PLAN
    slower: float = 1.0
    victim: str = ""
    """The class that is spoilt."""


@dataclass(frozen=True, slots=True)
class Run:
    """How one rollout ended."""

    stopped: bool
    exposed: int
    gates: str
    named: float
    """Share of all frames on which the running head names the victim."""
    recall: float
    """… and of the victim's own."""


class Canaries:
    """Gateways that run one of the models; what each sees is drawn once."""

    def __init__(self, trial: Trial, truth: NDArray[np.str_], seed: int) -> None:
        self._trial, self._seed = trial, seed
        self._by_class = [np.flatnonzero(truth == kind) for kind in np.unique(truth)]

    def told(self, name: str, now_s: float) -> list[tuple[float, Callable[[Report], Report]]]:
        """Shadow, then committed: as the edge's installer reports them."""
        rows = self._frames(name, PLAN.healthy_frames, 1)
        shadow = self.health(name, rows[: TRIAL.shadow_frames], "shadow")
        later = self.health(name, rows, "committed")
        seen_ns = BEGIN_NS + int((now_s + COMMITTED_S) * 1e9)
        return [
            (TRIED_S, lambda r: replace(r, health=(*r.health[:1], shadow))),
            (COMMITTED_S, lambda r: replace(r, release_id=NEW, health=(later,), seen_ns=seen_ns)),
        ]

    def health(self, name: str, rows: Rows, phase: str) -> ReleaseHealth:
        """What the edge counts of the new release on these frames, the first of which the old one sees too."""
        counts, pair = self._count(self._trial.new, rows, NEW, phase, self._trial.slower, name), Pair()
        for row in rows[:COMPARED]:
            if self._trial.new.finite[row]:
                new, old = ((answers.predictions[row],) for answers in (self._trial.new, self._trial.old))
                pair.count(new, old, flagged_running=False, flagged_beside=False)
        fields = {key: getattr(counts, key) for key in counts.__struct_fields__}
        return ReleaseHealth(
            **{**fields, "compared": pair.compared, "disagreed": pair.disagreed, "moved": pair.moves_beside}
        )

    def before(self, name: str) -> ReleaseHealth:
        """What the running release did there."""
        return self._count(self._trial.old, self._frames(name, BASELINE_FRAMES, 0), OLD, "committed", 1.0, name)

    def _frames(self, name: str, count: int, moment: int) -> Rows:
        """Test pictures as the site sees them: its own mixture of classes, other pictures at each moment."""
        number = int(name.rpartition("-")[2])
        shares = np.random.default_rng([self._seed, number]).dirichlet(np.full(len(self._by_class), MIXTURE))
        rng = np.random.default_rng([self._seed, number, moment])
        counts = rng.multinomial(count, shares)
        return rng.permutation(
            np.concatenate([rng.choice(rows, size) for rows, size in zip(self._by_class, counts, strict=True)])
        )

    def _count(self, answers: Answers, rows: Rows, release: str, phase: str, slower: float, name: str) -> ReleaseHealth:
        number = int(name.rpartition("-")[2])
        box = LATENCY_MS * float(np.exp(np.random.default_rng([self._seed, number, 8]).normal(0, LATENCY_SPREAD)))
        noise = np.random.default_rng([self._seed, number, len(release), len(rows)]).normal(0, LATENCY_NOISE)
        fine = rows[answers.finite[rows]]
        scores = answers.score[fine]
        return ReleaseHealth(
            release_id=release,
            phase=phase,
            frames=len(fine),
            errors=len(rows) - len(fine),
            flagged=int(answers.flagged[fine].sum()),
            score_sum=float(scores.sum()),
            score_squares=float((scores**2).sum()),
            latency_ms=box * slower * float(np.exp(noise)),
        )


def bench_canary(*, quick: bool) -> dict[str, Any]:
    """All cases on all data sets and seeds."""
    began_s = time.monotonic()
    runs = QUICK_RUNS if quick else RUNS
    found: dict[str, list[Run]] = {case: [] for case in CASES}
    folders = find_folders()[1:2] if quick else find_folders()
    with tempfile.TemporaryDirectory(prefix="headframe-canary-") as folder:
        sets = [_projected(embed_folder(path)) for path in folders]
        for number in track(range(runs), "runs", console=Console(stderr=True), transient=True):
            trials, truth = _trials(sets[number % len(sets)], SEED + number, Path(folder))
            for case, outcomes in found.items():
                outcomes.append(_run(trials[case], truth, SEED + number))
    bad = [run for case in (PERMUTED, NAN, SLOW) for run in found[case]]
    return {
        "bad_stopped": _stopped(bad),
        "good_stopped": _stopped(found[GOOD]),
        "better_stopped": _stopped(found[BETTER]),
        "bad_stopped_any_class": _stopped(found[ANY_CLASS]),
        "runs": runs,
        "table": [
            {
                "model": case,
                "stopped": _stopped(rows),
                "exposed_p50": float(np.percentile([run.exposed for run in rows], 50)),
                "exposed_p95": float(np.percentile([run.exposed for run in rows], 95)),
                "by": dict(Counter(run.gates for run in rows if run.gates)),
            }
            for case, rows in found.items()
        ],
        "any_class": [
            {
                "named": BANDS[number],
                "runs": len(rows),
                "stopped": _stopped(rows),
                "recall": float(np.mean([run.recall for run in rows])),
            }
            for number, (low, high) in enumerate(pairwise(NAMED_EDGES))
            if (rows := [run for run in found[ANY_CLASS] if low <= run.named < high])
        ],
        "plan": {"healthy_frames": PLAN.healthy_frames, "soak_s": PLAN.soak_s, "compared": COMPARED, "labels": 0},
        "data": [pictures.name for pictures in sets],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _stopped(runs: Sequence[Run]) -> float:
    return sum(run.stopped for run in runs) / len(runs)


def _run(trial: Trial, truth: NDArray[np.str_], seed: int) -> Run:
    canaries = Canaries(trial, truth, seed)
    fleet = {name: Report(name, name, BEGIN_NS, True, OLD) for name in NAMES}
    for name in ORDER[:MEASURED]:
        fleet[name] = replace(fleet[name], health=(canaries.before(name),))
    known = {f"{SCENARIO}/{label}": 0.0 for label in trial.old.predictions[0].classes}
    simulated = SimulatedFleet(fleet, canaries, known_classes=known | dict(trial.explained))

    def passed(rollout: Rollout) -> bool:
        return rollout.wave >= CANARY_WAVES

    rollout = simulated.run(trial.plan, UNTIL_S, TICK_S, passed)
    stopped = rollout.phase is Phase.ABORTED
    gates = ", ".join(v.gate for v in rollout.verdicts if not v.passed) if stopped else ""
    named = {kind: (trial.old.top[truth == kind] == trial.victim).mean() for kind in np.unique(truth)}
    return Run(
        stopped, len(rollout.members), gates, float(np.mean(list(named.values()))), float(named.get(trial.victim, 0.0))
    )


def _trials(pictures: Pictures, seed: int, folder: Path) -> tuple[dict[str, Trial], NDArray[np.str_]]:
    """Every case's models, asked about the test pictures, and the truth."""
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
        NEW_CLASS: Trial(narrow, new, plan=without_likeness(PLAN)),
        PERMUTED: Trial(old, ask(_solve(permuted), PERMUTED), victim=victim),
        NAN: Trial(old, ask(replace(good, directions=np.full_like(good.directions, np.nan)), NAN)),
        SLOW: Trial(old, new, slower=SLOWER),
        SWAPPED: Trial(old, ask(_solve(_exchanged(learn, victim, other)), SWAPPED), victim=victim),
        NEW_PERMUTED: Trial(narrow, ask(_solve(permuted), NEW_PERMUTED), plan=without_likeness(PLAN), victim=victim),
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


def _projected(pictures: Pictures) -> Pictures:
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
