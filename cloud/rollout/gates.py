"""Is the release good? Sequential tests on what gateways report, with one stated chance of crying wolf. Pure.

Every test is an e-value: a figure that is at most 1 in expectation while the release is within its limits, whenever
one looks and however often (Ville's inequality: P(ever >= 1/a) <= a). A gate closes at 1/a for its share `a` of
`Limits.false_alarm`; so a rollout that is looked at every second for weeks is stopped wrongly with that chance at most.

- Failures and refusals count by gateway: a mixture of likelihood ratios against the tolerated rate (Robbins 1970).
  Gateways under way count as healthy, which can only lower the value: failures that are reported sooner than
  successes do not look like more of them.
- Behaviour (disagreement, flags, scores, latency) is averaged over gateways, each with the noise of its frames and a
  usual spread between sites; the normal mixture of Robbins gives the e-value of its mean being over the limit.
- Labelled accuracy is paired: of the samples on which exactly one of the two releases is right, how many speak for the
  old one? A bet against a coin that falls so a little more often than not; over all labels, and over each true class.

The first two are exact, behaviour is exact up to the normal approximation.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

ALTERNATIVES: Final = ((1.0, 0.5), (2.0, 0.1), (4.0, 0.1), (6.0, 0.1), (10.0, 0.1), (16.0, 0.1))
"""(multiple of the rate to be found, weight): half of the bet on it, the rest on worse ones, found sooner."""
RATE_MAX: Final = 0.95
CORRELATION: Final = 20.0
"""Frames of one camera resemble each other: so many count as one."""
SPREAD: Final = 0.05
"""Usual standard deviation between sites of a share that a good release changes."""
LATENCY_NOISE: Final = 0.1
"""Of the logarithm of a median latency: between two measurements, and between boxes."""
LATENCY_SCALE: Final = 0.3
LABEL_BETS: Final = (0.25, 0.5, 0.75, 0.9)
"""How far between the tolerated share and 1 the bets lie."""
CLASS_AGAINST_MAX: Final = 0.75
"""Of the labels of one class that decide, those that may speak for the old release: classes trade a little."""
SHARES: Final = {
    "failures": 0.35,
    "refusals": 0.1,
    "disagreement": 0.1,
    "flags": 0.05,
    "scores": 0.1,
    "latency": 0.1,
    "labels": 0.2,
}
"""How the false alarms are shared out among the gates."""
_LOG_MAX: Final = 700.0


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a release may do. All rates are 0..1."""

    false_alarm: float = 0.01
    """Chance that a release within all limits is ever stopped."""
    failed_ok: float = 0.01
    """Gateways that may fail after it has begun to run there: rolled back, erring, silent."""
    failed_bad: float = 0.05
    """The rate that must be found."""
    refused_ok: float = 0.05
    """Gateways that may refuse it before it runs (full disk, other hardware): they lost nothing."""
    refused_bad: float = 0.20
    errors_max: float = 0.01
    """Errors per look from which a gateway has failed."""
    restarts_max: int = 2
    disagreement_max: float = 0.20
    """Looks on which it may name another class than the running release, beyond what it is known to do better."""
    flags_change_max: float = 0.15
    """Change of the share of striking looks, either way."""
    scores_change_max: float = 0.10
    """Change of the mean top probability, either way."""
    latency_ratio_max: float = 2.0
    labels_against_max: float = 0.55
    """Of the labels on which exactly one of the two releases is right, those that may speak for the old one."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What the release before did on a gateway, when the new one was assigned."""

    frames: int = 0
    flagged: int = 0
    score_sum: float = 0.0
    latency_ms: float = 0.0


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What the new release has done on one gateway so far."""

    frames: int = 0
    flagged: int = 0
    score_sum: float = 0.0
    score_squares: float = 0.0
    latency_ms: float = 0.0
    compared: int = 0
    disagreed: int = 0
    explained: float = 0.0
    """Disagreement that is known to be improvement, from the labels of the site."""
    before: Baseline | None = None


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Gateways of a rollout."""

    told: int = 0
    failed: int = 0
    refused: int = 0
    usual_loss: float = 0.0
    """Share of gateways outside of the rollout that fell silent in the same time: links do that by themselves."""


class LabelTally(msgspec.Struct, frozen=True, kw_only=True):
    """Labelled samples seen by both releases on which exactly one of them is right."""

    old_right: int = 0
    new_right: int = 0
    by_class: tuple[tuple[int, int], ...] = ()
    """(old right, new right) of each true class: one that is lost may hide behind others that win."""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """What one gate says."""

    gate: str
    passed: bool
    figure: float
    limit: float
    evidence: float
    """Share of the way to closing: 1 closes."""
    count: int
    """Gateways (or labels) it rests on."""


def judge(tally: Tally, observations: Sequence[Observation], labels: LabelTally, limits: Limits) -> tuple[Verdict, ...]:
    """All gates."""
    ok = min(limits.failed_ok + tally.usual_loss, 0.5)
    ran = tally.told - tally.refused
    verdicts = [
        _rate("failures", tally.failed, ran, ok, ok + limits.failed_bad - limits.failed_ok, limits),
        _rate("refusals", tally.refused, tally.told, limits.refused_ok, limits.refused_bad, limits),
        _disagreement(observations, limits),
        _change("flags", [_flags(o) for o in observations], limits.flags_change_max, SPREAD, limits),
        _change("scores", [_scores(o) for o in observations], limits.scores_change_max, SPREAD, limits),
        _latency(observations, limits),
        _labels(labels, limits),
    ]
    return tuple(verdicts)


def closed(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Those that stop the rollout."""
    return tuple(verdict for verdict in verdicts if not verdict.passed)


def log_rate_evidence(bad: int, count: int, ok: float, found: float) -> float:
    """Logarithm of the e-value of `bad` in `count` against a rate of at most `ok`; `found` is the rate to be found."""
    terms = []
    for multiple, weight in ALTERNATIVES:
        rate = min(multiple * found, RATE_MAX)
        ratio = bad * math.log(rate / ok) + (count - bad) * math.log((1 - rate) / (1 - ok))
        terms.append(math.log(weight) + ratio)
    return _log_sum(terms)


def log_mean_evidence(excess: float, variance: float, scale: float) -> float:
    """Logarithm of the e-value of a mean being over its limit by `excess`, estimated with this variance.

    The normal mixture: sqrt(t0 / (t + t0)) exp(S^2 / (2 (t + t0))) with t = 1 / variance, S = t excess, and
    t0 = 1 / scale^2, where `scale` is an excess worth finding.
    """
    if excess <= 0 or not math.isfinite(excess):
        return -_LOG_MAX if not math.isnan(excess) and excess <= 0 else _LOG_MAX
    information, prior = 1.0 / variance, 1.0 / scale**2
    drift = information * excess
    return 0.5 * math.log(prior / (information + prior)) + drift**2 / (2 * (information + prior))


def log_label_evidence(old_right: int, new_right: int, ok: float) -> float:
    """Logarithm of the e-value against "at most a share `ok` of the labels that decide speak for the old release"."""
    bets = []
    for part in LABEL_BETS:
        bet = ok + part * (1 - ok)
        ratio = old_right * math.log(bet / ok) + new_right * math.log((1 - bet) / (1 - ok))
        bets.append(ratio - math.log(len(LABEL_BETS)))
    return _log_sum(bets)


def _rate(gate: str, bad: int, count: int, ok: float, found: float, limits: Limits) -> Verdict:
    evidence = log_rate_evidence(bad, count, ok, found) if count else -_LOG_MAX
    return _verdict(gate, evidence, bad / count if count else 0.0, ok, count, limits)


def _disagreement(observations: Sequence[Observation], limits: Limits) -> Verdict:
    """The mean of what is not explained by known improvement."""
    effects = [
        (
            o.disagreed / o.compared - o.explained,
            _share_variance(o.disagreed / o.compared, o.compared) + SPREAD**2,
        )
        for o in observations
        if o.compared
    ]
    mean, variance = _pool(effects)
    evidence = log_mean_evidence(mean - limits.disagreement_max, variance, SPREAD) if effects else -_LOG_MAX
    return _verdict("disagreement", evidence, mean, limits.disagreement_max, len(effects), limits)


def _change(
    gate: str, effects: Sequence[tuple[float, float] | None], limit: float, scale: float, limits: Limits
) -> Verdict:
    found = [effect for effect in effects if effect is not None]
    mean, variance = _pool(found)
    # either way: half of the bet each
    evidence = log_mean_evidence(abs(mean) - limit, variance, scale) - math.log(2) if found else -_LOG_MAX
    return _verdict(gate, evidence, mean, limit, len(found), limits)


def _flags(o: Observation) -> tuple[float, float] | None:
    if not o.frames or o.before is None or not o.before.frames:
        return None
    new, old = o.flagged / o.frames, o.before.flagged / o.before.frames
    noise = _share_variance(new, o.frames) + _share_variance(old, o.before.frames)
    return new - old, noise + SPREAD**2


def _scores(o: Observation) -> tuple[float, float] | None:
    if o.score_sum <= 0 or o.before is None or o.before.score_sum <= 0:  # 0: an agent that does not tell
        return None
    mean = o.score_sum / o.frames
    spread = max(o.score_squares / o.frames - mean**2, 1e-4)
    effective = 1 / (CORRELATION / o.frames + CORRELATION / o.before.frames)
    return mean - o.before.score_sum / o.before.frames, spread / effective + SPREAD**2


def _latency(observations: Sequence[Observation], limits: Limits) -> Verdict:
    effects = [
        (math.log(o.latency_ms / o.before.latency_ms), 2 * LATENCY_NOISE**2)
        for o in observations
        if o.before is not None and o.latency_ms > 0 and o.before.latency_ms > 0
    ]
    mean, variance = _pool(effects)
    limit = math.log(limits.latency_ratio_max)
    evidence = log_mean_evidence(mean - limit, variance, LATENCY_SCALE) if effects else -_LOG_MAX
    return _verdict("latency", evidence, math.exp(min(mean, 20.0)), limits.latency_ratio_max, len(effects), limits)


def _labels(labels: LabelTally, limits: Limits) -> Verdict:
    count = labels.old_right + labels.new_right
    ok = limits.labels_against_max
    evidence = log_label_evidence(labels.old_right, labels.new_right, ok)
    if labels.by_class:  # a mean of e-values is one: half of it over all labels, half over the classes
        classes = [log_label_evidence(old, new, CLASS_AGAINST_MAX) for old, new in labels.by_class]
        evidence = _log_sum([evidence - math.log(2), *(one - math.log(2 * len(classes)) for one in classes)])
    return _verdict("labels", evidence, labels.old_right / count if count else 0.0, ok, count, limits)


def _verdict(gate: str, log_evidence: float, figure: float, limit: float, count: int, limits: Limits) -> Verdict:
    needed = -math.log(SHARES[gate] * limits.false_alarm)
    share = max(0.0, min(log_evidence / needed, 9.99))
    return Verdict(
        gate=gate, passed=log_evidence < needed, figure=figure, limit=limit, evidence=round(share, 3), count=count
    )


def _share_variance(share: float, frames: int) -> float:
    """Of a share of correlated frames; never 0, however clear the share (Laplace)."""
    effective = max(frames / CORRELATION, 1.0)
    smooth = (share * effective + 1) / (effective + 2)
    return smooth * (1 - smooth) / effective


def _pool(effects: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Mean and its variance, each gateway weighed by the inverse of its own."""
    if not effects:
        return 0.0, 1.0
    weights = [1 / variance for _, variance in effects]
    total = sum(weights)
    return sum(w * x for w, (x, _) in zip(weights, effects, strict=True)) / total, 1 / total


def _log_sum(terms: Sequence[float]) -> float:
    top = max(terms)
    return top + math.log(sum(math.exp(term - top) for term in terms))
