"""An alarm is an event and not a flicker: what holds for every sequence of looks."""

from hypothesis import assume, given
from hypothesis import strategies as st

from edge.events import INSIST_LOOKS, EventRule, EventTrack, Phase, Turn

S = 10**9
RULE = EventRule(
    enter_level=0.7, clear_level=0.4, smooth_s=0.5, enter_s=0.3, clear_s=2.0, persist_s=30.0, cooldown_s=5.0
)
gaps_ms = st.integers(10, 12_000)
levels = st.floats(0, 1)
looks = st.lists(st.tuples(gaps_ms, levels), max_size=80)
rules = st.builds(
    EventRule,
    enter_level=st.floats(0.5, 0.95),
    clear_level=st.floats(0.05, 0.5),
    smooth_s=st.floats(0.05, 5),
    enter_s=st.floats(0, 3),
    clear_s=st.floats(0, 5),
    persist_s=st.floats(1, 60),
    cooldown_s=st.floats(0, 20),
)


def play(track: EventTrack, steps: list[tuple[int, float]], begin_ns: int = 0) -> list[Turn]:
    at_ns, turns = begin_ns, []
    for gap_ms, level in steps:
        at_ns += gap_ms * 1_000_000
        turn = track.look(at_ns, level, f"{level:.2f}")
        turns += [turn] if turn else []
    return turns


@given(rules, looks)
def test_events_begin_go_on_and_end_in_that_order(rule: EventRule, steps: list[tuple[int, float]]) -> None:
    track = EventTrack(rule)
    is_open, began, ended_ns, told_ns = False, 0, None, 0
    for turn in play(track, steps):
        if turn.phase is Phase.ENTER:
            assert not is_open
            assert ended_ns is None or turn.at_ns - ended_ns >= rule.cooldown_s * 1e9, "cooled down"
            began = turn.began_at_ns
            assert turn.at_ns - began >= rule.enter_s * 1e9
            assert turn.peak >= rule.enter_level
        else:
            assert is_open
            assert turn.began_at_ns == began, "the same event"
            if turn.phase is Phase.PERSIST:
                assert turn.at_ns - told_ns >= rule.persist_s * 1e9
            else:
                ended_ns = turn.at_ns
        is_open, told_ns = turn.phase is not Phase.CLEAR, turn.at_ns
    assert track.is_open == is_open


@given(rules, st.lists(gaps_ms, min_size=3, max_size=60), st.data())
def test_one_look_alone_is_no_event(rule: EventRule, gaps: list[int], data: st.DataObject) -> None:
    odd = data.draw(st.integers(0, len(gaps) - 1))
    steps = [(gap, 1.0 if index == odd else 0.0) for index, gap in enumerate(gaps)]
    assert play(EventTrack(rule), steps) == []


@given(rules, looks)
def test_what_never_reaches_the_level_never_opens(rule: EventRule, steps: list[tuple[int, float]]) -> None:
    low = [(gap, level * rule.enter_level * 0.999) for gap, level in steps]
    assert play(EventTrack(rule), low) == []


@given(rules, st.integers(50, 2000))
def test_what_lasts_opens_and_what_is_over_closes(rule: EventRule, gap_ms: int) -> None:
    track = EventTrack(rule)
    enough = round(1000 * (20 * rule.smooth_s + rule.enter_s + rule.clear_s + 30 * gap_ms / 1000) / gap_ms) + 10
    (entered, *_) = play(track, [(gap_ms, 1.0)] * enough)
    assert entered.phase is Phase.ENTER
    assert entered.began_at_ns == gap_ms * 1_000_000, "it began with the first look that showed it"
    *_, over = play(track, [(gap_ms, 0.0)] * enough, begin_ns=enough * gap_ms * 1_000_000)
    assert over.phase is Phase.CLEAR
    assert not track.is_open


def test_a_flicker_at_the_line_is_one_event() -> None:
    track = EventTrack(RULE)
    turns = play(track, [(200, 1.0)] * 10 + [(200, 0.3 if number % 2 else 1.0) for number in range(100)])
    assert [turn.phase for turn in turns] == [Phase.ENTER]


def test_an_event_at_five_looks_a_second_is_told_within_a_second_and_a_half() -> None:
    (turn,) = play(EventTrack(RULE), [(200, 0.95)] * 8)
    assert turn.at_ns - turn.began_at_ns <= 1.5 * S
    assert turn.label == "0.95"


@given(looks)
def test_a_lost_camera_closes_what_is_open_once(steps: list[tuple[int, float]]) -> None:
    track = EventTrack(RULE)
    play(track, steps)
    was_open = track.is_open
    turn = track.lose(10**15, "camera failed")
    assert (turn is not None) == was_open
    if turn:
        assert (turn.phase, turn.cause) == (Phase.CLEAR, "camera failed")
    assert track.lose(10**15, "again") is None
    assert not track.insists


@given(looks, st.integers(1, 10**6), looks)
def test_time_that_goes_back_only_moves_the_spans(
    before: list[tuple[int, float]], back_s: int, after: list[tuple[int, float]]
) -> None:
    """A clock that is set back neither opens nor closes anything by itself, nor holds anything up."""
    assume(before and after)
    track, other = EventTrack(RULE), EventTrack(RULE)
    play(track, before)
    play(other, before)
    end_ns = sum(gap for gap, _ in before) * 1_000_000
    track.look(end_ns - back_s * S, before[-1][1], "")
    other.look(end_ns, before[-1][1], "")
    ours = play(track, after, begin_ns=end_ns - back_s * S)
    theirs = play(other, after, begin_ns=end_ns)
    assert [turn.phase for turn in ours] == [turn.phase for turn in theirs]


@given(st.lists(levels, min_size=INSIST_LOOKS + 5, max_size=60))
def test_insisting_ends_by_itself_and_only_where_undecided(values: list[float]) -> None:
    track = EventTrack(RULE)
    in_a_row = 0
    for number, level in enumerate(values):
        turn = track.look(number * S // 5, level)
        if track.insists:
            in_a_row += 1
            assert turn is None or level != 0
            assert level >= RULE.enter_level if not track.is_open else level < RULE.clear_level
        else:
            in_a_row = 0
        assert in_a_row <= INSIST_LOOKS + 1


def test_a_single_change_in_a_still_picture_is_looked_at_until_it_is_decided() -> None:
    track = EventTrack(RULE)
    track.look(0, 0.0)
    looks_needed, at_ns = 1, 10 * S
    turn = track.look(at_ns, 1.0)
    while turn is None and track.insists:
        at_ns += S // 5
        looks_needed += 1
        turn = track.look(at_ns, 1.0)
    assert turn is not None
    assert turn.phase is Phase.ENTER
    assert looks_needed <= 8
