"""A release reaches a whole small fleet by itself, and those on which it fails are named."""

import pytest

from simulations.bench.rollout import Size, roll_out
from simulations.mosquitto import find_mosquitto


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_a_fleet_converges_without_a_person_and_names_what_failed() -> None:
    found = roll_out(Size(gateways=30, heartbeat_s=0.5, connects_per_s=200.0, offline_s=2.0, limit_s=60.0))
    assert found["converged"]
    assert found["running"] == found["able"] == 29
    assert (found["failed"], found["failed_named"], found["named_wrongly"]) == (1, 1, 0)
    assert found["known_offline_at_start"] == found["offline_at_start"] == 3
    assert found["bytes_of_copies"] == 30 * found["head_bytes"], "also those that went back fetched it"
    assert found["bytes_received"] == sum(found["bytes_received_by_kind"].values())
    assert found["refused_by_trust"] == 0
    published, received = found["bytes_published_by_kind"]["release"], found["bytes_received_by_kind"]["release"]
    assert published < received / 10, "one publish serves all"
    assert found["bytes_ratio_to_copies"] < found["received_ratio_to_copies"] / 5
    assert "layer" not in found["bytes_received_by_kind"]
    assert next(iter(found["wave_began_s"])) == 0, "a canary first"
