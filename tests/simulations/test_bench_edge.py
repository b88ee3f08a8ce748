"""The measures of `headframe bench edge`, and that its footage is what it says."""

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from simulations.bench._footage import MAIN_SIZE, SUB_SIZE, Belt, Footage, Yard, repeat_footage, write_stream
from simulations.bench.edge import Run, recall

NOWHERE = Path("clip.mp4")


def watched(*said: tuple[float, float]) -> Run:
    footage = Footage("yard", NOWHERE, NOWHERE, 60.0, ((10.0, 13.0), (30.0, 33.0)))
    return Run(footage, said=list(said))


def test_an_event_is_detected_by_a_look_at_it_and_known_when_the_look_was_possible() -> None:
    run = watched((5.0, 5.0), (11.0, 12.5), (11.2, 12.5), (12.0, 12.6))
    assert run.detected() == {0: 2.5}
    assert run.false_looks() == 1


def test_recall_is_of_what_the_naive_loop_detects() -> None:
    both, first = watched((10.2, 10.2), (30.2, 30.2)), watched((10.2, 10.2))
    assert recall(first, both) == 0.5
    assert recall(both, first) == 1.0
    assert recall(both, watched()) is None


def test_what_was_said_of_one_copy_is_said_of_each() -> None:
    once = watched((11.0, 11.0))
    twice = Footage("yard", NOWHERE, NOWHERE, 120.0, ((10.0, 13.0), (30.0, 33.0), (70.0, 73.0), (90.0, 93.0)))
    again = once.repeated(twice)
    assert again.said == [(11.0, 11.0), (71.0, 71.0)]
    assert set(again.detected()) == {0, 2}


def test_footage_several_times_over_is_the_same_packets_and_events(tmp_path: Path) -> None:
    pictures = [np.full((36, 64, 3), 20 * number, np.uint8) for number in range(10)]
    main, sub = tmp_path / "main.mp4", tmp_path / "sub.mp4"
    write_stream(main, MAIN_SIZE, 5, pictures, 5)
    write_stream(sub, SUB_SIZE, 5, pictures, 5)
    longer = repeat_footage(Footage("yard", main, sub, 2.0, ((0.5, 1.0),)), tmp_path, 3)
    assert longer.events == ((0.5, 1.0), (2.5, 3.0), (4.5, 5.0))
    assert longer.seconds == 6.0
    with av.open(str(sub)) as one, av.open(str(longer.sub)) as three:
        lights = [float(frame.to_ndarray(format="gray").mean()) for frame in one.decode(video=0)]
        frames = [(frame.time, float(frame.to_ndarray(format="gray").mean())) for frame in three.decode(video=0)]
    assert [at for at, _ in frames] == pytest.approx([number / 5 for number in range(30)])
    assert [light for _, light in frames] == lights * 3


@pytest.mark.data
def test_the_yard_is_active_for_less_than_fifteen_percent_and_fitted_on_other_visits(sample_data: Path) -> None:
    yard = Yard(sample_data / "videos")
    pictures, events = yard.play(200, seed=0)
    assert 0.12 < sum(end - begin for begin, end in events) / (len(pictures) / yard.FPS) <= 0.15
    played = {id(picture) for picture in pictures}
    assert not [example for example in yard.examples() if id(example.image) in played]


@pytest.mark.data
def test_the_belt_never_stands_still(sample_data: Path) -> None:
    belt = Belt(sample_data / "videos")
    pictures, events = belt.play(10, seed=0)
    assert len(events) >= 2
    assert all((one != other).mean() > 0.02 for one, other in itertools.pairwise(pictures))
    with av.open(str(sample_data / "videos" / "bolt_on_belt.mp4")) as clip:
        assert clip.streams.video[0].frames == 37
