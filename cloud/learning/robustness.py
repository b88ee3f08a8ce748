"""Which sites' statistics are not to be believed, and why. Decides quarantine; removing them is one subtraction.

Two witnesses, both from the statistics themselves, so no pixel is needed:

- *Magnitude*: the mean square of a site's embeddings, and the norm of its class means, against the median site's.
  Frozen features have much the same length everywhere; statistics that were scaled do not.
- *Labels*: how a site's classes differ from each other, against how they do everywhere else
  (`cloud.learning.contrasts`). As long as they are the minority, sites that agree on a lie are found too.

The influence on a small trusted set (accuracy with the site less accuracy without it) is measured for whoever is
accused and goes into the record; alone it proves nothing: an honest site may cost a picture of the trusted set.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from cloud.learning.contrasts import find_flips
from cloud.learning.heads import HeadWeights, principal_basis, solve_lda
from common.errors import OperatorError
from common.statistics import Array, Statistics

DIRECTIONS = 64  # of the head that judges: enough to tell classes apart, and a solve takes a millisecond
SHRINKAGE = 0.3  # of the heads that measure influence
SITES_MIN = 4  # fewer sites have no majority
MAGNITUDE_MAX = 2.0  # of the embeddings' length; a small site of odd pictures reached 1.46


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A quarantined site."""

    site: str
    reason: str
    samples: int
    influence: float | None = None
    """Points of accuracy on the trusted set that the site costs; None without such a set."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """What the centre vouches for: statistics of its own datasets, and labelled embeddings (n, d) held out of them."""

    statistics: Statistics
    embeddings: Array
    labels: tuple[str, ...]


def find_suspects(by_site: Mapping[str, Statistics], trusted: Trusted) -> tuple[Suspicion, ...]:
    """The sites to leave out, by name.

    Args:
        by_site: statistics over the same classes as `trusted.statistics`.
    """
    if len(by_site) < SITES_MIN:
        return ()
    reasons = _magnitudes(by_site)
    total = trusted.statistics
    for statistics in by_site.values():
        total = total + statistics
    for site in reasons:
        total = total - by_site[site]
    if total.total == 0:
        return tuple(Suspicion(site, reason, int(by_site[site].total)) for site, reason in sorted(reasons.items()))
    basis = principal_basis(total, DIRECTIONS)
    small = {site: part.project(basis) for site, part in by_site.items() if site not in reasons}
    vouched = Statistics.of(trusted.statistics.classes, trusted.embeddings @ basis, trusted.labels)
    reasons |= find_flips(small, trusted.statistics.project(basis) + vouched)
    return _with_influence(reasons, by_site, trusted, basis)


def _magnitudes(by_site: Mapping[str, Statistics]) -> dict[str, str]:
    """Sites whose embeddings are longer or shorter than the median site's by more than the bound."""
    lengths = {site: _lengths(part) for site, part in by_site.items() if part.total}
    middle = np.median(np.array(list(lengths.values())), axis=0)
    found = {}
    for site, own in lengths.items():
        ratios = np.asarray(own) / np.maximum(middle, 1e-12)
        worst = float(ratios[np.argmax(np.abs(np.log(np.maximum(ratios, 1e-12))))])
        if not 1 / MAGNITUDE_MAX <= worst <= MAGNITUDE_MAX:
            found[site] = f"scaled statistics: its embeddings are {worst:.2g} times as long as the other sites'"
    return found


def _lengths(part: Statistics) -> tuple[float, float]:
    """Root mean square length of the embeddings, and of the class means (weighed by their samples)."""
    counts = np.maximum(part.counts, 1.0)
    means = float(((part.sums**2).sum(axis=1) / counts).sum() / part.total)
    return float(np.sqrt(max(np.trace(part.moment), 0.0) / part.total)), float(np.sqrt(means))


def _solve(statistics: Statistics) -> HeadWeights | None:
    try:
        return solve_lda(statistics, SHRINKAGE)
    except OperatorError:  # fewer than two classes: nothing to judge by
        return None


def _with_influence(
    reasons: Mapping[str, str], by_site: Mapping[str, Statistics], trusted: Trusted, basis: Array
) -> tuple[Suspicion, ...]:
    """What each accused site would cost on the trusted set, added to the sites that are believed."""
    believed = trusted.statistics.project(basis)
    for site, part in by_site.items():
        if site not in reasons:
            believed = believed + part.project(basis)
    without = _accuracy(_solve(believed), trusted, basis)
    found = []
    for site, reason in sorted(reasons.items()):
        influence = None
        if without is not None:
            with_it = _accuracy(_solve(believed + by_site[site].project(basis)), trusted, basis)
            influence = None if with_it is None else round(without - with_it, 2)
        found.append(Suspicion(site, reason, int(by_site[site].total), influence))
    return tuple(found)


def _accuracy(head: HeadWeights | None, trusted: Trusted, basis: Array) -> float | None:
    if head is None or not trusted.labels:
        return None
    said = head.predict(trusted.embeddings @ basis)
    return 100 * sum(a == b for a, b in zip(said, trusted.labels, strict=True)) / len(said)
