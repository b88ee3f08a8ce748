"""A release reaches a whole small fleet by itself, and those on which it fails are named."""

import pytest

from simulations.bench.rollout import Size, roll_out
from simulations.mosquitto import find_mosquitto


@pytest.mark.skipif(find_mosquitto() is None, reason="mosquitto is not installed")
def test_a_fleet_converges_without_a_person_and_names_what_failed() -> None:
    found = roll_out(Size(gateways=50, heartbeat_s=0.5, connects_per_s=200.0, offline_s=2.0, limit_s=60.0))
    assert found["converged"]
    assert found["running"] == found["able"] == 49
    assert (found["failed"], found["failed_named"], found["named_wrongly"]) == (1, 1, 0)
    assert found["refused_by_trust"] == 0
    assert found["delta_bytes"] > 0
    assert next(iter(found["wave_began_s"])) == 0, "a canary first"
