"""Which gateways' statistics are not to be believed, and why. Decides quarantine; removing them is one subtraction.

Two witnesses, both from the statistics themselves, so no pixel is needed:

- *Magnitude*: the mean square of a gateway's embeddings, and the norm of its class means, against the median gateway's.
  Frozen features have much the same length everywhere; statistics that were scaled do not.
- *Labels*: how a gateway's classes differ from each other, against how they do everywhere else
  (`cloud.learning.contrasts`). As long as they are the minority, gateways that agree on a lie are found too.

The influence on a small trusted set, accuracy without the gateway less accuracy with it, is measured for every one by
leaving it out: a subtraction and a solve in few dimensions each. It goes into the record and accuses nobody: an honest
gateway may cost a picture of the trusted set, and among hundreds some will.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.learning.contrasts import find_flips
from cloud.learning.heads import principal_basis, solve_lda
from common.errors import OperatorError
from common.statistics import Array, Statistics

DIRECTIONS = 64  # of the head that judges: enough to tell classes apart, and a solve takes a millisecond
SHRINKAGE = 0.3  # of the heads that measure influence
GATEWAYS_MIN = 4  # fewer have no majority
MAGNITUDE_MAX = 2.0  # of the embeddings' length; a small site of odd pictures reached 1.46
COSTLY_MAX = 10  # in a run's record: who costs most comes first


@dataclass(frozen=True, slots=True)
class Suspicion:
    """A gateway that is left out."""

    gateway: str
    reason: str
    samples: int
    influence: float | None = None
    """Points of accuracy on the trusted set that it would cost; None without such a set."""


@dataclass(frozen=True, slots=True)
class Costly:
    """A gateway that is believed, and without which more of the trusted set would be right."""

    gateway: str
    samples: int
    influence: float
    """Points of accuracy that it costs."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """What was found of all contributors."""

    suspects: tuple[Suspicion, ...] = ()
    """By name."""
    costly: tuple[Costly, ...] = ()
    """At most `COSTLY_MAX`, the most costly first."""


@dataclass(frozen=True, slots=True)
class Trusted:
    """What the centre vouches for: statistics of its own datasets, and labelled embeddings (n, d) held out of them."""

    statistics: Statistics
    embeddings: Array
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Witness:
    """The trusted set in few directions: embeddings (n, k), and the place of each label among the classes (n,)."""

    embeddings: Array
    truth: NDArray[np.int64]

    def accuracy(self, statistics: Statistics) -> float | None:
        """Points that the head of these statistics gets right; None where they make no head."""
        try:
            head = solve_lda(statistics, SHRINKAGE)
        except OperatorError:  # fewer than two classes: nothing to judge by
            return None
        return 100 * float((head.logits(self.embeddings).argmax(axis=1) == self.truth).mean())


def judge(by_gateway: Mapping[str, Statistics], trusted: Trusted) -> Judgement:
    """Whom to leave out, and what each of the others costs.

    Args:
        by_gateway: statistics over the same classes as `trusted.statistics`.
    """
    reasons = _magnitudes(by_gateway) if len(by_gateway) >= GATEWAYS_MIN else {}
    total = trusted.statistics
    for name, part in by_gateway.items():
        if name not in reasons:
            total = total + part
    if not total.total:
        return Judgement(_suspicions(reasons, by_gateway, {}))
    basis = principal_basis(total, DIRECTIONS)
    vouched = trusted.statistics.project(basis)
    small = {name: part.project(basis) for name, part in by_gateway.items()}
    if len(by_gateway) >= GATEWAYS_MIN:
        believed = {name: part for name, part in small.items() if name not in reasons}
        asked = Statistics.of(vouched.classes, trusted.embeddings @ basis, trusted.labels)
        reasons |= find_flips(believed, vouched + asked)
    influence = _influences(small, vouched, reasons, trusted, basis)
    costly = [
        Costly(name, round(by_gateway[name].total), points)
        for name, points in sorted(influence.items(), key=lambda item: (-item[1], item[0]))
        if points > 0 and name not in reasons
    ]
    return Judgement(_suspicions(reasons, by_gateway, influence), tuple(costly[:COSTLY_MAX]))


def _suspicions(
    reasons: Mapping[str, str], by_gateway: Mapping[str, Statistics], influence: Mapping[str, float]
) -> tuple[Suspicion, ...]:
    return tuple(
        Suspicion(name, reason, round(by_gateway[name].total), influence.get(name))
        for name, reason in sorted(reasons.items())
    )


def _magnitudes(by_gateway: Mapping[str, Statistics]) -> dict[str, str]:
    """Gateways whose embeddings are longer or shorter than the median one's by more than the bound."""
    lengths = {name: _lengths(part) for name, part in by_gateway.items() if part.total}
    middle = np.median(np.array(list(lengths.values())), axis=0)
    found = {}
    for name, own in lengths.items():
        ratios = np.asarray(own) / np.maximum(middle, 1e-12)
        worst = float(ratios[np.argmax(np.abs(np.log(np.maximum(ratios, 1e-12))))])
        if not 1 / MAGNITUDE_MAX <= worst <= MAGNITUDE_MAX:
            found[name] = f"scaled statistics: its embeddings are {worst:.2g} times as long as the other sites'"
    return found


def _lengths(part: Statistics) -> tuple[float, float]:
    """Root mean square length of the embeddings, and of the class means (weighed by their samples)."""
    counts = np.where(part.counts > 0, part.counts, 1.0)
    means = float(((part.sums**2).sum(axis=1) / counts).sum() / part.total)
    return float(np.sqrt(max(np.trace(part.moment), 0.0) / part.total)), float(np.sqrt(means))


def _influences(
    small: Mapping[str, Statistics],
    vouched: Statistics,
    accused: Mapping[str, str],
    trusted: Trusted,
    basis: Array,
) -> dict[str, float]:
    """Points of the trusted set that each gateway costs, whoever is believed leaving and whoever is accused joining
    all the believed; nobody's without a trusted set."""
    if not trusted.labels:
        return {}
    place = {name: number for number, name in enumerate(vouched.classes)}
    truth: NDArray[np.int64] = np.array([place.get(label, -1) for label in trusted.labels])
    witness = _Witness(trusted.embeddings @ basis, truth)
    believed = vouched
    for name, part in small.items():
        if name not in accused:
            believed = believed + part
    usual, found = witness.accuracy(believed), {}
    for name, part in small.items():
        other = witness.accuracy(believed + part if name in accused else believed - part)
        if usual is not None and other is not None:
            found[name] = round(usual - other if name in accused else other - usual, 2)
    return found
