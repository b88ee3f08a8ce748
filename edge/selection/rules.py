"""Rules that score a frame, higher for what is more worth sending. Pure.

A rule is a class with an `aspect` and one method, `score`; it may say no more than one number of one frame, knows no
budget and no other frame. Whoever has a better idea declares it as an entry point in the group
`headframe.selection_rules` and names it in `selection.rules`. Every rule here and every plug-in has to pass the same
contract (tests/edge/test_selection_rules.py): a finite number whatever the heads say, the same for the same frame.

With several heads a frame scores what its most doubtful head gives, unless the rule says otherwise.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import entry_points
from operator import mul
from typing import ClassVar, Final, Literal, Protocol, get_args

from common.errors import OperatorError
from common.messages import Prediction
from edge.selection.candidate import Sight

Aspect = Literal["novel", "abnormal", "uncertain"]
"""What a high score says of a frame: unlike what was trained, unlike what the camera shows, or torn between classes."""

GROUP: Final = "headframe.selection_rules"
SHARE_MIN: Final = 1e-30
"""Smallest probability of which a logarithm is taken: beyond it float32 gives zeros, and the logarithm nothing."""
SPREAD_MIN: Final = 1e-9
"""A head that gives every class the same probability explains nothing; its spread is taken to be this."""


class Rule(Protocol):
    """Scores one frame."""

    aspect: ClassVar[Aspect]

    def score(self, sight: Sight) -> float:
        """Higher is more worth sending. Finite for any number of predictions, none included."""
        ...


def uncertainty(prediction: Prediction) -> float:
    """Entropy of the probabilities over its maximum, 0..1; zero probabilities count as zero."""
    shares = prediction.probabilities
    if len(shares) < 2:
        return 0.0
    # without numpy: a head has a handful of classes, and forty heads are asked at each look
    try:
        total: float = sum(map(mul, shares, map(math.log, shares)))
    except ValueError:  # a zero, or less
        total = sum(share * math.log(share) for share in shares if share > 0)
    return -total / math.log(len(shares))


def spread(prediction: Prediction) -> float:
    """Variance of the log-probabilities over the classes: that of the logits, over the squared temperature.

    For an analytic head it grows with the squared length of the embedding's part in the span of the class means.
    """
    shares = prediction.probabilities
    if len(shares) < 2:
        return 0.0
    try:
        logs = list(map(math.log, shares))
    except ValueError:  # a zero, or less
        logs = [math.log(max(share, SHARE_MIN)) for share in shares]
    mean = sum(logs) / len(logs)
    # hundreds in size at most: the squares lose nothing that counts
    squares: float = sum(map(mul, logs, logs))
    return max(0.0, squares / len(logs) - mean * mean)


@dataclass(frozen=True, slots=True)
class Unexplained:
    """How little of what is unusual about a frame the heads can explain.

    With x the embedding, μ the camera's normal and l the log-probabilities of a head, the score is
    log ‖x - μ‖² - log Σ_heads Var(l). A frame of a known class departs from normal along the span of the class means
    and spreads the logits as it does; a class that was never trained departs by as much and spreads them little. It is
    the share of an embedding's length in the class span (NECO, Ammar et al. 2024, arXiv:2310.06823), with the camera's
    own normal as origin and with what a head says anyway in the place of a projection.
    """

    aspect: ClassVar[Aspect] = "novel"

    def score(self, sight: Sight) -> float:
        explained = sum(map(spread, sight.candidate.predictions))
        if not sight.candidate.predictions:
            explained = 1.0
        return math.log(max(sight.distance, SPREAD_MIN)) - math.log(max(explained, SPREAD_MIN))


@dataclass(frozen=True, slots=True)
class RelativeMahalanobis:
    """The novelty that a head gives: distance to the nearest class less that to all classes together.

    Ren et al. 2021, arXiv:2106.09022; in `cloud.learning.heads` how a head computes it.
    """

    aspect: ClassVar[Aspect] = "novel"

    def score(self, sight: Sight) -> float:
        return max((item.novelty for item in sight.candidate.predictions), default=0.0)


@dataclass(frozen=True, slots=True)
class Abnormal:
    """Squared distance to what is normal for the camera, whatever the heads say: `edge.selection.normal`."""

    aspect: ClassVar[Aspect] = "abnormal"

    def score(self, sight: Sight) -> float:
        return sight.distance


@dataclass(frozen=True, slots=True)
class Margin:
    """Second-highest probability less the highest: 0 where two classes are equally likely, -1 where one is certain.

    Scheffer et al. 2001, "Active hidden Markov models for information extraction".
    """

    aspect: ClassVar[Aspect] = "uncertain"

    def score(self, sight: Sight) -> float:
        return max((_margin(item.probabilities) for item in sight.candidate.predictions), default=-1.0)


def _margin(probabilities: Sequence[float]) -> float:
    first, second = 0.0, 0.0
    for share in probabilities:
        if share > first:
            first, second = share, first
        elif share > second:
            second = share
    return second - first


@dataclass(frozen=True, slots=True)
class Entropy:
    """Normalised entropy of the probabilities, 0..1. Settles 2009, "Active learning literature survey"."""

    aspect: ClassVar[Aspect] = "uncertain"

    def score(self, sight: Sight) -> float:
        return max(map(uncertainty, sight.candidate.predictions), default=0.0)


@dataclass(frozen=True, slots=True)
class Confidence:
    """1 less the highest probability: what a threshold on confidence ranks by, at every threshold at once.

    Hendrycks and Gimpel 2017, arXiv:1610.02136.
    """

    aspect: ClassVar[Aspect] = "uncertain"

    def score(self, sight: Sight) -> float:
        return max((1 - max(item.probabilities, default=1.0) for item in sight.candidate.predictions), default=0.0)


@dataclass(frozen=True, slots=True)
class SednaThreshold:
    """KubeEdge Sedna's `Threshold`: 1 where the mean confidence of the predictions is below `threshold`, else 0."""

    aspect: ClassVar[Aspect] = "uncertain"
    threshold: float = 0.5

    def score(self, sight: Sight) -> float:
        tops = _tops(sight)
        return float(bool(tops) and sum(tops) / len(tops) < self.threshold)


@dataclass(frozen=True, slots=True)
class SednaCrossEntropy:
    """KubeEdge Sedna's `CrossEntropy`: 1 where 1 less the normalised entropy is below `threshold`, else 0.

    A probability of zero counts as zero here; in Sedna its logarithm raises.
    """

    aspect: ClassVar[Aspect] = "uncertain"
    threshold: float = 0.5

    def score(self, sight: Sight) -> float:
        return float(any(1 - uncertainty(item) < self.threshold for item in sight.candidate.predictions))


@dataclass(frozen=True, slots=True)
class SednaIBT:
    """KubeEdge Sedna's `IBT` (image-box-thresholds): 1 where the share of predictions whose confidence is at most
    `threshold_box` reaches 1 - `threshold_img`, else 0.

    Sedna gives both 0.5 when nothing is said; 0.9 is what its examples use.
    """

    aspect: ClassVar[Aspect] = "uncertain"
    threshold_img: float = 0.9
    threshold_box: float = 0.9

    def score(self, sight: Sight) -> float:
        tops = _tops(sight)
        unsure = sum(top <= self.threshold_box for top in tops)
        return float(bool(tops) and unsure / len(tops) >= 1 - self.threshold_img)


def _tops(sight: Sight) -> list[float]:
    return [max(item.probabilities, default=1.0) for item in sight.candidate.predictions]


RULES: Final[dict[str, type[Rule]]] = {
    "unexplained": Unexplained,
    "relative-mahalanobis": RelativeMahalanobis,
    "abnormal": Abnormal,
    "margin": Margin,
    "entropy": Entropy,
    "confidence": Confidence,
    "sedna-threshold": SednaThreshold,
    "sedna-cross-entropy": SednaCrossEntropy,
    "sedna-ibt": SednaIBT,
}


def open_rule(name: str) -> Rule:
    """A rule by its name: one of ours, else an entry point of an installed package.

    Raises:
        OperatorError: there is none of this name, or what is there is no rule.
    """
    if name in RULES:
        return RULES[name]()
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        names = ", ".join([*RULES, *sorted(found)])
        raise OperatorError(f"selection.rules: there is no rule {name!r}", f"There are: {names}.")
    try:
        rule: Rule = found[name].load()()
    except (ImportError, AttributeError, TypeError) as error:
        raise OperatorError(f"selection.rules: rule {name!r} cannot be loaded ({error})", _HINT) from error
    if getattr(rule, "aspect", None) not in get_args(Aspect) or not callable(getattr(rule, "score", None)):
        raise OperatorError(f"selection.rules: {name!r} is no rule", _HINT)
    return rule


_HINT: Final = "See docs/edge.md, 'Your own rule'."
