"""Selection: within the budget, with reasons, without repetition, and the same for the same seed."""

import math
from unittest.mock import patch

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.messages import Prediction
from edge import selection as selection_module
from edge.selection import Candidate, Chosen, RecentScores, Selector
from edge.settings import SelectionSettings

SECOND_NS = 10**9
DIMENSION = 16


def candidate(
    at_s: float, embedding: np.ndarray, novelty: float = 1.0, sure: float = 0.9, camera: str = "belt"
) -> Candidate:
    prediction = Prediction("belt", ("normal", "tear"), (sure, 1 - sure), novelty)
    return Candidate(camera, int(at_s * SECOND_NS), embedding.astype(np.float32), (prediction,), at_s)


def play(selector: Selector, frames: list[Candidate]) -> list[Chosen]:
    chosen = [choice for frame in frames for choice in selector.offer(frame)]
    return chosen + selector.flush()


def stream(seconds: int, per_s: int = 5, seed: int = 0, camera: str = "belt") -> list[Candidate]:
    rng = np.random.default_rng(seed)
    return [
        candidate(n / per_s, rng.normal(size=DIMENSION), rng.random(), 0.5 + rng.random() / 2, camera)
        for n in range(seconds * per_s)
    ]


@pytest.mark.parametrize("per_hour", [30.0, 120.0, 1200.0])
def test_the_budget_is_held_over_a_long_stream(per_hour: float) -> None:
    settings = SelectionSettings(samples_per_hour=per_hour, window_s=60)
    chosen = play(Selector(settings, ["belt"]), stream(1800))
    assert abs(len(chosen) - per_hour / 2) <= 3


def test_the_budget_is_shared_between_the_cameras() -> None:
    settings = SelectionSettings(samples_per_hour=240, window_s=30)
    selector = Selector(settings, ["one", "two"])
    frames = sorted(stream(900, camera="one") + stream(900, seed=1, camera="two"), key=lambda c: c.captured_at_ns)
    chosen = play(selector, frames)
    counts = [sum(choice.candidate.camera_id == name for choice in chosen) for name in ("one", "two")]
    assert abs(counts[0] - 30) <= 3
    assert abs(counts[1] - 30) <= 3


def test_every_choice_says_why_in_finite_figures() -> None:
    chosen = play(Selector(SelectionSettings(samples_per_hour=600, trickle=0.2), ["belt"]), stream(600))
    assert {choice.reason for choice in chosen} <= {"novel", "abnormal", "uncertain", "trickle"}
    assert any(choice.reason == "trickle" for choice in chosen)
    for choice in chosen:
        scores = choice.scores
        figures = [scores.novelty, scores.abnormality, scores.uncertainty, scores.redundancy, scores.value]
        assert all(math.isfinite(figure) and 0 <= figure <= 1 for figure in figures)


def test_a_picture_that_was_sent_is_not_sent_again() -> None:
    rng = np.random.default_rng(0)
    kinds = rng.normal(size=(3, DIMENSION))
    frames = [candidate(n / 5, kinds[n % 3] + rng.normal(0, 1e-4, DIMENSION)) for n in range(3000)]
    settings = SelectionSettings(samples_per_hour=3600, window_s=10, trickle=0)
    assert len(play(Selector(settings, ["belt"]), frames)) == 3


def test_an_oddity_is_chosen_before_the_ordinary() -> None:
    rng = np.random.default_rng(0)
    base = rng.normal(size=DIMENSION) * 3
    frames = [candidate(n / 5, base + rng.normal(0, 0.3, DIMENSION), novelty=rng.random()) for n in range(1500)]
    odd = {700, 701, 702}
    for n in odd:
        frames[n] = candidate(n / 5, -base + rng.normal(0, 0.3, DIMENSION), novelty=9.0, sure=0.5)
    settings = SelectionSettings(samples_per_hour=60, window_s=60, trickle=0)
    chosen = {
        round(choice.candidate.captured_at_ns / SECOND_NS * 5) for choice in play(Selector(settings, ["belt"]), frames)
    }
    assert chosen & odd


def test_a_standing_oddity_does_not_eat_the_budget_for_ever() -> None:
    rng = np.random.default_rng(0)
    odd = rng.normal(size=DIMENSION) * 3
    frames = [candidate(n / 5, odd + rng.normal(0, 0.01, DIMENSION), novelty=9.0, sure=0.5) for n in range(6000)]
    settings = SelectionSettings(samples_per_hour=360, window_s=60, trickle=0)
    assert len(play(Selector(settings, ["belt"]), frames)) <= 3


def test_the_same_seed_chooses_the_same() -> None:
    settings = SelectionSettings(samples_per_hour=600, trickle=0.5)
    one, same, other = (
        [choice.candidate.captured_at_ns for choice in play(Selector(settings, ["belt"], seed), stream(600))]
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_time_that_goes_back_closes_the_window(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = SelectionSettings(samples_per_hour=3600, window_s=60, trickle=0)
    selector = Selector(settings, ["belt"])
    rng = np.random.default_rng(0)
    chosen: list[Chosen] = []
    for _ in range(5):
        for n in range(10):  # two seconds of a loop: shorter than the window
            chosen += selector.offer(candidate(n / 5, rng.normal(size=DIMENSION)))
    assert chosen, "a loop shorter than the window is judged at its end"


def test_memory_is_bounded_however_long_a_window_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection_module, "HELD_MAX", 20)
    settings = SelectionSettings(samples_per_hour=3600, window_s=3600)
    selector = Selector(settings, ["belt"])
    for frame in stream(300):
        assert selector.offer(frame) == []
        assert len(selector._cameras["belt"].held) <= 20
    assert 0 < len(selector.flush()) <= 20


@given(st.lists(st.floats(allow_nan=False), min_size=1, max_size=3 * 20))
def test_a_rank_is_the_share_of_the_recent_scores_that_are_lower(scores: list[float]) -> None:
    recent = RecentScores()
    with patch("edge.selection.HISTORY", 20):
        for number, score in enumerate(scores):
            before = scores[max(0, number - 20) : number]
            lower = sum(old < score for old in before) + sum(old == score for old in before) / 2
            assert recent.rank(score) == pytest.approx(lower / len(before) if before else 0.5)


def test_a_score_that_is_no_number_is_in_the_middle_and_forgotten() -> None:
    recent = RecentScores()
    assert [recent.rank(score) for score in (1.0, float("nan"), 2.0, 0.0)] == [0.5, 0.5, 1.0, 0.0]
