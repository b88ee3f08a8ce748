"""E-values: figures that are at most 1 in expectation while a release is within its limits. Pure.

Whenever one looks and however often, such a figure reaches 1/a with a chance of at most a (Ville's inequality). Here
are the tests and their mathematics, in logarithms; what they are asked about, and when they stop a rollout, is
`cloud.rollout.gates`.
"""

import math
from collections.abc import Sequence
from typing import Final

ALTERNATIVES: Final = ((1.0, 0.5), (2.0, 0.1), (4.0, 0.1), (6.0, 0.1), (10.0, 0.1), (16.0, 0.1))
"""(multiple of the rate to be found, weight): half of the bet on it, the rest on worse ones, found sooner."""
RATE_MAX: Final = 0.95
LABEL_BETS: Final = (0.25, 0.5, 0.75, 0.9)
"""How far between the tolerated share and 1 the bets lie."""
SHARE_BETS: Final = (0.5, 0.95)
"""Of the largest stake that cannot lose everything: a half for what is somewhat over its limit, nearly all for a class
that is lost whole."""
LOG_MAX: Final = 700.0


def log_rate_evidence(bad: int, count: int, ok: float, found: float) -> float:
    """Of `bad` in `count` against a rate of at most `ok`; `found` is the rate to be found.

    A mixture of likelihood ratios (Robbins 1970).
    """
    terms = []
    for multiple, weight in ALTERNATIVES:
        rate = min(multiple * found, RATE_MAX)
        ratio = bad * math.log(rate / ok) + (count - bad) * math.log((1 - rate) / (1 - ok))
        terms.append(math.log(weight) + ratio)
    return log_sum(terms)


def log_mean_evidence(excess: float, variance: float, scale: float) -> float:
    """Of a mean being over its limit by `excess`, estimated with this variance.

    The normal mixture of Robbins: sqrt(t0 / (t + t0)) exp(S^2 / (2 (t + t0))) with t = 1 / variance, S = t excess, and
    t0 = 1 / scale^2, where `scale` is an excess worth finding.
    """
    if excess <= 0 or not math.isfinite(excess):
        return -LOG_MAX if not math.isnan(excess) and excess <= 0 else LOG_MAX
    information, prior = 1.0 / variance, 1.0 / scale**2
    drift = information * excess
    return 0.5 * math.log(prior / (information + prior)) + drift**2 / (2 * (information + prior))


def log_label_evidence(old_right: int, new_right: int, ok: float) -> float:
    """Against "at most a share `ok` of the labels that decide speak for the old release"."""
    bets = []
    for part in LABEL_BETS:
        bet = ok + part * (1 - ok)
        ratio = old_right * math.log(bet / ok) + new_right * math.log((1 - bet) / (1 - ok))
        bets.append(ratio - math.log(len(LABEL_BETS)))
    return log_sum(bets)


def log_share_evidence(shares: Sequence[tuple[float, float]], ok: float) -> float:
    """Against "shares that were observed independently are at most `ok` in the mean".

    A bet on each of them (Waudby-Smith and Ramdas 2024, "Estimating means of bounded random variables by betting",
    doi:10.1093/jrsssb/qkad009): nothing is assumed of how a share comes about.

    Args:
        shares: (share, weight), both 0..1; a weight says how much is bet on it, and is known before the share is.
    """
    return log_sum(
        [
            sum(math.log1p(bet / ok * weight * (share - ok)) for share, weight in shares) - math.log(len(SHARE_BETS))
            for bet in SHARE_BETS
        ]
    )


def log_sum(terms: Sequence[float]) -> float:
    """Logarithm of the sum of what these are the logarithms of."""
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))
