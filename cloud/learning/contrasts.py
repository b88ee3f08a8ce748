"""Do a site's labels fit its own pictures? Judged by how its classes differ from each other, not by where they lie.

A site has a style: light, dust and the camera move all its embeddings alike, often further than classes lie apart. So a
site's class means say little, and their differences much. The mean of class k at site s is taken as

    m[s, k] = b[k] + a[s] + e[s, k],   a ~ N(0, style),   e ~ N(0, 1 / n[s, k] + difference),

in coordinates in which pictures of one class at one site scatter by one. b, what the classes are, is solved from all
sites at once; a, the site's style, cancels. A site is judged by a b from which its own part was subtracted, within the
directions in which classes differ. Its labels were flipped when they fit badly and when giving *each* of its classes
another name fits several times better. Where some names stay, it has to be much better: an honest site's odd class
looks like another one, too, but its ordinary one does not. Sites already accused are left out of b, and all are judged
again.

With one class at a site and styles as large as the classes lie apart, nothing can be said, and nothing is.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from common.statistics import Array, Statistics

PASSES_MAX = 5
FIT_ROUNDS = 4  # style and classes are fitted in turn; both stand still after three
CLASS_SAMPLES_MIN = 3  # a mean of fewer samples says little
SITE_SAMPLES_MAX = 20.0  # of a class at a site: beyond it more pictures do not make the site weigh more than others
SITES_OF_STYLE = 6  # with two classes or more; of fewer no style can be told, and it is taken to be none
SURPRISE_MIN = 6.0  # standard deviations by which chance would have to make honest labels fit so badly
BETTER_FIT_MAX = 0.35  # misfit under other names over that under its own
PARTLY_SURPRISE_MIN, PARTLY_FIT_MAX = 25.0, 0.1  # … where some names stay
SHRINKAGE = 0.3
RIDGE = 1e-6  # for classes that nobody has


@dataclass(frozen=True, slots=True)
class _Means:
    """A site in whitened coordinates: counts (c,) and class means (c, d)."""

    counts: Array
    means: Array

    @property
    def judged(self) -> NDArray[np.intp]:
        return np.flatnonzero(self.counts >= CLASS_SAMPLES_MIN)


@dataclass(frozen=True, slots=True)
class _Spread:
    """Variances, in units of the scatter within a class at a site."""

    style: float = 0.0
    """Between sites."""
    difference: float = 0.0
    """Of a class between sites, beyond their styles."""

    @property
    def looseness(self) -> float:
        """What holds a site's style at zero."""
        return 1.0 / max(self.style, 1e-9)


@dataclass(frozen=True, slots=True)
class _Equations:
    """Normal equations (c, c) and (c, d) of b; they add and subtract."""

    left: Array
    right: Array

    def __add__(self, other: "_Equations") -> "_Equations":
        return _Equations(self.left + other.left, self.right + other.right)

    def __sub__(self, other: "_Equations") -> "_Equations":
        return _Equations(self.left - other.left, self.right - other.right)

    @property
    def known(self) -> NDArray[np.intp]:
        """Classes that somebody has."""
        return np.flatnonzero(np.diag(self.left) > RIDGE)

    def solve(self) -> Array:
        """b (c, d)"""
        left = self.left + RIDGE * np.eye(len(self.left))
        return np.asarray(np.linalg.solve(left, self.right), dtype=np.float64)


def find_flips(by_site: Mapping[str, Statistics], anchor: Statistics) -> dict[str, str]:
    """Sites whose labels are not believed, and why.

    Args:
        by_site: statistics over the same classes as `anchor`, all projected onto few directions.
        anchor: what the centre vouches for; may be empty.
    """
    white = _whitening([anchor, *by_site.values()])
    sites = {site: _whitened(part, white) for site, part in by_site.items()}
    trusted = _whitened(anchor, white)
    accused: dict[str, str] = {}
    for _ in range(PASSES_MAX):
        believed = [means for site, means in sites.items() if site not in accused]
        spread = _fit(believed, trusted)
        whole = _sum(believed, trusted, spread)
        found = {}
        for site, means in sites.items():
            rest = whole if site in accused else whole - _equations(means, spread)
            if reason := _judge(means, rest, spread, anchor.classes):
                found[site] = reason
        if found.keys() == accused.keys():
            break
        accused = found
    return accused


def _whitening(parts: Sequence[Statistics]) -> Array:
    """(d, d) that makes the scatter within a class at a site round and of variance one."""
    dimension = parts[0].dimension
    within, freedom = np.zeros((dimension, dimension)), 0.0
    for part in parts:
        present = part.counts > 0
        sums, counts = part.sums[present], part.counts[present]
        within += part.moment - (sums / counts[:, None]).T @ sums
        freedom += float(counts.sum() - len(counts))
    within *= (1 - SHRINKAGE) / max(freedom, 1.0)
    within.flat[:: dimension + 1] += SHRINKAGE / (1 - SHRINKAGE) * max(np.trace(within), 1e-12) / dimension
    values, vectors = np.linalg.eigh(within)
    return np.asarray(vectors / np.sqrt(values), dtype=np.float64)


def _whitened(part: Statistics, white: Array) -> _Means:
    return _Means(part.counts, part.sums / np.maximum(part.counts, 1.0)[:, None] @ white)


def _equations(site: _Means, spread: _Spread, *, bounded: bool = True) -> _Equations:
    """What a site says of the classes, its style integrated out.

    Args:
        bounded: no class of it weighs more than `SITE_SAMPLES_MAX` samples.
    """
    counts = site.counts / (1 + site.counts / SITE_SAMPLES_MAX) if bounded else site.counts
    share = 1.0 / (counts.sum() + spread.looseness)
    return _Equations(
        np.diag(counts) - share * np.outer(counts, counts),
        counts[:, None] * site.means - share * np.outer(counts, counts @ site.means),
    )


def _sum(believed: Sequence[_Means], trusted: _Means, spread: _Spread) -> _Equations:
    whole = _equations(trusted, spread, bounded=False)
    for site in believed:
        whole = whole + _equations(site, spread)
    return whole


def _fit(believed: Sequence[_Means], trusted: _Means) -> _Spread:
    """Style and difference, by medians over the sites that have several classes: liars among them hardly count."""
    several = [site for site in believed if len(site.judged) > 1]
    if len(several) < SITES_OF_STYLE:
        return _Spread()
    spread = _Spread(style=1.0)
    for _ in range(FIT_ROUNDS):
        b = _sum(believed, trusted, spread).solve()
        styles, chances, differences = [], [], []
        for site in several:
            counts, rest = site.counts[site.judged], (site.means - b)[site.judged]
            style = counts @ rest / counts.sum()
            styles.append(style)
            chances.append(1 / counts.sum())
            chance = float(np.mean(1 / counts)) * (1 - 1 / len(counts))
            differences.append(float(((rest - style) ** 2).mean()) - chance)
        middle = np.median(styles, axis=0)
        deviation = 1.4826 * np.median(np.abs(np.array(styles) - middle), axis=0)  # of a normal distribution
        style_now = max(float((deviation**2).mean() - np.median(chances)), 0.0)
        spread = _Spread(style_now, max(float(np.median(differences)), 0.0))
        if style_now == 0.0:
            break
    return spread


def _judge(site: _Means, rest: _Equations, spread: _Spread, classes: Sequence[str]) -> str:
    """Why the labels of a site are not believed; empty when they may be right."""
    known = rest.known
    rows = site.judged[np.isin(site.judged, known)]
    if not len(rows) or len(known) < max(2, len(rows)):
        return ""
    b = rest.solve()
    directions = _differing(b[known])
    counts, means, b = site.counts[rows], site.means[rows] @ directions, b @ directions
    weights = 1 / (1 / counts + spread.difference)
    freedom = means.size
    chance = np.sqrt(2 * freedom)
    own = _misfit(weights, means - b[rows], spread) - freedom
    if own < SURPRISE_MIN * chance:
        return ""
    best, names = own, rows
    for order in _namings(weights, means[:, None] - b[known], spread):
        misfit = _misfit(weights, means - b[known[order]], spread) - freedom
        if misfit < best:
            best, names = misfit, known[order]
    ratio = max(best, chance) / own
    partly = bool((names == rows).any())
    if ratio >= (PARTLY_FIT_MAX if partly else BETTER_FIT_MAX) or (partly and own < PARTLY_SURPRISE_MIN * chance):
        return ""
    worst = int(np.argmax(weights * ((means - b[rows]) ** 2).sum(axis=1)))
    return (
        f"labels: other names fit its classes {1 / ratio:.1f} times as well as its own labels do; "
        f"its {classes[rows[worst]]} looks like {classes[names[worst]]} everywhere else"
    )


def _differing(b: Array) -> Array:
    """Orthonormal directions (d, k) in which these classes differ."""
    _, values, rows = np.linalg.svd(b - b.mean(axis=0), full_matrices=False)
    directions: Array = rows[values > 1e-6 * max(values[0], 1e-12)].T
    return directions


def _misfit(weights: Array, offsets: Array, spread: _Spread) -> float:
    """Minus twice the log-likelihood of offsets (k, d) from the classes, the best style taken off."""
    along = weights @ offsets
    together = weights.sum() + spread.looseness
    return float((weights[:, None] * offsets**2).sum() - (along**2).sum() / together)


def _namings(weights: Array, offsets: Array, spread: _Spread) -> Iterator[NDArray[np.intp]]:
    """Ways to name a site's classes, each another one, that may fit well: for every style that would make one of its
    classes (k) lie on one of all (c), the best assignment and the style that goes with it, in turn.

    Args:
        offsets: (k, c, d) from the site's classes to all.
    """
    held = weights / (weights + spread.looseness)
    starts = [np.zeros(offsets.shape[2]), *(held[:, None, None] * offsets).reshape(-1, offsets.shape[2])]
    everyone = np.arange(len(weights))
    seen: set[bytes] = set()
    for start in starts:
        style = start
        for _ in range(3):
            _, order = linear_sum_assignment(weights[:, None] * ((offsets - style) ** 2).sum(axis=2))
            if order.tobytes() in seen:
                break
            seen.add(order.tobytes())
            yield order
            style = weights @ offsets[everyone, order] / (weights.sum() + spread.looseness)
