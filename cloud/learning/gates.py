"""May a candidate replace what runs? Compared on the gold set, every class of it, and each site's own labels.

A drop counts when it is larger than the tolerance *and* is no accident: McNemar's exact one-sided test over the
samples on which the two heads disagree. So one flipped picture of three does not stop a release, and four of four do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import comb

import numpy as np

SIGNIFICANCE = 0.1


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate against running head on one set of labelled samples."""

    name: str
    samples: int
    running: float
    candidate: float
    p_value: float
    passed: bool


@dataclass(frozen=True, slots=True)
class GateReport:
    """What was compared, and the verdict: it passes when every comparison does."""

    comparisons: tuple[Comparison, ...] = ()
    sites: dict[str, str] = field(default_factory=dict)
    """Per site which head it gets: shared, personal, or kept (its old one)."""

    @property
    def passed(self) -> bool:
        return all(comparison.passed for comparison in self.comparisons)


def balanced_accuracy(truth: Sequence[str], predicted: Sequence[str]) -> float:
    """Mean recall over the classes present in `truth`; NaN without samples."""
    t, p = np.asarray(truth), np.asarray(predicted)
    return float(np.mean([(p[t == name] == name).mean() for name in np.unique(t)])) if len(t) else float("nan")


def mcnemar_p(better: int, worse: int) -> float:
    """One-sided exact probability of at least `worse` of the disagreements going against the candidate by chance."""
    n = better + worse
    return sum(comb(n, k) for k in range(worse, n + 1)) / 2**n if n else 1.0


def compare(
    name: str, truth: Sequence[str], running: Sequence[str], candidate: Sequence[str], tolerance: float
) -> Comparison:
    """Compare predictions of two heads on the same samples.

    Args:
        tolerance: how much balanced accuracy (0..1) may drop.
    """
    t, r, c = np.asarray(truth), np.asarray(running), np.asarray(candidate)
    before, after = balanced_accuracy(truth, running), balanced_accuracy(truth, candidate)
    p_value = mcnemar_p(int(((r != t) & (c == t)).sum()), int(((r == t) & (c != t)).sum()))
    dropped = len(t) > 0 and before - after > tolerance and p_value < SIGNIFICANCE
    return Comparison(name, len(t), before, after, p_value, not dropped)


def compare_classes(
    name: str, truth: Sequence[str], running: Sequence[str], candidate: Sequence[str], tolerance: float
) -> tuple[Comparison, ...]:
    """One comparison over all samples and one per class: a class must not be forgotten behind a good mean."""
    t, r, c = np.asarray(truth), np.asarray(running), np.asarray(candidate)
    whole = compare(name, truth, running, candidate, tolerance)
    classes = [
        compare(f"{name}/{label}", list(t[t == label]), list(r[t == label]), list(c[t == label]), tolerance)
        for label in np.unique(t)
    ]
    return (whole, *classes)


def choose_head(
    site: str,
    truth: Sequence[str],
    running: Sequence[str],
    shared: Sequence[str],
    personal: Sequence[str] | None,
) -> str:
    """Which head a site gets: the personal one where there is one, unless its own labels speak against it.

    Args:
        running, shared, personal: predictions for the site's labelled samples by heads that were *not* solved from
            them (cross-validation by subtraction, `cloud.learning.candidates`); `personal` is None below the minimum
            of labels.

    Returns:
        `personal`, `shared` or `kept` (the site's old head, when both new ones lose against it).
    """
    preferred = "shared"
    if personal is not None and compare(site, truth, shared, personal, 0.0).passed:
        preferred = "personal"
    chosen = personal if preferred == "personal" and personal is not None else shared
    return preferred if compare(site, truth, running, chosen, 0.0).passed else "kept"
