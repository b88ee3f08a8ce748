"""What the model must say for a camera to be looked at densely."""

from common.messages import Prediction
from edge.settings import GearSettings
from edge.striking import WARM, Striking


def says(normal: float, novelty: float = 1.0) -> tuple[Prediction, ...]:
    return (Prediction("belt", ("normal", "tear"), (normal, 1 - normal), novelty),)


def warmed(normal: float = 0.99) -> Striking:
    striking = Striking(GearSettings())
    for number in range(2 * WARM):
        assert not striking.judge(says(normal, 1.0 + 0.05 * (number % 2)))
    return striking


def test_an_unsure_or_novel_frame_of_a_usually_clear_scene_is_striking() -> None:
    assert warmed().judge(says(0.55))
    assert warmed().judge(says(0.99, novelty=3.0))
    assert not warmed().judge(says(0.98, novelty=1.04))


def test_a_head_that_is_always_unsure_is_no_news() -> None:
    assert not warmed(normal=0.55).judge(says(0.55))


def test_nothing_is_striking_before_the_usual_is_known() -> None:
    assert not Striking(GearSettings()).judge(says(0.5, novelty=100.0))


def test_what_somebody_has_been_told_of_is_no_news_but_other_scenarios_are() -> None:
    striking = warmed()
    assert not striking.judge(says(0.55), told=("belt",))
    assert striking.judge(says(0.55), told=("helmet",))


def test_an_answer_that_is_no_number_spoils_nothing() -> None:
    striking = warmed()
    assert not striking.judge(says(0.99, novelty=float("nan")))
    assert striking.judge(says(0.99, novelty=3.0))
