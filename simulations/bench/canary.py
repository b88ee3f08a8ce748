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
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.rollout.defaults import plan_of
from cloud.rollout.plan import stratified, without_likeness
from cloud.rollout.rules import Report
from cloud.rollout.state import Phase, Rollout
from cloud.settings import RolloutSettings
from common.messages import ReleaseHealth
from edge.settings import InstallSettings
from edge.tally import Pair
from simulations.bench._rollouts import BEGIN_NS, NEW, OLD, ROLLOUT, SimulatedFleet
from simulations.bench._sites import Rows, embed_folder, find_folders
from simulations.bench._successors import (
    ANY_CLASS,
    BETTER,
    CASES,
    GOOD,
    NAN,
    PERMUTED,
    SCENARIO,
    SLOW,
    Answers,
    Trial,
    make_trials,
    project,
)

SITES: Final = 3_000
RUNS, QUICK_RUNS = 100, 50
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
MIXTURE: Final = 1.0
"""Dirichlet: what a site sees of the classes."""
BASELINE_FRAMES: Final = 1000
TRIED_S, COMMITTED_S = 120.0, 600.0
"""After being told: shadow is reported, and enough looks by the committed release."""
LATENCY_MS, LATENCY_SPREAD, LATENCY_NOISE = 20.0, 0.3, 0.1
UNTIL_S, TICK_S = 24 * 3600.0, 300.0

NAMED_EDGES: Final = (0.0, 1e-9, 0.01, 0.05, 1.0)
BANDS: Final = ("never", "under 1 %", "1 to 5 %", "5 % and more")
"""Of all frames, those on which the running head names the class that is spoilt."""


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
    lost: bool = False
    """The class over which it was stopped is recognised less than half as often by the new head."""


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
    with tempfile.TemporaryDirectory(prefix="headframe-canary-") as folder:
        sets = [project(embed_folder(path)) for path in find_folders()]
        for number in track(range(runs), "runs", console=Console(stderr=True), transient=True):
            trials, truth = make_trials(sets[number % len(sets)], SEED + number, Path(folder))
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
                "class_lost": sum(run.lost for run in rows) / runs,
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

    rollout = simulated.run(without_likeness(PLAN) if trial.names_new else PLAN, UNTIL_S, TICK_S, passed)
    if rollout.phase is not Phase.ABORTED:
        return Run(False, len(rollout.members), "", *_presence(trial, truth))
    closed = [verdict for verdict in rollout.verdicts if not verdict.passed]
    over = {verdict.about.rpartition("/")[2] for verdict in closed if verdict.about}
    lost = any(_recall(trial.new, truth, kind) < _recall(trial.old, truth, kind) / 2 for kind in over)
    gates = ", ".join(verdict.gate for verdict in closed)
    return Run(True, len(rollout.members), gates, *_presence(trial, truth), lost)


def _presence(trial: Trial, truth: NDArray[np.str_]) -> tuple[float, float]:
    """How often the running head names the victim: of all frames, every class as common, and of the victim's own."""
    named = [(trial.old.top[truth == kind] == trial.victim).mean() for kind in np.unique(truth)]
    return float(np.mean(named)), _recall(trial.old, truth, trial.victim)


def _recall(answers: Answers, truth: NDArray[np.str_], kind: str) -> float:
    return float((answers.top[truth == kind] == kind).mean()) if kind in truth else 0.0
