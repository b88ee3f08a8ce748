"""What two releases say of the same frames, class by class."""

from common.messages import Prediction
from edge.tally import Observation, Pair, add_up

OLD, NEW = ("normal", "tear"), ("normal", "tear", "hole")


def says(classes: tuple[str, ...], top: str) -> tuple[Prediction, ...]:
    return (Prediction("belt", classes, tuple(0.9 if label == top else 0.05 for label in classes), 0.0),)


def compare(*frames: tuple[str, str]) -> Pair:
    """The old release runs, the new one, which knows a class more, looks beside it."""
    pair = Pair()
    for old, new in frames:
        pair.count(says(OLD, old), says(NEW, new), flagged_running=old != "normal", flagged_beside=new != "normal")
    return pair


def test_a_class_that_is_named_otherwise_is_counted_for_both_sides() -> None:
    pair = compare(("tear", "normal"), ("tear", "tear"), ("normal", "normal"))
    assert pair.moves_running == {"belt/tear": (2, 1), "belt/normal": (1, 0)}
    assert pair.moves_beside == {"belt/normal": (2, 1), "belt/tear": (1, 0)}


def test_what_is_named_by_a_class_that_the_other_does_not_know_says_nothing_of_its_classes() -> None:
    pair = compare(("tear", "hole"), ("tear", "tear"))
    assert pair.moves_running == {"belt/tear": (1, 0)}
    assert pair.moves_beside == {"belt/hole": (1, 1), "belt/tear": (1, 0)}
    assert pair.disagreed == 1


def test_places_are_changed_and_loops_added_up() -> None:
    shadow, probation = compare(("tear", "normal")), compare(("tear", "tear"), ("normal", "tear")).turned()
    both = shadow.turned().plus(probation)
    assert both.moves_beside == {"belt/tear": (2, 1), "belt/normal": (1, 1)}, "of what the old one named"
    assert (both.compared, both.disagreed, both.flagged_running, both.flagged_beside) == (3, 2, 2, 2)
    assert add_up([Observation(pair=probation), Observation(pair=probation)]).pair == probation.plus(probation)


def test_a_copy_stays_as_it_is() -> None:
    pair = compare(("tear", "normal"))
    copied = pair.copy()
    pair.count(says(OLD, "tear"), says(NEW, "tear"), flagged_running=True, flagged_beside=True)
    assert copied.moves_running == {"belt/tear": (1, 1)}
