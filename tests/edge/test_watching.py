"""Cameras that come, go and change while a lookout runs, on real clips: the others do not notice."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common.clock import SystemClock
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario
from common.messages import CameraState, Event, Sample
from edge.lookout import Lookout
from edge.perception import Model, load_model
from edge.roster import MB, Roster
from edge.settings import CameraSettings, EdgeSettings, EventSettings, GearSettings, SelectionSettings

pytestmark = pytest.mark.data
SAMPLES_PER_HOUR = 3600.0


def wait_until(condition: Callable[[], bool], timeout_s: float = 40) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.02)


@pytest.fixture
def clips(sample_data: Path) -> tuple[Path, Path]:
    """A yard with somebody in it, and a belt."""
    return sample_data / "videos" / "one_by_one_person.mp4", sample_data / "videos" / "bolt_on_belt.mp4"


@pytest.fixture
def model(tmp_path: Path, tiny_backbone: Callable[..., bytes], tiny_head: Callable[..., bytes]) -> Model:
    backbone = tiny_backbone()
    head = tiny_head(layer_hash(backbone))
    for data in (backbone, head):
        (tmp_path / layer_hash(data)).write_bytes(data)
    manifest = Manifest(
        sequence=1,
        created_at_ns=0,
        expires_at_ns=2**62,
        minimum_agent="0.1.0",
        backbone=Layer(layer_hash(backbone), len(backbone)),
        scenarios=(Scenario("belt", ("normal", "tear"), "normal", {SHARED: Layer(layer_hash(head), len(head))}),),
    )
    return load_model("r1-test", manifest, lambda name: tmp_path / name, "north")


def camera(name: str, source: Path, **fields: object) -> CameraSettings:
    return CameraSettings(id=name, source=str(source), loop=True, gears=GearSettings(floor_s=0.5), **fields)


def roster(*cameras: CameraSettings, **fields: object) -> Roster:
    return Roster(cameras, SAMPLES_PER_HOUR, **fields)  # type: ignore[arg-type]


Start = Callable[..., Lookout]


@pytest.fixture
def start(tmp_path: Path, model: Model) -> Iterator[Start]:
    started: list[Lookout] = []

    def begin(
        *cameras: CameraSettings, accept: list[Sample] | None = None, events: list[Event] | None = None
    ) -> Lookout:
        settings = EdgeSettings(
            gateway_id="gw-1",
            site_id="north",
            release_root=Path("root.json"),
            data_dir=tmp_path / "data",
            cameras=cameras,
            selection=SelectionSettings(samples_per_hour=SAMPLES_PER_HOUR, window_s=60),
            events=EventSettings(enter_level=1e-6, clear_level=1e-9, enter_s=0),
        )
        samples, told = ([] if accept is None else accept), ([] if events is None else events)
        lookout = Lookout(settings, cameras, SystemClock(), samples.append, on_event=told.append)
        started.append(lookout)
        lookout.hand_over(model)
        lookout.start()
        return lookout

    yield begin
    for lookout in started:
        lookout.stop()


def state(lookout: Lookout, name: str) -> CameraState | None:
    return next((state for state in lookout.states if state.camera_id == name), None)


def looks(lookout: Lookout, name: str) -> int:
    found = state(lookout, name)
    return found.looks if found else 0


def test_a_new_camera_is_watched_and_the_others_go_on(start: Start, clips: tuple[Path, Path]) -> None:
    yard, belt = (camera(name, clip) for name, clip in zip(("yard", "belt"), clips, strict=True))
    lookout = start(yard)
    wait_until(lambda: looks(lookout, "yard") > 0)
    before = lookout.cameras["yard"]
    lookout.watch(roster(belt, yard))
    wait_until(lambda: looks(lookout, "belt") > 2)
    assert [one.camera_id for one in lookout.states] == ["belt", "yard"], "in the order of the file"
    assert lookout.cameras["yard"] is before
    assert lookout.last_look("belt")
    assert lookout.alive


def test_a_camera_that_goes_closes_its_event_and_what_it_held_is_sent_and_kept(
    start: Start, clips: tuple[Path, Path], tmp_path: Path
) -> None:
    yard, belt = (camera(name, clip) for name, clip in zip(("yard", "belt"), clips, strict=True))
    samples: list[Sample] = []
    events: list[Event] = []
    lookout = start(yard, belt, accept=samples, events=events)
    wait_until(lambda: "belt" in {event.camera_id for event in events})
    gone = lookout.cameras["belt"]
    lookout.watch(roster(yard))
    wait_until(lambda: state(lookout, "belt") is None and gone.gone)
    closed = [event for event in events if event.phase == "clear"]
    assert [(event.camera_id, event.cause) for event in closed] == [("belt", "the camera was detached")]
    assert {sample.camera_id for sample in samples} == {"belt"}, "its window was not lost"
    assert (tmp_path / "data" / "selection" / "belt.bin").is_file()
    assert lookout.last_look("belt") is None
    before = looks(lookout, "yard")
    wait_until(lambda: looks(lookout, "yard") > before)

    lookout.watch(roster(yard, belt))  # and it comes back
    wait_until(lambda: looks(lookout, "belt") > 0)


def test_a_changed_camera_begins_anew_when_its_old_stream_is_closed(start: Start, clips: tuple[Path, Path]) -> None:
    lookout = start(camera("one", clips[0]), camera("two", clips[1]))
    wait_until(lambda: looks(lookout, "one") > 0 and looks(lookout, "two") > 0)
    old, other = lookout.cameras["one"], lookout.cameras["two"]
    lookout.watch(roster(camera("one", clips[1]), camera("two", clips[1])))
    wait_until(lambda: lookout.cameras["one"] is not old and looks(lookout, "one") > 0)
    assert old.gone
    assert lookout.cameras["two"] is other
    assert lookout.cameras["one"].settings.source == str(clips[1])


def test_without_a_model_cameras_come_and_go_as_well_and_the_last_change_counts(
    tmp_path: Path, clips: tuple[Path, Path]
) -> None:
    yard, belt = (camera(name, clip) for name, clip in zip(("yard", "belt"), clips, strict=True))
    settings = EdgeSettings(
        gateway_id="gw-1", site_id="north", release_root=Path("root.json"), data_dir=tmp_path / "data", cameras=(yard,)
    )
    lookout = Lookout(settings, (yard,), SystemClock(), lambda sample: None)
    lookout.start()
    try:
        for _ in range(10):
            lookout.watch(roster(belt))
            lookout.watch(roster(yard, belt))
        wait_until(lambda: len(lookout.states) == 2 and all(one.state == "live" for one in lookout.states))
    finally:
        lookout.stop()


def test_a_camera_that_does_not_fit_runs_at_its_share_and_says_why(start: Start, clips: tuple[Path, Path]) -> None:
    yard, belt = (camera(name, clip) for name, clip in zip(("yard", "belt"), clips, strict=True))
    lookout = start(yard, belt)
    before = lookout.cameras["belt"]
    lookout.watch(roster(yard, belt, shares={"belt": 0.125}))
    wait_until(lambda: "0.125 as often" in lookout.cameras["belt"].state.detail)
    assert lookout.cameras["belt"] is before, "a share is no reason to begin anew"
    assert "budget.memory_mb is too small" in lookout.cameras["belt"].state.detail
    assert "often" not in lookout.cameras["yard"].state.detail
    assert lookout.cameras["belt"].held_bytes_max == 12 * MB // 8 // 2


def test_more_cpu_than_the_budget_makes_the_looks_fewer(
    start: Start, clips: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.lookout.RATION_S", 0.3)
    important = camera("belt", clips[1], priority=5)
    lookout = start(camera("yard", clips[0]), important)
    lookout.watch(roster(camera("yard", clips[0]), important, cores=1e-4))
    wait_until(lambda: "0.5 as often" in lookout.cameras["yard"].state.detail)
    assert "box has too many cameras" in lookout.cameras["yard"].state.detail
    wait_until(lambda: "0.125 as often" in lookout.cameras["belt"].state.detail)
    assert lookout.cameras["yard"].state.detail.startswith("looked at 0.125 as often")
