"""Candidate heads of one scenario, judged on samples they were not solved from.

A site's labelled samples are few and all of them are wanted for learning, so the gate is cross-validated by
subtraction: fold statistics leave the sum exactly (`common.statistics`), and one solve per fold gives heads that never
saw the fold. The released heads are then solved from everything.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from cloud.learning.gates import (
    Comparison,
    GateReport,
    Move,
    choose_head,
    compare,
    compare_classes,
    compare_moves,
    pool_undecided,
)
from cloud.learning.heads import (
    Form,
    HeadWeights,
    UnlearnableError,
    calibrate,
    lift,
    principal_basis,
    solve,
    solve_shared,
)
from cloud.learning.parts import project_all
from cloud.learning.robustness import Judgement
from common.manifest import SHARED
from common.statistics import Array, Statistics

FOLDS = 3


@dataclass(frozen=True, slots=True)
class Labelled:
    """Labelled samples at hand: embeddings (n, d) with one label and one id each."""

    ids: tuple[bytes, ...]
    embeddings: NDArray[np.floating]
    labels: tuple[str, ...]

    def pick(self, mask: NDArray[np.bool_]) -> "Labelled":
        """The samples where `mask` (n,) holds."""
        rows = np.flatnonzero(mask)
        return Labelled(tuple(self.ids[i] for i in rows), self.embeddings[rows], tuple(self.labels[i] for i in rows))

    def project(self, basis: Array) -> "Labelled":
        """The same samples with embeddings x B (n, k)."""
        return replace(self, embeddings=(self.embeddings.astype(np.float64) @ basis))

    @property
    def folds(self) -> NDArray[np.integer]:
        """Fold (n,) of each sample, by its id: stable from run to run."""
        return np.array([name[-1] % FOLDS for name in self.ids], dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that a training run knows about one scenario."""

    classes: tuple[str, ...]
    shared: Statistics
    """The sum over every contribution: datasets, the centre's own, the gateways'."""
    by_site: Mapping[str, Statistics]
    """What each site brought, in full: in `shared` some count less (`bounded`)."""
    labelled: Mapping[str, Labelled]
    """Per site, the samples the centre holds itself; a site that shares updates only has none."""
    gold: Labelled
    running: Mapping[str, HeadWeights]
    """The heads that run now: the shared one under `*`, personal ones under their site; empty before release 1."""
    judged: Judgement = field(default_factory=Judgement)
    """Whose contributions are not in `shared` and why, and who of the others costs most."""
    samples: frozenset[bytes] = frozenset()
    """Ids of every sample and picture in `shared`."""
    datasets: tuple[str, ...] = ()
    """Names of the datasets in it."""
    dataset: Mapping[str, object] = field(default_factory=dict)
    """Which version of the scenario's dataset this is: number, hash, pictures by role, open conflicts."""
    before: Mapping[bytes, NDArray[np.floating]] | None = None
    """By id, what the running backbone says of labelled samples and gold, where the heads stand on another one."""
    bounded: Mapping[str, float] = field(default_factory=dict)
    """Gateways over the bound (`cloud.learning.bounds`) -> how much each of their samples counts in `shared`."""
    weights: Mapping[bytes, float] = field(default_factory=dict)
    """The same by id, of those samples that the centre holds."""

    def project(self, basis: Array) -> "Evidence":
        """The same evidence on projected embeddings; running heads are not projected (see `make_candidates`)."""
        return replace(
            self,
            shared=self.shared.project(basis),
            by_site=project_all(self.by_site, basis),
            labelled={site: own.project(basis) for site, own in self.labelled.items()},
            gold=self.gold.project(basis),
        )

    def running_at(self, site: str) -> HeadWeights | None:
        return self.running.get(site) or self.running.get(SHARED)

    def said(self, head: HeadWeights, samples: Labelled) -> list[str]:
        """What a running head says of samples, from the backbone that it stands on."""
        before = self.before
        if before is None or not samples.ids:
            return head.predict(samples.embeddings)
        return head.predict(np.stack([before[name] for name in samples.ids]))


@dataclass(frozen=True, slots=True)
class Candidates:
    """Heads to release: the shared one under `*`, personal ones under their site, kept ones left out."""

    heads: dict[str, HeadWeights]
    kept: tuple[str, ...]
    gate: GateReport


@dataclass(frozen=True, slots=True)
class Rules:
    """See `cloud.settings.LearningSettings`."""

    shrinkage: float
    personal_weight: float
    personal_labels_min: int
    tolerance: float
    dimension_max: int = 512
    head: Form = "lda"

    def solve(self, statistics: Statistics) -> HeadWeights:
        """The head of (projected) statistics."""
        return solve(statistics, self.shrinkage, self.head)

    def solve_shared(self, statistics: Statistics) -> HeadWeights:
        """The head of statistics as they came: projected, solved, lifted back."""
        return solve_shared(statistics, self.shrinkage, self.dimension_max, self.head)


def make_candidates(full: Evidence, rules: Rules) -> Candidates:
    """Solve the shared head and the personal heads, and judge them against what runs.

    Everything is solved in the principal subspace of the shared statistics and lifted back at the end, so a head still
    takes the backbone's embedding.

    Raises:
        UnlearnableError: too little is known for a head.
    """
    basis = principal_basis(full.shared, rules.dimension_max)
    evidence = full.project(basis)
    gold = evidence.gold
    shared = rules.solve(evidence.shared)
    heads = {SHARED: calibrate(shared, gold.embeddings, list(gold.labels))}
    choices: dict[str, str] = {}
    comparisons, moves = _compare_on_gold(full, lift(shared, basis), rules)
    at_sites: list[Comparison] = []
    for site in sorted(evidence.by_site):
        running = full.running_at(site)
        before = full.said(running, full.labelled[site]) if running and site in full.labelled else None
        choice, comparison = _judge_site(site, evidence, before, rules)
        choices[site] = choice
        at_sites += [comparison] if comparison else []
        if choice == "personal":
            personal = rules.solve(_personal(evidence.shared, evidence.by_site[site], rules))
            heads[site] = calibrate(personal, gold.embeddings, list(gold.labels))
    comparisons += [*at_sites, *pool_undecided("sites/undecided", at_sites, rules.tolerance)]
    kept = tuple(site for site, choice in choices.items() if choice == "kept")
    lifted = {key: lift(weights, basis) for key, weights in heads.items()}
    return Candidates(lifted, kept, GateReport(tuple(comparisons), choices, moves))


def _personal(shared: Statistics, site: Statistics, rules: Rules) -> Statistics:
    """Each of the site's own samples counts `personal_weight` times."""
    return shared + site * (rules.personal_weight - 1)


def _compare_on_gold(evidence: Evidence, shared: HeadWeights, rules: Rules) -> tuple[list[Comparison], dict[str, Move]]:
    running, gold = evidence.running.get(SHARED), evidence.gold
    if running is None or not gold.labels:
        return [], {}
    before, after = evidence.said(running, gold), shared.predict(gold.embeddings)
    comparisons = compare_classes("gold", gold.labels, before, after, rules.tolerance)
    return list(comparisons), compare_moves(gold.labels, before, after)


def _judge_site(
    site: str, evidence: Evidence, running: list[str] | None, rules: Rules
) -> tuple[str, Comparison | None]:
    """Which head the site gets, and how that one compares on the site's own labels.

    Args:
        running: what the running head says of the site's labelled samples; None where there is nothing to compare.
    """
    own = evidence.labelled.get(site)
    wants_personal = evidence.by_site[site].total >= rules.personal_labels_min
    if own is None or not own.labels:  # nothing to judge by: the site's pixels and labels stay with it
        return ("personal" if wants_personal else "shared"), None
    try:
        shared, personal = _cross_validate(own, evidence, site, rules)
    except UnlearnableError:  # without a third of them nothing is left: they are all that is known
        return "shared", None
    before = running if running is not None else shared
    choice = choose_head(
        site, own.labels, before, shared, personal if wants_personal else None, may_keep=evidence.before is None
    )
    after = {"shared": shared, "personal": personal, "kept": before}[choice]
    return choice, compare(f"site/{site}", own.labels, before, after, rules.tolerance)


def _cross_validate(own: Labelled, evidence: Evidence, site: str, rules: Rules) -> tuple[list[str], list[str]]:
    """Predictions for a site's samples by shared and by personal heads that were solved without them."""
    shared, personal = [""] * len(own.labels), [""] * len(own.labels)
    for fold in np.unique(own.folds):
        held = own.folds == fold
        out = own.pick(held)
        counted = np.array([evidence.weights.get(name, 1.0) for name in out.ids])
        rest = evidence.shared - Statistics.of(evidence.classes, out.embeddings, out.labels, counted)
        site_rest = evidence.by_site[site] - Statistics.of(evidence.classes, out.embeddings, out.labels)
        heads = (
            rules.solve(rest),
            rules.solve(_personal(rest, site_rest, rules)),
        )
        for predictions, head in zip((shared, personal), heads, strict=True):
            for row, label in zip(np.flatnonzero(held), head.predict(out.embeddings), strict=True):
                predictions[row] = label
    return shared, personal


def summarise(gate: GateReport) -> dict[str, object]:
    """The gate as plain values, for the store, the console and the report."""
    return {
        "passed": gate.passed,
        "sites": gate.sites,
        "moves": {label: asdict(move) for label, move in gate.moves.items()},
        "comparisons": [
            {
                "name": comparison.name,
                "samples": comparison.samples,
                "running": round(comparison.running, 4),
                "candidate": round(comparison.candidate, 4),
                "low": round(comparison.low, 4),
                "high": round(comparison.high, 4),
                "p_value": round(comparison.p_value, 4),
                "verdict": comparison.verdict.value,
                "passed": comparison.passed,
            }
            for comparison in gate.comparisons
        ],
    }
