"""What follows from a look: events from heads and from boxes within their zones, doubts, and what a release drops."""

import numpy as np

from common.manifest import SHARED, DetectorLayer, Layer, Manifest, Scenario
from common.messages import Box, Prediction
from edge.events import Phase
from edge.judge import Judge, Seen
from edge.settings import CameraSettings, EventSettings

LAYER = Layer("a", 1)
PEOPLE = DetectorLayer("people", LAYER, alarms=("person",))
S = 10**9


def manifest(*scenarios: str, detectors: tuple[DetectorLayer, ...] = ()) -> Manifest:
    made = tuple(Scenario(name, ("normal", "tear"), "normal", {SHARED: LAYER}) for name in scenarios)
    return Manifest(
        sequence=1,
        created_at_ns=0,
        expires_at_ns=1,
        minimum_agent="0.1.0",
        backbone=LAYER,
        scenarios=made,
        detectors=detectors,
    )


def head(tear: float, scenario: str = "belt") -> Prediction:
    return Prediction(scenario, ("normal", "tear"), (1 - tear, tear), 0.0)


def person(left: float, label: str = "person", score: float = 0.9) -> Box:
    return Box("people", label, score, left, 0.4, left + 0.1, 0.6)


def seen(*boxes: Box) -> Seen:
    return Seen(PEOPLE, 0.35, boxes, ())


def make_judge(**camera: object) -> Judge:
    return Judge(CameraSettings(id="yard", source="x", **camera), EventSettings())


def turns(judge: Judge, looks: list[tuple[list[Prediction], list[Seen]]]) -> list[tuple[str, Phase, str]]:
    found = []
    for number, (predictions, sightings) in enumerate(looks):
        verdict = judge.judge(number * S // 5, predictions, sightings)
        found += [(name, turn.phase, turn.label) for name, turn in verdict.turns]
    return found


def test_a_head_raises_its_scenario_and_a_detector_its_own_name() -> None:
    judge = make_judge()
    judge.adopt(manifest("belt", detectors=(PEOPLE,)), 0)
    looks = [([head(0.95)], [seen(person(0.5))])] * 10 + [([head(0.01)], [seen()])] * 30
    assert turns(judge, looks) == [
        ("belt", Phase.ENTER, "tear"),
        ("people", Phase.ENTER, "person"),
        ("belt", Phase.CLEAR, "tear"),
        ("people", Phase.CLEAR, "person"),
    ]
    assert judge.open_events == ()


def test_what_is_no_alarm_or_outside_of_the_zone_raises_nothing() -> None:
    left_half = {"scenario": "people", "points": [[0, 0], [0.5, 0], [0.5, 1], [0, 1]]}
    judge = make_judge(zones=[left_half])
    judge.adopt(manifest("belt", detectors=(PEOPLE,)), 0)
    looks = [([head(0.0)], [seen(person(0.8), person(0.1, label="dog"))])] * 20
    assert turns(judge, looks) == []
    verdict = judge.judge(10 * S, [head(0.0)], [seen(person(0.8), person(0.1))])
    assert [box.left for box in verdict.boxes] == [0.1], "and only what is inside travels on"


def test_a_zone_is_of_the_whole_picture_however_much_of_it_is_looked_at() -> None:
    right_edge = {"points": [[0.9, 0], [1, 0], [1, 1], [0.9, 1]]}
    judge = make_judge(zones=[right_edge], zone=(0.5, 0.0, 1.0, 1.0))
    judge.adopt(manifest(detectors=(PEOPLE,)), 0)
    inside = judge.judge(0, [], [seen(person(0.85))])  # 0.925 to 0.975 of the whole
    outside = judge.judge(S, [], [seen(person(0.6))])
    assert (len(inside.boxes), len(outside.boxes)) == (1, 0)


def test_an_undecided_event_asks_for_another_look() -> None:
    judge = make_judge()
    judge.adopt(manifest("belt"), 0)
    assert not judge.judge(0, [head(0.0)]).insists
    assert judge.judge(S, [head(1.0)]).insists


def test_a_release_that_drops_a_scenario_closes_its_event_and_keeps_the_others() -> None:
    judge = make_judge()
    judge.adopt(manifest("belt", "smoke"), 0)
    turns(judge, [([head(1.0), head(1.0, "smoke")], [])] * 10)
    assert set(judge.open_events) == {"belt", "smoke"}
    ((name, turn),) = judge.adopt(manifest("belt"), 5 * S)
    assert (name, turn.phase, turn.cause) == ("smoke", Phase.CLEAR, "no longer watched for")
    assert judge.open_events == ("belt",)
    ((name, turn),) = judge.lose(6 * S, "camera failed")
    assert (name, turn.cause) == ("belt", "camera failed")


def test_events_can_be_switched_off_or_set_for_one_scenario() -> None:
    off = Judge(CameraSettings(id="yard", source="x"), EventSettings(enabled=False))
    off.adopt(manifest("belt"), 0)
    assert turns(off, [([head(1.0)], [])] * 20) == []
    slow = EventSettings(scenarios=[{"name": "belt", "enter_s": 60.0}])
    late = Judge(CameraSettings(id="yard", source="x"), slow)
    late.adopt(manifest("belt", "smoke"), 0)
    looks = [([head(1.0), head(1.0, "smoke")], [])] * 20
    assert turns(late, looks) == [("smoke", Phase.ENTER, "tear")]


def test_a_blind_camera_closes_its_events_and_begins_none_until_it_sees_again() -> None:
    judge = make_judge()
    judge.adopt(manifest("belt", detectors=(PEOPLE,)), 0)
    alarm = [head(1.0)], [seen(person(0.5))]
    turns(judge, [alarm] * 10)
    assert set(judge.open_events) == {"belt", "people"}
    frozen = [judge.judge((10 + number) * S, *alarm, blind="frozen") for number in range(60)]
    said = [(name, turn.phase, turn.cause) for verdict in frozen for name, turn in verdict.turns]
    assert said == [("belt", Phase.CLEAR, "camera frozen"), ("people", Phase.CLEAR, "camera frozen")], "told once"
    assert not any(verdict.insists for verdict in frozen)
    again = [judge.judge(80 * S + number * S // 5, *alarm) for number in range(10)]
    assert [(name, turn.phase) for verdict in again for name, turn in verdict.turns] == [
        ("belt", Phase.ENTER),
        ("people", Phase.ENTER),
    ]


def test_darkness_is_not_learnt_as_normal_however_long_it_lasts() -> None:
    random = np.random.default_rng(0)
    usual, black = random.normal(0, 1, (2, 200, 5, 6))

    def patches(of: np.ndarray) -> np.ndarray:
        return (of + random.normal(0, 0.1, of.shape)).astype(np.float32)

    judge = make_judge()
    judge.adopt(manifest("belt"), 0)
    for number in range(60):
        judge.judge(number * S, [head(0.0)], patches=patches(usual))
    for number in range(60, 1560):
        assert judge.judge(number * S, [head(0.0)], patches=patches(black), blind="dark").boxes == ()
    assert judge.judge(1560 * S, [head(0.0)], patches=patches(black)).boxes, "what is black is still unusual"
    assert judge.judge(1561 * S, [head(0.0)], patches=patches(usual)).boxes == (), "and the scene is not"
