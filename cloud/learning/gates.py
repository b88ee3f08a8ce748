"""May a candidate replace what runs? Compared on the gold set, every class of it, and each site's own labels.

The two heads answer the same samples, so what is judged is the change: samples that only the candidate names rightly
less those that only the running head does, with an interval (Bonett and Price 2012: honest for a handful of samples,
and for none that changed). A comparison is then

- `worse`: the whole interval lies below zero, and the drop is larger than the tolerance. It stops a release, or a
  site keeps its old head. Three of three pictures lost are enough; one of three is not.
- `held`: no drop larger than the tolerance is plausible.
- `undecided`: too few samples to say either. That stops nothing by itself; but all undecided classes are judged once
  more as one, and so are all undecided sites, so that a loss cannot hide in small numbers.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import comb, sqrt

import numpy as np

Z = 1.645
"""Of a two-sided interval of 90 %: a release is stopped wrongly by one comparison in twenty whose heads are equal, less
often where samples are few."""


class Verdict(Enum):
    """What the samples of a comparison say."""

    HELD = "held"
    UNDECIDED = "undecided"
    WORSE = "worse"


@dataclass(frozen=True, slots=True)
class Comparison:
    """Candidate against running head on one set of labelled samples."""

    name: str
    samples: int
    running: float
    candidate: float
    """Balanced accuracies (0..1); NaN without samples"""
    low: float
    high: float
    """Interval of the change, candidate less running"""
    p_value: float
    verdict: Verdict
    gained: int = 0
    """Samples that only the candidate names rightly"""
    lost: int = 0
    """… and only the running head"""

    @property
    def passed(self) -> bool:
        return self.verdict is not Verdict.WORSE


@dataclass(frozen=True, slots=True)
class Move:
    """What became of the samples that the running head names one class."""

    named: int
    rightly: int
    """The candidate names them otherwise, and right"""
    wrongly: int
    """… and the running head was right"""

    @property
    def explained(self) -> float:
        """Share of the class that is known to be named otherwise rightly, net; of few samples less (Laplace)."""
        return max(0.0, (self.rightly - self.wrongly) / (self.named + 2))


@dataclass(frozen=True, slots=True)
class GateReport:
    """What was compared, and the verdict: it passes when every comparison does."""

    comparisons: tuple[Comparison, ...] = ()
    sites: dict[str, str] = field(default_factory=dict)
    """Per site which head it gets: shared, personal, or kept (its old one)."""
    moves: dict[str, Move] = field(default_factory=dict)
    """Per class that the running head names, on the gold set"""

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


def paired_interval(gained: int, lost: int, samples: int) -> tuple[float, float]:
    """Interval of the difference of two proportions on the same samples.

    Bonett and Price (2012), "Adjusted Wald confidence interval for a difference of binomial proportions based on paired
    data", doi:10.3102/1076998611411915.

    Args:
        gained, lost: samples on which only the one, or only the other is right; together at most `samples`.
    """
    up, down = (gained + 1) / (samples + 2), (lost + 1) / (samples + 2)
    middle = up - down
    half = Z * sqrt(max(up + down - middle**2, 0.0) / (samples + 2))
    return max(middle - half, -1.0), min(middle + half, 1.0)


def compare(
    name: str, truth: Sequence[str], running: Sequence[str], candidate: Sequence[str], tolerance: float
) -> Comparison:
    """Compare predictions of two heads on the same samples.

    The interval is of balanced accuracy: those of the classes are put together by the squares of their halves (MOVER:
    Zou and Donner 2008).

    Args:
        tolerance: how much balanced accuracy (0..1) may drop.
    """
    t, r, c = np.asarray(truth), np.asarray(running), np.asarray(candidate)
    changes, below, above, gained, lost = [], 0.0, 0.0, 0, 0
    for label in np.unique(t):
        own = t == label
        up, down = int(((r != t) & (c == t) & own).sum()), int(((r == t) & (c != t) & own).sum())
        low, high = paired_interval(up, down, int(own.sum()))
        change = (up - down) / int(own.sum())
        changes.append(change)
        below, above = below + (change - low) ** 2, above + (high - change) ** 2
        gained, lost = gained + up, lost + down
    classes = max(len(changes), 1)
    change = float(np.mean(changes)) if changes else 0.0
    low, high = (change - sqrt(below) / classes, change + sqrt(above) / classes) if changes else (-1.0, 1.0)
    verdict = _judge(change, low, high, tolerance)
    before, after = balanced_accuracy(truth, running), balanced_accuracy(truth, candidate)
    return Comparison(name, len(t), before, after, low, high, mcnemar_p(gained, lost), verdict, gained, lost)


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
    return (whole, *classes, *pool_undecided(f"{name}/undecided", classes, tolerance))


def compare_moves(truth: Sequence[str], running: Sequence[str], candidate: Sequence[str]) -> dict[str, Move]:
    """Of each class that the running head names: a rollout's canary sees the same moves, and no labels."""
    t, r, c = np.asarray(truth), np.asarray(running), np.asarray(candidate)
    return {
        str(label): Move(
            int((r == label).sum()),
            int(((r == label) & (c != label) & (c == t)).sum()),
            int(((r == label) & (c != label) & (r == t)).sum()),
        )
        for label in np.unique(r)
    }


def pool_undecided(name: str, comparisons: Iterable[Comparison], tolerance: float) -> tuple[Comparison, ...]:
    """The undecided ones as one comparison, each sample counting the same; none where fewer than two are undecided.

    Args:
        comparisons: of different samples.
    """
    open_ = [comparison for comparison in comparisons if comparison.verdict is Verdict.UNDECIDED and comparison.samples]
    if len(open_) < 2:
        return ()
    samples, gained, lost = (sum(getattr(one, key) for one in open_) for key in ("samples", "gained", "lost"))
    low, high = paired_interval(gained, lost, samples)
    change = (gained - lost) / samples
    running = sum(one.running * one.samples for one in open_) / samples
    verdict = _judge(change, low, high, tolerance)
    p_value = mcnemar_p(gained, lost)
    return (Comparison(name, samples, running, running + change, low, high, p_value, verdict, gained, lost),)


def choose_head(
    site: str,
    truth: Sequence[str],
    running: Sequence[str],
    shared: Sequence[str],
    personal: Sequence[str] | None,
    *,
    may_keep: bool = True,
) -> str:
    """Which head a site gets: the personal one where there is one, unless its own labels speak against it.

    Args:
        running, shared, personal: predictions for the site's labelled samples by heads that were *not* solved from
            them (cross-validation by subtraction, `cloud.learning.candidates`); `personal` is None below the minimum
            of labels.
        may_keep: its old head still has a backbone to stand on. Without that a site that loses stops the release.

    Returns:
        `personal`, `shared` or `kept` (the site's old head, when both new ones lose against it).
    """
    preferred = "shared"
    if personal is not None and compare(site, truth, shared, personal, 0.0).passed:
        preferred = "personal"
    chosen = personal if preferred == "personal" and personal is not None else shared
    return preferred if not may_keep or compare(site, truth, running, chosen, 0.0).passed else "kept"


def _judge(change: float, low: float, high: float, tolerance: float) -> Verdict:
    if high < 0 and change < -tolerance:
        return Verdict.WORSE
    return Verdict.HELD if low >= -tolerance else Verdict.UNDECIDED
