"""Who gives way when the box is too small, and how it comes back."""

from hypothesis import given
from hypothesis import strategies as st

from edge.rationing import CALM_PERIODS, STEPS, Rationing


def starve(rationing: Rationing, periods: int) -> None:
    for _ in range(periods):
        rationing.adjust(looked=50, dropped=50, busy=1.0)


def test_the_least_important_give_way_first() -> None:
    rationing = Rationing({"gate": 0, "yard": 0, "belt": 10})
    starve(rationing, 2)
    assert [rationing.share(name) for name in ("gate", "yard", "belt")] == [0.25, 0.25, 1.0]
    starve(rationing, 2)
    assert [rationing.share(name) for name in ("gate", "yard", "belt")] == [0.125, 0.125, 0.5]
    starve(rationing, 50)
    assert rationing.share("belt") == 0.125, "and never nothing"


def test_a_step_comes_back_after_a_calm_while_only() -> None:
    rationing = Rationing({"gate": 0})
    starve(rationing, 1)
    for _ in range(CALM_PERIODS - 1):
        assert not rationing.adjust(looked=50, dropped=0, busy=0.3)
    assert not rationing.adjust(looked=50, dropped=0, busy=0.9), "no room for more"
    for _ in range(CALM_PERIODS - 1):
        assert not rationing.adjust(looked=50, dropped=1, busy=0.3), "a hiccup is no sign"
    assert rationing.adjust(looked=50, dropped=0, busy=0.3)
    assert rationing.share("gate") == 1.0


def test_more_cpu_than_the_budget_is_a_sign_too_and_nothing_comes_back_close_to_it() -> None:
    rationing = Rationing({"gate": 0})
    assert rationing.adjust(looked=50, dropped=0, busy=0.1, load=1.1)
    for _ in range(2 * CALM_PERIODS):
        assert not rationing.adjust(looked=50, dropped=0, busy=0.1, load=0.9)
    for _ in range(CALM_PERIODS - 1):
        assert not rationing.adjust(looked=50, dropped=0, busy=0.1, load=0.4)
    assert rationing.adjust(looked=50, dropped=0, busy=0.1, load=0.4)
    assert rationing.share("gate") == 1.0


PERIODS = st.lists(st.tuples(st.integers(0, 100), st.integers(0, 100), st.floats(0, 1)), max_size=200)


@given(st.dictionaries(st.text("abc", min_size=1), st.integers(-5, 5), min_size=1), PERIODS)
def test_a_more_important_camera_never_gets_less(
    priorities: dict[str, int], periods: list[tuple[int, int, float]]
) -> None:
    rationing = Rationing(priorities)
    for looked, dropped, busy in periods:
        before = rationing.level
        changed = rationing.adjust(looked=looked, dropped=dropped, busy=busy)
        assert changed == (rationing.level != before)
        assert abs(rationing.level - before) <= 1
        shares = [rationing.share(name) for name in sorted(priorities, key=priorities.__getitem__)]
        assert shares == sorted(shares)
        assert 0.5**STEPS <= shares[0] <= shares[-1] <= 1.0
