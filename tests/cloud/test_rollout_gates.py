"""Gates of a rollout: they close on what is bad and do not cry wolf, however often they are asked."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.rollout.evidence import log_label_evidence, log_mean_evidence, log_rate_evidence, log_share_evidence
from cloud.rollout.gates import (
    SHARES,
    Baseline,
    ClassTally,
    LabelTally,
    Limits,
    Observation,
    Tally,
    closed,
    judge,
)

LIMITS = Limits()
BEFORE = Baseline(frames=4000, flagged=80, score_sum=3600.0, latency_ms=20.0)


def behaves(**changed: object) -> Observation:
    """A gateway on which the new release does as the old one did."""
    usual: dict[str, object] = {
        "frames": 2000,
        "flagged": 42,
        "score_sum": 1790.0,
        "score_squares": 1620.0,
        "latency_ms": 21.0,
        "compared": 500,
        "disagreed": 20,
        "before": BEFORE,
    }
    return Observation(**{**usual, **changed})  # type: ignore[arg-type]


def stops(observations: list[Observation], told: int = 5, failed: int = 0, **more: int) -> list[str]:
    verdicts = judge(Tally(told=told, failed=failed, **more), observations, LabelTally(), LIMITS)
    return [verdict.gate for verdict in closed(verdicts)]


def test_a_release_that_behaves_passes() -> None:
    assert stops([behaves()] * 5) == []
    assert stops([], told=0) == [], "nobody was told yet"


@pytest.mark.parametrize(
    ("changed", "gate"),
    [
        ({"disagreed": 300}, "disagreement"),
        ({"flagged": 1000}, "flags"),
        ({"score_sum": 1100.0, "score_squares": 700.0}, "scores"),
        ({"latency_ms": 100.0}, "latency"),
        ({"unseen": 2000.0}, "throughput"),
    ],
)
def test_a_release_that_behaves_otherwise_is_stopped_by_the_gate_of_that_name(
    changed: dict[str, float], gate: str
) -> None:
    assert gate in stops([behaves(**changed)] * 5)


def test_disagreement_that_is_known_to_be_improvement_is_not_held_against_it() -> None:
    assert stops([behaves(disagreed=300, explained=0.5)] * 5) == []


def test_five_times_slower_is_found_in_a_wave_of_five_and_one_busy_box_stops_nobody() -> None:
    assert stops([behaves(latency_ms=100.0)], told=1) == []
    assert stops([behaves(latency_ms=100.0)] * 5, told=5) == ["latency"]


def test_boxes_that_skip_half_of_their_looks_are_found_and_one_of_them_stops_nobody() -> None:
    assert stops([behaves(unseen=2000.0)], told=1) == []
    assert stops([behaves(unseen=2000.0)] * 5, told=5) == ["throughput"]
    assert stops([behaves(unseen=100.0)] * 30, told=30) == []


def test_three_failures_of_three_are_enough_and_three_of_a_hundred_are_not() -> None:
    assert stops([], told=3, failed=3) == ["failures"]
    assert stops([], told=100, failed=3) == []
    assert stops([], told=2, silent=2) == ["silence"], "what falls silent cannot heal itself: less of it is tolerated"
    assert stops([], told=100, refused=4) == [], "boxes that cannot take it have lost nothing"
    assert stops([], told=30, refused=15) == ["refusals"]


def test_labels_that_speak_for_the_old_release_stop_the_new_one() -> None:
    verdicts = judge(Tally(told=5), [], LabelTally(old_right=25, new_right=1), LIMITS)
    assert [verdict.gate for verdict in closed(verdicts)] == ["labels"]
    assert not closed(judge(Tally(told=5), [], LabelTally(old_right=9, new_right=14), LIMITS))


def test_the_false_alarms_are_shared_out_whole() -> None:
    assert sum(SHARES.values()) == pytest.approx(1.0)


@pytest.mark.parametrize("rate", [0.001, 0.01])
def test_a_tolerated_failure_rate_watched_after_every_gateway_is_stopped_as_rarely_as_stated(rate: float) -> None:
    """Ville's inequality: over the whole path, not at one look."""
    rng, runs, needed = np.random.default_rng(5), 1000, -math.log(0.05)
    alarms = 0
    for _ in range(runs):
        bad = np.cumsum(rng.random(1500) < rate)
        alarms += any(
            log_rate_evidence(int(bad[n - 1]), n, 0.01, 0.05) >= needed
            for n in np.flatnonzero(np.diff(bad, prepend=0)) + 1
        )
    assert alarms / runs <= 0.05 + 3 * math.sqrt(0.05 / runs)


@given(bad=st.integers(0, 40), count=st.integers(40, 500))
def test_evidence_grows_with_failures_and_shrinks_with_successes(bad: int, count: int) -> None:
    assert log_rate_evidence(bad + 1, count, 0.01, 0.05) > log_rate_evidence(bad, count, 0.01, 0.05)
    assert log_rate_evidence(bad, count + 1, 0.01, 0.05) < log_rate_evidence(bad, count, 0.01, 0.05)


@given(old=st.integers(0, 60), new=st.integers(0, 60))
def test_label_evidence_is_one_in_expectation_when_the_coin_is_as_tolerated(old: int, new: int) -> None:
    after_old, after_new = log_label_evidence(old + 1, new, 0.6), log_label_evidence(old, new + 1, 0.6)
    mean = 0.6 * math.exp(after_old) + 0.4 * math.exp(after_new)
    assert mean == pytest.approx(math.exp(log_label_evidence(old, new, 0.6)))


def test_a_mean_within_its_limit_is_no_evidence() -> None:
    assert log_mean_evidence(-0.1, 0.01, 0.1) < 0
    assert log_mean_evidence(0.5, 0.001, 0.1) > 10


def test_a_class_that_is_lost_does_not_hide_behind_others_that_win() -> None:
    traded = LabelTally(old_right=62, new_right=62, by_class=((2, 60), (60, 2)))
    assert not closed(judge(Tally(told=5), [], LabelTally(old_right=62, new_right=62), LIMITS))
    assert closed(judge(Tally(told=5), [], traded, LIMITS))
    even = LabelTally(old_right=50, new_right=50, by_class=((20, 30), (30, 20)))
    assert not closed(judge(Tally(told=5), [], even, LIMITS)), "classes trade a little"


KNOWN = {"belt/normal": 0.0, "belt/tear": 0.0, "belt/wear": 0.0}


def lost(moved: int, gateways: int, named: int = 8, **explained: float) -> list[str]:
    """On each gateway the old release named `tear` so often, and the new one names that many of them otherwise."""
    known = {**KNOWN, **{f"belt/{label}": share for label, share in explained.items()}}
    seen = tuple((80, {"belt/normal": (80 - named, 0), "belt/tear": (named, moved)}) for _ in range(gateways))
    verdicts = judge(Tally(told=30), [], LabelTally(), LIMITS, ClassTally(known=known, gateways=seen))
    return [f"{verdict.gate} {verdict.about}" for verdict in closed(verdicts)]


def test_a_class_that_the_new_release_never_names_any_more_is_missed_without_a_label() -> None:
    assert lost(8, gateways=30) == ["classes belt/tear"], "a tenth of the frames: no mean of all shows it"
    assert lost(8, gateways=5) == [], "five gateways may be alike by chance"
    assert lost(1, gateways=30, named=1) == [], "on one frame of eighty it was a doubtful one"
    assert lost(4, gateways=1000) == [], "half of it named otherwise is a matter of taste"


def test_a_class_that_was_measured_to_be_named_rightly_now_may_move() -> None:
    assert lost(7, gateways=30, tear=0.8) == []
    assert lost(8, gateways=300, tear=1.0) == ["classes belt/tear"], "but it must not be lost whole"


def test_a_class_that_is_not_of_the_release_before_is_not_judged() -> None:
    seen = ((80, {"belt/mud": (80, 80)}),) * 30
    assert not closed(judge(Tally(), [], LabelTally(), LIMITS, ClassTally(known=KNOWN, gateways=seen)))


@pytest.mark.parametrize("alike", [True, False])
def test_classes_that_move_as_far_as_tolerated_stop_a_release_as_rarely_as_stated(alike: bool) -> None:
    """Whatever the frames of one gateway have in common: also when all of them move, or none."""
    rng, runs, needed = np.random.default_rng(7), 1000, -math.log(0.05)
    alarms = 0
    for _ in range(runs):
        shares = (rng.random(60) < 0.6).astype(float) if alike else rng.binomial(8, 0.6, 60) / 8
        weights = rng.random(60)
        pairs = list(zip(shares.tolist(), weights.tolist(), strict=True))
        alarms += any(log_share_evidence(pairs[:n], 0.6) >= needed for n in range(1, 61))
    assert alarms / runs <= 0.05 + 3 * math.sqrt(0.05 / runs)


def test_silence_that_happens_without_the_release_too_is_not_held_against_it() -> None:
    assert stops([], told=100, silent=6) == ["silence"]
    verdicts = judge(Tally(told=100, silent=6, usual_loss=0.05), [], LabelTally(), LIMITS)
    assert not closed(verdicts)
