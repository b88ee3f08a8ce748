"""Releases on the gateway: what is fetched, what is refused, and what a crash leaves."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from common.delta import make_delta
from common.manifest import SHARED, Layer, Manifest, Scenario, encode_manifest, release_id
from common.messages import Desired
from simulations.single_key import Signer

Depot = Gateway = Any  # of conftest.py
StartGateway = Callable[[], Gateway]
NOW_NS = 1_790_000_000 * 10**9


def test_a_new_gateway_fetches_verifies_and_runs_the_release(gateway: Gateway, depot: Depot) -> None:
    manifest, desired = depot.release(1)
    assert gateway.installer.boot() is None
    gateway.install(depot, desired)
    assert [model.release_id for model in gateway.models] == [release_id(manifest)]
    view = gateway.models[0].look(np.zeros((20, 30, 3), np.uint8))
    assert view.predictions[0].classes == ("normal", "tear")
    assert gateway.installer.outcome == f"committed {release_id(manifest)}"


def test_a_head_only_release_fetches_the_head_alone(gateway: Gateway, depot: Depot) -> None:
    gateway.install(depot, depot.release(1)[1])
    before = gateway.installer.bytes_down
    second, desired = depot.release(2, seed=1)
    gateway.install(depot, desired)
    assert gateway.models[-1].release_id == release_id(second)
    assert gateway.installer.bytes_down - before == second.scenarios[0].heads[SHARED].size_bytes


def test_after_a_restart_the_last_release_runs_before_any_network(
    gateway: Gateway, depot: Depot, start_gateway: StartGateway
) -> None:
    manifest, desired = depot.release(1)
    gateway.install(depot, desired)
    again = start_gateway()
    model = again.installer.boot()
    assert model is not None
    assert model.release_id == release_id(manifest)


def test_a_broken_current_release_falls_back_to_the_one_before(
    gateway: Gateway, depot: Depot, start_gateway: StartGateway
) -> None:
    first, desired = depot.release(1)
    gateway.install(depot, desired)
    second, desired = depot.release(2, seed=1)
    gateway.install(depot, desired)
    gateway.installer.layer_path(second.scenarios[0].heads[SHARED].hash).write_bytes(b"torn")
    again = start_gateway()
    model = again.installer.boot()
    assert model is not None
    assert model.release_id == release_id(first)
    assert "torn" not in again.installer.outcome
    assert "current" in again.installer.outcome


def test_a_download_cut_in_the_middle_goes_on_where_it_stopped(
    gateway: Gateway, depot: Depot, start_gateway: StartGateway
) -> None:
    _, desired = depot.release(1)
    gateway.installer.on_desired(desired)
    gateway.run(depot, steps=3)
    again = start_gateway()
    again.installer.on_desired(desired)
    assert again.asked[0].offset == 3000
    again.run(depot)
    assert len(again.models) == 1


def test_while_the_link_is_down_nothing_is_lost_and_it_asks_again(gateway: Gateway, depot: Depot) -> None:
    gateway.online = False
    gateway.installer.on_desired(depot.release(1)[1])
    assert gateway.models == []
    gateway.online = True
    gateway.clock.now_s += 6
    gateway.installer.step()
    gateway.run(depot)
    assert len(gateway.models) == 1


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"expires_at_ns": NOW_NS - 1}, "expired"),
        ({"minimum_agent": "99.0.0"}, "needs agent 99.0.0"),
        ({"sequence": 1}, "older than the running"),
    ],
)
def test_a_manifest_that_must_not_run_is_refused_with_its_reason(
    gateway: Gateway, depot: Depot, changes: dict[str, object], reason: str
) -> None:
    gateway.install(depot, depot.release(5)[1])
    values = {"sequence": 6, "seed": 1, **changes}
    gateway.installer.on_desired(depot.release(**values)[1])  # type: ignore[arg-type]
    gateway.run(depot)
    assert len(gateway.models) == 1
    assert reason in gateway.installer.outcome


def test_a_manifest_signed_by_another_key_is_refused(gateway: Gateway, depot: Depot, tmp_path: Path) -> None:
    manifest, _ = depot.release(1)
    data = encode_manifest(manifest)
    stranger = Signer.open(tmp_path / "other.key")
    gateway.installer.on_desired(Desired(manifest=data, signature=stranger.sign(data)))
    assert gateway.asked == []
    assert "not signed by the key" in gateway.installer.outcome


def test_a_clock_at_1970_does_not_revive_an_expired_release(gateway: Gateway, depot: Depot) -> None:
    gateway.clock.now_ns = 0
    gateway.installer.on_desired(depot.release(1, expires_at_ns=1_700_000_000 * 10**9)[1])
    assert "expired" in gateway.installer.outcome


def test_bytes_that_do_not_match_the_hash_are_thrown_away(gateway: Gateway, depot: Depot) -> None:
    _, desired = depot.release(1)
    name = depot.backbone.hash
    depot.layers[name] = depot.layers[name][:-1] + bytes([depot.layers[name][-1] ^ 1])
    gateway.install(depot, desired)
    assert gateway.models == []
    assert "does not match its hash" in gateway.installer.outcome
    assert not gateway.installer.layer_path(name).exists()


def test_a_head_for_another_backbone_is_refused_and_the_old_release_goes_on(
    gateway: Gateway, depot: Depot, tiny_head: Callable[..., bytes]
) -> None:
    gateway.install(depot, depot.release(1)[1])
    foreign = depot.put(tiny_head("f" * 64))
    scenario = Scenario("belt", ("normal", "tear"), "normal", {SHARED: foreign})
    gateway.install(depot, depot.release(2, scenarios=(scenario,))[1])
    assert len(gateway.models) == 1
    assert "backbone" in gateway.installer.outcome


def test_a_layer_that_is_no_onnx_is_refused_by_name(gateway: Gateway, depot: Depot) -> None:
    garbage = depot.put(b"this is no model")
    scenario = Scenario("belt", ("normal", "tear"), "normal", {SHARED: garbage})
    gateway.install(depot, depot.release(1, scenarios=(scenario,))[1])
    assert gateway.models == []
    assert garbage.hash[:12] in gateway.installer.outcome
    assert "ONNX" in gateway.installer.outcome


@pytest.fixture
def upgrade(gateway: Gateway, depot: Depot) -> tuple[Manifest, Desired, Layer]:
    """A gateway on release 1, a release 2 with another head, and a delta between the heads."""
    first, desired = depot.release(1)
    gateway.install(depot, desired)
    second, desired = depot.release(2, seed=1)
    old, new = (release.scenarios[0].heads[SHARED] for release in (first, second))
    depot.deltas[old.hash, new.hash] = make_delta(depot.layers[old.hash], depot.layers[new.hash], {}, {})
    return second, desired, new


def test_a_layer_comes_as_a_delta_of_one_that_is_here(
    gateway: Gateway, depot: Depot, upgrade: tuple[Manifest, Desired, Layer]
) -> None:
    manifest, desired, layer = upgrade
    before = gateway.installer.bytes_down
    gateway.install(depot, desired)
    assert gateway.models[-1].release_id == release_id(manifest)
    assert gateway.installer.layer_path(layer.hash).read_bytes() == depot.layers[layer.hash]
    assert gateway.installer.bytes_down - before == sum(map(len, depot.deltas.values())) < layer.size_bytes


@pytest.mark.parametrize("damage", ["of another base", "flipped", "garbage"])
def test_a_delta_that_does_not_work_out_is_replaced_by_the_whole_file(
    gateway: Gateway, depot: Depot, upgrade: tuple[Manifest, Desired, Layer], damage: str
) -> None:
    manifest, desired, layer = upgrade
    for pair, delta in depot.deltas.items():
        backbone = depot.layers[depot.backbone.hash]
        depot.deltas[pair] = {
            "of another base": make_delta(backbone, depot.layers[layer.hash], {}, {}),
            "flipped": delta[:-20] + bytes([delta[-20] ^ 1]) + delta[-19:],
            "garbage": b"no delta at all",
        }[damage]
    gateway.install(depot, desired)
    assert gateway.models[-1].release_id == release_id(manifest)


def test_a_delta_cut_in_the_middle_goes_on_where_it_stopped(
    gateway: Gateway, depot: Depot, upgrade: tuple[Manifest, Desired, Layer], start_gateway: StartGateway
) -> None:
    manifest, desired, _ = upgrade
    gateway.installer.on_desired(desired)
    gateway.installer.on_layer(depot.answer(gateway.asked.pop(0), length=100))
    again = start_gateway()
    again.installer.boot()
    again.installer.on_desired(desired)
    assert again.asked[0].offset == 100
    again.run(depot)
    again.proves_itself()
    assert again.models[-1].release_id == release_id(manifest)


def test_a_delta_that_the_centre_no_longer_has_does_not_block_the_release(
    gateway: Gateway, depot: Depot, upgrade: tuple[Manifest, Desired, Layer]
) -> None:
    manifest, desired, _ = upgrade
    gateway.installer.on_desired(desired)
    gateway.installer.on_layer(depot.answer(gateway.asked.pop(0), length=100))
    depot.deltas.clear()
    for _ in range(3):
        gateway.run(depot)
        gateway.clock.now_s += 6
        gateway.installer.step()
    gateway.run(depot)
    assert gateway.models[-1].release_id == release_id(manifest)


def test_a_delta_of_something_outside_the_layers_is_refused(
    gateway: Gateway, depot: Depot, upgrade: tuple[Manifest, Desired, Layer]
) -> None:
    _, desired, layer = upgrade
    gateway.installer.on_desired(desired)
    part = depot.answer(gateway.asked.pop(0))
    gateway.installer.on_layer(msgspec.structs.replace(part, base="../current"))
    assert len(gateway.models) == 1
    assert "which is not here" in gateway.installer.outcome
    assert not gateway.installer.layer_path(layer.hash).exists()
