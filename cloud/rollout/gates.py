"""Is the release good? Sequential tests on what gateways report, with one stated chance of crying wolf. Pure.

Every test is an e-value (`cloud.rollout.evidence`). A gate closes at 1/a for its share `a` of `Limits.false_alarm`; so
a rollout that is looked at every second for weeks is stopped wrongly with that chance at most.

- Failures, silence and refusals count by gateway, each against the rate that is tolerated of it. Gateways under way
  count as healthy, which can only lower the value: failures that are reported sooner than successes do not look like
  more of them. Who fails and goes back by itself has healed; who falls silent has not, so less of that is tolerated.
- Behaviour (disagreement, flags, scores, latency, throughput) is averaged over gateways, each with the noise of its
  frames and a usual spread between sites, and compared with its limit.
- Classes: of the frames on which the release before names a class, on how many does the new one name another? Each
  class by itself, a gateway being one observation however many frames it has seen: frames of a camera resemble each
  other. So the loss of a class is found that is too rare to show in any mean, and without a label.
- Labelled accuracy is paired: of the samples on which exactly one of the two releases is right, how many speak for the
  old one? Over all labels, and over each true class.

Rates, classes and labels are exact, behaviour is exact up to the normal approximation.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from cloud.rollout.evidence import (
    LOG_MAX,
    log_label_evidence,
    log_mean_evidence,
    log_rate_evidence,
    log_share_evidence,
    log_sum,
)

CORRELATION: Final = 20.0
"""Frames of one camera resemble each other: so many count as one."""
SPREAD: Final = 0.05
"""Usual standard deviation between sites of a share that a good release changes."""
LATENCY_NOISE: Final = 0.25
"""Of the logarithm of a median latency: between two measurements, for a box has other work too, and between boxes. One
gateway alone stops nobody: it judges its own latency on probation, and goes back by itself."""
LATENCY_SCALE: Final = 0.3
UNSEEN_NOISE: Final = 0.15
"""Of the share of looks that do not happen, between two times of one box: as with latency, one alone stops nobody."""
UNSEEN_SCALE: Final = 0.1
CLASS_AGAINST_MAX: Final = 0.75
"""Of the labels of one class that decide, those that may speak for the old release: classes trade a little."""
CLASS_SHARE: Final = 0.05
"""A class that the release before names on so many of the frames of a gateway counts there in full; one that it names
more rarely counts less, for those are the doubtful frames, on which a good release differs too."""
CLASS_FRAMES: Final = 4
"""And on so many of them, where few were compared."""
EXPLAINED_MAX: Final = 0.9
"""However much of a class was measured to move rightly, losing all of it remains to be found."""
SHARES: Final = {
    "failures": 0.15,
    "silence": 0.3,
    "refusals": 0.04,
    "classes": 0.2,
    "disagreement": 0.04,
    "flags": 0.04,
    "scores": 0.04,
    "latency": 0.05,
    "throughput": 0.04,
    "labels": 0.1,
}
"""How the false alarms are shared out among the gates."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """What a release may do. All rates are 0..1."""

    false_alarm: float = 0.01
    """Chance that a release within all limits is ever stopped."""
    failed_ok: float = 0.02
    """Gateways that may fail after it has begun to run there, and say so: rolled back, erring."""
    failed_bad: float = 0.05
    """The rate that must be found."""
    silent_ok: float = 0.004
    """Gateways that may fall silent under it, beyond those that do so without it."""
    silent_bad: float = 0.04
    refused_ok: float = 0.05
    """Gateways that may refuse it before it runs (full disk, other hardware): they lost nothing."""
    refused_bad: float = 0.20
    errors_max: float = 0.01
    """Errors per look from which a gateway has failed."""
    restarts_max: int = 2
    disagreement_max: float = 0.20
    """Looks on which it may name another class than the running release, beyond what it is known to do better."""
    moved_max: float = 0.6
    """Of the frames on which the release before names a class, those on which it may name another."""
    flags_change_max: float = 0.15
    """Change of the share of striking looks, either way."""
    scores_change_max: float = 0.10
    """Change of the mean top probability, either way."""
    latency_ratio_max: float = 2.0
    unseen_more_max: float = 0.10
    """How much larger the share of due looks may become that do not happen, for the box is too slow."""
    labels_against_max: float = 0.55
    """Of the labels on which exactly one of the two releases is right, those that may speak for the old one."""


class Baseline(msgspec.Struct, frozen=True, kw_only=True):
    """What the release before did on a gateway, when the new one was assigned."""

    frames: int = 0
    flagged: int = 0
    score_sum: float = 0.0
    latency_ms: float = 0.0
    unseen: float = 0.0


class Observation(msgspec.Struct, frozen=True, kw_only=True):
    """What the new release has done on one gateway so far."""

    frames: int = 0
    flagged: int = 0
    score_sum: float = 0.0
    score_squares: float = 0.0
    latency_ms: float = 0.0
    unseen: float = 0.0
    compared: int = 0
    disagreed: int = 0
    explained: float = 0.0
    """Disagreement that is known to be improvement, from the labels of the site."""
    before: Baseline | None = None


class Tally(msgspec.Struct, frozen=True, kw_only=True):
    """Gateways of a rollout."""

    told: int = 0
    failed: int = 0
    silent: int = 0
    refused: int = 0
    usual_loss: float = 0.0
    """Share of gateways outside of the rollout that fell silent in the same time: links do that by themselves."""


class LabelTally(msgspec.Struct, frozen=True, kw_only=True):
    """Labelled samples seen by both releases on which exactly one of them is right."""

    old_right: int = 0
    new_right: int = 0
    by_class: tuple[tuple[int, int], ...] = ()
    """(old right, new right) of every class there is, seen or not: one that is lost may hide behind others that win."""


class ClassTally(msgspec.Struct, frozen=True, kw_only=True):
    """What became of the classes that the release before can name."""

    known: Mapping[str, float] = {}
    """Every one of them (`scenario/class`), named by it or not, and the share of its frames that is known to be named
    otherwise rightly."""
    gateways: tuple[tuple[int, Mapping[str, tuple[int, int]]], ...] = ()
    """Of each gateway that has tried the release: frames seen by both, and per class the frames on which the one before
    named it, and those of them on which the new one names another."""


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
    about: str = ""
    """The class that speaks most against the release, where it is one."""


def judge(
    tally: Tally,
    observations: Sequence[Observation],
    labels: LabelTally,
    limits: Limits,
    classes: ClassTally | None = None,
) -> tuple[Verdict, ...]:
    """All gates."""
    usual = min(tally.usual_loss, 0.5 - limits.silent_ok)
    ran = tally.told - tally.refused
    verdicts = [
        _rate("failures", tally.failed, ran, limits.failed_ok, limits.failed_bad, limits),
        _rate("silence", tally.silent, ran, limits.silent_ok + usual, limits.silent_bad + usual, limits),
        _rate("refusals", tally.refused, tally.told, limits.refused_ok, limits.refused_bad, limits),
        _classes(classes or ClassTally(), limits),
        _disagreement(observations, limits),
        _change("flags", [_flags(o) for o in observations], limits.flags_change_max, SPREAD, limits),
        _change("scores", [_scores(o) for o in observations], limits.scores_change_max, SPREAD, limits),
        _latency(observations, limits),
        _throughput(observations, limits),
        _labels(labels, limits),
    ]
    return tuple(verdicts)


def closed(verdicts: Iterable[Verdict]) -> tuple[Verdict, ...]:
    """Those that stop the rollout."""
    return tuple(verdict for verdict in verdicts if not verdict.passed)


def _rate(gate: str, bad: int, count: int, ok: float, found: float, limits: Limits) -> Verdict:
    evidence = log_rate_evidence(bad, count, ok, found) if count else -LOG_MAX
    return _verdict(gate, evidence, bad / count if count else 0.0, ok, count, limits)


def _classes(tally: ClassTally, limits: Limits) -> Verdict:
    """Whether a class has moved wholesale to others: a mean of e-values over all classes is one."""
    seen: dict[str, list[tuple[float, float]]] = {name: [] for name in tally.known}
    for compared, classes in tally.gateways:
        for name, (named, moved) in classes.items():
            if named and name in seen:
                weight = min(1.0, named / max(CLASS_SHARE * compared, CLASS_FRAMES))
                seen[name].append((moved / named, weight))
    bars = {
        name: limits.moved_max + (1 - limits.moved_max) * min(explained, EXPLAINED_MAX)
        for name, explained in tally.known.items()
    }
    terms = {name: log_share_evidence(shares, bars[name]) for name, shares in seen.items()}
    if not terms:
        return _verdict("classes", -LOG_MAX, 0.0, limits.moved_max, 0, limits)
    worst = max(terms, key=terms.__getitem__)
    stakes = sum(weight for _, weight in seen[worst])
    mean = sum(share * weight for share, weight in seen[worst]) / stakes if stakes else 0.0
    evidence = log_sum(list(terms.values())) - math.log(len(terms))
    verdict = _verdict("classes", evidence, mean, bars[worst], len(seen[worst]), limits)
    return msgspec.structs.replace(verdict, about=worst if stakes else "")


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
    evidence = log_mean_evidence(mean - limits.disagreement_max, variance, SPREAD) if effects else -LOG_MAX
    return _verdict("disagreement", evidence, mean, limits.disagreement_max, len(effects), limits)


def _change(
    gate: str, effects: Sequence[tuple[float, float] | None], limit: float, scale: float, limits: Limits
) -> Verdict:
    found = [effect for effect in effects if effect is not None]
    mean, variance = _pool(found)
    # either way: half of the bet each
    evidence = log_mean_evidence(abs(mean) - limit, variance, scale) - math.log(2) if found else -LOG_MAX
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
    evidence = log_mean_evidence(mean - limit, variance, LATENCY_SCALE) if effects else -LOG_MAX
    return _verdict("latency", evidence, math.exp(min(mean, 20.0)), limits.latency_ratio_max, len(effects), limits)


def _throughput(observations: Sequence[Observation], limits: Limits) -> Verdict:
    """Looks that do not happen are seen in no latency: the box skips them to keep up."""
    effects = [
        (o.unseen / (o.frames + o.unseen) - o.before.unseen / (o.before.frames + o.before.unseen), UNSEEN_NOISE**2)
        for o in observations
        if o.before is not None and o.frames and o.before.frames
    ]
    mean, variance = _pool(effects)
    limit = limits.unseen_more_max
    evidence = log_mean_evidence(mean - limit, variance, UNSEEN_SCALE) if effects else -LOG_MAX
    return _verdict("throughput", evidence, mean, limit, len(effects), limits)


def _labels(labels: LabelTally, limits: Limits) -> Verdict:
    count = labels.old_right + labels.new_right
    ok = limits.labels_against_max
    evidence = log_label_evidence(labels.old_right, labels.new_right, ok)
    if labels.by_class:  # a mean of e-values is one: half of it over all labels, half over the classes
        classes = [log_label_evidence(old, new, CLASS_AGAINST_MAX) for old, new in labels.by_class]
        evidence = log_sum([evidence - math.log(2), *(one - math.log(2 * len(classes)) for one in classes)])
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
