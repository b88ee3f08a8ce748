"""The gears of a camera: what moves them, and what they promise whatever happens."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.gears import Gear, Gears
from edge.settings import GearSettings

S = 10**9
SETTINGS = GearSettings(calm_s=2, alert_s=5)


def idle_gears() -> Gears:
    gears = Gears(SETTINGS)
    gears.on_motion(0, moved=False)
    assert gears.on_motion(2 * S, moved=False) is Gear.IDLE
    return gears


def test_a_new_camera_watches_until_its_scene_was_calm() -> None:
    gears = Gears(SETTINGS)
    assert gears.gear is Gear.WATCH
    assert gears.on_motion(0, moved=False) is Gear.WATCH
    assert gears.on_motion(int(1.9 * S), moved=False) is Gear.WATCH
    assert gears.on_motion(2 * S, moved=False) is Gear.IDLE


def test_motion_wakes_at_once_and_calm_lulls_slowly() -> None:
    gears = idle_gears()
    assert gears.on_motion(10 * S, moved=True) is Gear.WATCH
    assert gears.on_motion(11 * S, moved=False) is Gear.WATCH
    assert gears.on_motion(11 * S + 1, moved=True) is Gear.WATCH
    assert gears.on_motion(13 * S, moved=False) is Gear.WATCH, "counted from the last motion"
    assert gears.on_motion(13 * S + 1, moved=False) is Gear.IDLE


def test_a_striking_look_makes_it_dense_from_any_gear() -> None:
    gears = idle_gears()
    assert gears.on_look(10 * S, striking=True) is Gear.ALERT
    assert gears.on_motion(14 * S, moved=False) is Gear.ALERT, "a still scene can be alarming"
    assert gears.on_look(15 * S, striking=False) is Gear.WATCH, "the calm begins where the alert ends"
    assert gears.on_motion(17 * S, moved=False) is Gear.IDLE


def test_an_event_that_begins_ends_alert_unless_something_else_strikes() -> None:
    gears = Gears(GearSettings())
    gears.on_look(10 * S, striking=True)
    assert gears.on_look(11 * S, striking=False, told=True) is Gear.WATCH
    assert gears.on_look(12 * S, striking=True, told=True) is Gear.ALERT


def test_time_that_jumps_back_begins_anew() -> None:
    gears = Gears(SETTINGS)
    gears.on_motion(100 * S, moved=True)
    assert gears.on_motion(0, moved=False) is Gear.WATCH
    assert gears.on_motion(2 * S, moved=False) is Gear.IDLE, "not after a hundred seconds"
    gears.on_look(100 * S, striking=True)
    gears.on_motion(0, moved=False)
    for second in range(1, 12):
        gears.on_motion(second * S, moved=False)
    assert gears.gear is Gear.IDLE, "an alert of a future that never comes does not last"


EVENTS = st.lists(
    st.tuples(st.integers(-2 * S, 4 * S), st.sampled_from(["moved", "still", "striking", "usual"])), max_size=60
)


@given(EVENTS)
def test_no_motion_and_no_striking_look_is_ever_answered_with_less_effort(events: list[tuple[int, str]]) -> None:
    gears, now_ns = Gears(SETTINGS), 0
    order = [Gear.IDLE, Gear.WATCH, Gear.ALERT]
    for step_ns, event in events:
        now_ns = max(0, now_ns + step_ns)
        before = order.index(gears.gear)
        if event in ("moved", "still"):
            after = order.index(gears.on_motion(now_ns, moved=event == "moved"))
        else:
            after = order.index(gears.on_look(now_ns, striking=event == "striking"))
        assert event != "striking" or after == 2
        assert event != "moved" or after >= 1
        assert event not in ("still", "usual") or after <= before, "nothing happened: never more effort"
        assert event == "striking" or after < 2 or before == 2, "only the model raises an alert"


@given(EVENTS, st.integers(0, 10**6))
def test_whatever_happened_a_calm_scene_idles_again(events: list[tuple[int, str]], extra_ms: int) -> None:
    gears, now_ns = Gears(SETTINGS), 0
    for step_ns, event in events:
        now_ns = max(0, now_ns + step_ns)
        if event in ("moved", "still"):
            gears.on_motion(now_ns, moved=event == "moved")
        else:
            gears.on_look(now_ns, striking=event == "striking")
    for _ in range(20):  # longer than calm_s and alert_s together
        now_ns += S // 2 + extra_ms
        gears.on_motion(now_ns, moved=False)
    assert gears.gear is Gear.IDLE


@pytest.mark.parametrize("gear", [Gear.WATCH, Gear.ALERT])
def test_effort_ends_by_itself(gear: Gear) -> None:
    gears = idle_gears()
    if gear is Gear.WATCH:
        gears.on_motion(10 * S, moved=True)
    else:
        gears.on_look(10 * S, striking=True)
    assert gears.gear is gear
    for second in range(11, 30):
        gears.on_motion(second * S, moved=False)
    assert gears.gear is Gear.IDLE


def test_a_scene_that_never_rests_is_steady_until_it_rests() -> None:
    gears = idle_gears()
    for second in range(10, 20):
        gears.on_motion(second * S, moved=True)
        assert gears.is_steady(second * S) == (second >= 15)
    for second in range(20, 23):
        gears.on_motion(second * S, moved=False)
    assert gears.gear is Gear.IDLE
    gears.on_motion(30 * S, moved=True)
    assert not gears.is_steady(30 * S), "news again"
