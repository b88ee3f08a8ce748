"""Simulated belts: deterministic, truthful, different from site to site, and quick enough for a demo."""

import time
from itertools import pairwise
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from common.errors import OperatorError
from simulations.belts import BeltCamera, still_frames, truth_of
from simulations.clips import read_truth, truth_path, write_clip
from simulations.looks import EVENTS, NORMAL, SCENARIO_OF, SCENARIOS, SITES


@pytest.mark.parametrize("site", SITES)
def test_the_same_camera_and_seed_give_the_same_frame_in_any_order(site: str) -> None:
    one, other = BeltCamera(site, 1, seed=5), BeltCamera(site, 1, seed=5)
    forward = [one.frame(index) for index in (0, 40, 90)]
    backward = [other.frame(index) for index in (90, 40, 0)][::-1]
    for (picture, truth), (again, truth_again) in zip(forward, backward, strict=True):
        assert picture.dtype == np.uint8
        assert picture.shape == (270, 480, 3)
        np.testing.assert_array_equal(picture, again)
        assert truth == truth_again


def test_another_seed_or_camera_gives_another_picture() -> None:
    picture, _ = BeltCamera("north-drift", 1, seed=1).frame(0)
    for other in (BeltCamera("north-drift", 1, seed=2), BeltCamera("north-drift", 2, seed=1)):
        assert np.abs(picture.astype(int) - other.frame(0)[0]).mean() > 3


def test_the_belt_moves_down_the_picture_at_its_speed() -> None:
    camera = BeltCamera("north-drift", 1, seed=1, size=(480, 270), fps=10)
    first, second = (cv2.cvtColor(camera.frame(i)[0], cv2.COLOR_BGR2GRAY)[60:210, 160:320] for i in (0, 1))
    (_, down), _ = cv2.phaseCorrelate(first.astype(np.float32), second.astype(np.float32))
    assert down == pytest.approx(camera.look.speed_px_s / 10, abs=2.5)


def test_in_a_minute_every_event_is_seen_well_inside_the_picture() -> None:
    for site in SITES:
        camera = BeltCamera(site, 1, seed=1)
        truths = [camera.frame(index)[1] for index in range(0, 600, 4)]
        seen = {name for truth in truths for name in truth.values()}
        assert seen >= {NORMAL, *EVENTS}, f"at {site} a minute shows only {seen}"
        assert sum(set(truth.values()) == {NORMAL} for truth in truths) > len(truths) / 6


def test_an_object_that_enters_is_ambiguous_before_it_counts() -> None:
    camera = BeltCamera("south-drift", 1, seed=3)
    truths = [camera.frame(index)[1] for index in range(600)]
    for scenario in SCENARIOS:
        answers = [truth[scenario] for truth in truths]
        for before, after in pairwise(answers):
            if before != after:
                assert before is None or after is None, f"{before} turned into {after} at once"


def test_the_truth_of_a_frame_names_one_event_at_most() -> None:
    assert truth_of(None, 0.0) == dict.fromkeys(SCENARIOS, NORMAL)
    for kind in EVENTS:
        assert truth_of(kind, 0.0) == dict.fromkeys(SCENARIOS, NORMAL)
        assert truth_of(kind, 0.3)[SCENARIO_OF[kind]] is None
        assert truth_of(kind, 1.0) == dict.fromkeys(SCENARIOS, NORMAL) | {SCENARIO_OF[kind]: kind}


def test_stills_show_every_kind_equally_often_and_none_ambiguous() -> None:
    pictures, truths = still_frames("east-panel", 1, 9, 24)
    assert len(pictures) == len(truths) == 24
    for scenario, classes in SCENARIOS.items():
        answers = [truth[scenario] for truth in truths]
        for name in classes[1:]:
            assert answers.count(name) == 4
        assert answers.count(NORMAL) == 24 - 4 * len(classes[1:])


@pytest.mark.parametrize("site", SITES)
def test_an_event_changes_the_picture_where_it_lies(site: str) -> None:
    camera = BeltCamera(site, 1, seed=4, events_per_s=0.12)
    bare = BeltCamera(site, 1, seed=4, events_per_s=1e-9)  # the first event is decades away; same coal, same noise
    busy = next(i for i in range(0, 600, 2) if set(camera.frame(i)[1].values()) & set(EVENTS))
    changed = np.abs(camera.frame(busy)[0].astype(int) - bare.frame(busy)[0].astype(int)).max(axis=2) > 8
    assert 0.002 < changed.mean() < 0.5


def test_an_unknown_site_is_refused_with_the_sites_there_are() -> None:
    with pytest.raises(OperatorError, match="north-drift"):
        BeltCamera("atlantis")


def test_sites_do_not_look_alike() -> None:
    means = {site: np.mean([p.mean(axis=(0, 1)) for p in still_frames(site, 1, 2, 6)[0]], axis=0) for site in SITES}
    for site, look in SITES.items():
        if not look.seen:
            assert min(np.abs(means[site] - means[s]).max() for s in SITES if SITES[s].seen) > 6


def test_a_clip_plays_with_one_truth_for_each_frame(tmp_path: Path) -> None:
    path = tmp_path / "clips" / "belt.mp4"
    camera = BeltCamera("deep-seam", 2, seed=6)
    write_clip(path, camera, seconds=4)
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        assert (frames[0].width, frames[0].height) == camera.size
        assert [frame.time for frame in frames] == pytest.approx([i / 10 for i in range(40)])
        decoded = frames[20].to_ndarray(format="bgr24")
    assert np.abs(decoded.astype(int) - camera.frame(20)[0]).mean() < 8
    truths = read_truth(path)
    assert list(truths) == list(range(40))
    assert truths[20] == camera.frame(20)[1]
    assert sorted(file.name for file in path.parent.iterdir()) == ["belt.json", "belt.mp4"]


def test_a_clip_without_its_truth_says_so(tmp_path: Path) -> None:
    path = tmp_path / "belt.mp4"
    write_clip(path, BeltCamera("north-drift"), seconds=0.5)
    truth_path(path).unlink()
    with pytest.raises(OperatorError, match=r"belt\.mp4"):
        read_truth(path)


def test_a_clip_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    class Broken(BeltCamera):
        def frame(self, index: int):  # type: ignore[no-untyped-def]
            if index == 3:
                raise RuntimeError("lens cap")
            return super().frame(index)

    with pytest.raises(RuntimeError, match="lens cap"):
        write_clip(tmp_path / "belt.mp4", Broken("north-drift"), seconds=1)
    assert list(tmp_path.iterdir()) == []


def test_clips_are_made_many_times_faster_than_they_play(tmp_path: Path) -> None:
    camera = BeltCamera("west-shaft", 1, seed=1)
    began_s = time.process_time()
    write_clip(tmp_path / "belt.mp4", camera, seconds=10)
    assert 100 / (time.process_time() - began_s) > 60  # about 400 on a quiet core; the demo needs 200
