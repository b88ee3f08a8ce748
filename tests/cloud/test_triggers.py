"""When a round starts by itself, and when it does not."""

import pytest

from cloud.learning.triggers import HOUR_NS, Past, TriggerRules, find_trigger

NOTHING: frozenset[str] = frozenset()


def rules(labels: int = 0, hours: float = 0.0, drift: int = 0, day: int = 0) -> TriggerRules:
    return TriggerRules(labels, hours, drift, day)


def past(hours_ago: float, *, labels: int = 0, drifting: frozenset[str] = NOTHING, **more: bool) -> Past:
    now_ns = 1_000 * HOUR_NS
    return Past(
        int(now_ns - hours_ago * HOUR_NS), more.get("is_open", False), labels, drifting, more.get("by_trigger", True)
    )


def kind(given: TriggerRules, labels: int = 0, drifting: frozenset[str] = NOTHING, *runs: Past) -> str:
    found = find_trigger(given, 1_000 * HOUR_NS, labels, drifting, runs)
    return found.kind if found else ""


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (kind(rules(), 900, frozenset("ab"), past(99)), ""),
        (kind(rules(labels=50), 49), ""),
        (kind(rules(labels=50), 50), "labels"),
        (kind(rules(labels=50), 120, NOTHING, past(1, labels=80)), ""),
        (kind(rules(labels=50), 130, NOTHING, past(1, labels=80)), "labels"),
        (kind(rules(hours=24), 0, NOTHING), ""),
        (kind(rules(hours=24), 0, NOTHING, past(23)), ""),
        (kind(rules(hours=24), 0, NOTHING, past(25), past(99)), "time"),
        (kind(rules(drift=2), 0, frozenset({"n/a"})), ""),
        (kind(rules(drift=2), 0, frozenset({"n/a", "n/b"})), "drift"),
        (kind(rules(drift=2), 0, frozenset({"n/a", "n/b", "n/c"}), past(1, drifting=frozenset({"n/a", "n/b"}))), ""),
    ],
)
def test_each_trigger_by_its_own_rule(found: str, expected: str) -> None:
    assert found == expected


def test_no_round_starts_while_one_is_open_or_the_day_is_spent() -> None:
    assert kind(rules(labels=1), 9, NOTHING, past(1, is_open=True)) == ""
    two = (past(1, labels=5), past(2))
    assert kind(rules(labels=1, day=2), 9, NOTHING, *two) == ""
    assert kind(rules(labels=1, day=3), 9, NOTHING, *two) == "labels"
    by_hand = (past(1, labels=5, by_trigger=False), past(2))
    assert kind(rules(labels=1, day=2), 9, NOTHING, *by_hand) == "labels"
    assert kind(rules(labels=1, day=2), 9, NOTHING, past(25), past(26)) == "labels"
