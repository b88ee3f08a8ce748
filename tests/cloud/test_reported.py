"""States of the fleet: fresh in memory at once, in the store with the next flush, kept when the disk fails."""

from pathlib import Path

import pytest

from cloud import reported as reported_module
from cloud.reported import OFFLINE_AFTER_S, Reported
from cloud.store import Store
from common.errors import EnvironmentFault, OperatorError
from common.messages import State


class HandClock:
    """A clock that moves by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def wall_ns(self) -> int:
        return round(self.now_s * 1e9)

    def monotonic_s(self) -> float:
        return self.now_s


def state(name: str, at_ns: int = 1, *, online: bool = True) -> State:
    return State(
        gateway_id=name, site_id="north", at_ns=at_ns, agent_version="1", release_id=f"r{at_ns}", online=online
    )


def test_a_state_is_known_at_once_and_written_with_the_flush(store: Store) -> None:
    fleet = Reported(store, HandClock())
    for at_ns in (1, 2):
        fleet.take(state("north-1", at_ns))
    assert (fleet.release_of("north-1"), fleet.release_of("north-2")) == ("r2", "")
    assert store.states() == []
    fleet.flush()
    assert store.states() == [state("north-1", 2)]


def test_who_is_silent_or_left_a_will_is_offline_and_its_last_state_stays(store: Store) -> None:
    clock = HandClock()
    fleet = Reported(store, clock)
    for name in ("b", "a", "c"):
        fleet.take(state(name))
    fleet.take(state("c", 0, online=False))
    assert fleet.online() == ["a", "b"]
    clock.now_s = OFFLINE_AFTER_S - 1
    fleet.take(state("a", 2))
    clock.now_s = OFFLINE_AFTER_S
    assert fleet.online() == ["a"]
    fleet.flush()
    assert store.states() == [state("a", 2), state("b"), state("c", online=False)]


def test_a_restarted_centre_remembers_what_it_had_written(store: Store) -> None:
    first = Reported(store, HandClock())
    first.take(state("north-1", 3))
    first.flush()
    again = Reported(store, HandClock())
    assert (again.release_of("north-1"), again.online()) == ("r3", [])


def test_a_failing_disk_keeps_states_for_the_next_flush(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fleet = Reported(store, HandClock())
    fleet.take(state("north-1"))

    def full(_states: object) -> None:
        raise EnvironmentFault("the disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(store, "put_states", full)
        fleet.flush()
    fleet.take(state("north-2"))
    fleet.flush()
    assert [known.gateway_id for known in store.states()] == ["north-1", "north-2"]


def test_a_fleet_is_written_in_transactions_of_bounded_size(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reported_module, "FLUSH_MAX", 3)
    sizes: list[int] = []
    put = store.put_states
    monkeypatch.setattr(store, "put_states", lambda states: (sizes.append(len(states)), put(states)))
    fleet = Reported(store, HandClock())
    for number in range(7):
        fleet.take(state(f"gw-{number}"))
    fleet.flush()
    assert sizes == [3, 3, 1]
    assert len(store.states()) == 7


def test_names_without_bound_are_refused(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reported_module, "GATEWAYS_MAX", 2)
    fleet = Reported(store, HandClock())
    for name in ("a", "b", "a"):
        fleet.take(state(name))
    with pytest.raises(OperatorError, match="more than 2 gateways"):
        fleet.take(state("c"))
    assert fleet.online() == ["a", "b"]
