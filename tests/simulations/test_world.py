"""Worlds: what the oracle knows of videos and folders."""

import json
from pathlib import Path

import pytest

from common.errors import OperatorError
from simulations.world import Event, FolderWorld, VideoWorld, read_events


@pytest.mark.parametrize(
    ("truth", "events"),
    [
        ({"labels": [{"kind": "foreign_bolt", "first_frame": 1, "last_frame": 22}]}, [Event("foreign-bolt", 1, 22)]),
        ({"presence": [[3, 5], [8, 9]]}, [Event("present", 3, 5), Event("present", 8, 9)]),
        ({"kind": "flame", "frames": {"0": [], "4": [[1, 2, 3, 4]]}}, [Event("flame", 4, 4)]),
        ({"frames": 37, "fps": 12.5}, []),
    ],
)
def test_events_are_read_from_each_layout(tmp_path: Path, truth: dict[str, object], events: list[Event]) -> None:
    path = tmp_path / "video.json"
    path.write_text(json.dumps(truth))
    assert read_events(path) == events


@pytest.mark.parametrize("text", ["no json", "[1, 2]", '{"labels": [{"kind": "bolt"}]}', '{"presence": [[1]]}'])
def test_a_broken_truth_file_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "video.json"
    path.write_text(text)
    with pytest.raises(OperatorError, match=r"video\.json"):
        read_events(path)


def test_a_missing_or_broken_video_is_named(tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video" * 100)
    for video in (broken, tmp_path / "missing.mp4"):
        with pytest.raises(OperatorError, match=video.name):
            VideoWorld([video], tmp_path / "world").build()


def test_a_folder_without_scenes_or_splits_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="manifest"):
        FolderWorld(tmp_path, tmp_path / "world").build()
    (tmp_path / "manifest.csv").write_text("file,class,scene\n")
    with pytest.raises(OperatorError, match="split"):
        FolderWorld(tmp_path, tmp_path / "world").build()


@pytest.mark.data
def test_a_real_folder_is_laid_out_with_a_tenth_to_label(sample_data: Path, tmp_path: Path) -> None:
    world = FolderWorld(sample_data / "belt-defects", tmp_path / "world").build()
    assert [site.seen for site in world.sites].count(False) == 6
    trained = {item.path for item in world.datasets[world.scenario]}
    for site in world.sites:
        own = list(world.evaluation(site.name, lambda camera, at_ns: False))
        assert world.label_budget is not None
        assert world.label_budget[site.name] <= max(4, len(own) // 10)
        assert len({truth[world.scenario] for _, truth in own}) > 1
    assert trained, "the first release has pictures to learn from"


@pytest.mark.data
def test_the_truth_of_a_real_video_is_by_frame_time(sample_data: Path, tmp_path: Path) -> None:
    video = sample_data / "videos" / "bolt_on_belt.mp4"
    world = VideoWorld([video], tmp_path / "world").build()
    began_ns = video.stat().st_mtime_ns

    def at(frame: int) -> str | None:
        return world.truth("video-1", "camera-1", began_ns + int(frame / 12.5 * 1e9), world.scenario)

    assert [at(0), at(1), at(22), at(23)] == ["normal", "foreign-object-bolt", "foreign-object-bolt", "normal"]
