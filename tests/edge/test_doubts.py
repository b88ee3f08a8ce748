"""When a detector is to be doubted."""

from hypothesis import given
from hypothesis import strategies as st

from common.manifest import DetectorLayer, Layer
from common.messages import Box, Prediction
from edge.doubts import LABELS_MAX, MEMORY_LOOKS, Doubts, near_the_line

DECLARED = DetectorLayer("people", Layer("a", 1), scenario="yard", alarms=("person",))


def box(score: float = 0.95, label: str = "person") -> Box:
    return Box("people", label, score, 0.1, 0.1, 0.2, 0.2)


def head(normal: float) -> Prediction:
    return Prediction("yard", ("normal", "person"), (normal, 1 - normal), 0.0)


def doubts() -> Doubts:
    return Doubts(DECLARED, score_min=0.4, normal="normal")


def test_a_score_on_the_line_is_a_coin_and_a_clear_one_is_not() -> None:
    assert near_the_line(0.4, 0.4) == 1.0
    assert near_the_line(0.2, 0.4) == 0.0
    assert near_the_line(0.75, 0.4) == 0.0
    assert 0 < near_the_line(0.3, 0.4) < near_the_line(0.35, 0.4) < 1
    assert doubts().judge([], [box(0.39)], []) > 0.9
    assert doubts().judge([box(0.95)], [], []) == 0.0


def test_entering_and_leaving_is_no_flicker() -> None:
    steady = doubts()
    said = [steady.judge([box()] * count, [], []) for count in (0, 0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0)]
    assert max(said) == 0.0


def test_what_comes_and_goes_is_unstable() -> None:
    unsteady = doubts()
    said = [unsteady.judge([box()] * count, [], []) for count in (0, 1, 0, 1, 0, 1)]
    assert said[-1] == 1.0
    assert said == sorted(said), "the longer it flickers the surer"
    for _ in range(MEMORY_LOOKS):
        last = unsteady.judge([], [], [])
    assert last == 0.0, "and forgotten when it has stopped"


def test_head_and_detector_that_disagree_are_both_in_doubt() -> None:
    assert doubts().judge([], [], [head(0.02)]) > 0.9, "the head alarms, the detector sees nothing"
    assert doubts().judge([box()], [], [head(0.99)]) > 0.9, "the detector alarms, the head says normal"
    assert doubts().judge([box()], [], [head(0.05)]) < 0.1
    assert doubts().judge([], [], [head(0.98)]) < 0.1
    assert doubts().judge([box(label="dog")], [], [head(0.98)]) < 0.1, "a dog is nothing to alarm about"


found = st.lists(st.floats(0.4, 1), max_size=3)
nearly = st.lists(st.floats(0.2, 0.399), max_size=3)


@given(st.lists(st.tuples(found, nearly, st.floats(0, 1)), max_size=12))
def test_a_doubt_is_a_share(looks: list[tuple[list[float], list[float], float]]) -> None:
    judged = doubts()
    for scores, faint, normal in looks:
        assert 0 <= judged.judge([box(s) for s in scores], [box(s) for s in faint], [head(normal)]) <= 1


def test_memory_is_bounded_whatever_a_detector_names() -> None:
    judged = doubts()
    for number in range(3):
        judged.judge([box(label=f"{number}-{index}") for index in range(2 * LABELS_MAX)], [], [])
    assert len(judged._counts) <= LABELS_MAX
