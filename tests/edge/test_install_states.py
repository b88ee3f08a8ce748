"""How a release proves itself on a gateway: self-test, shadow, probation, and every way back."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import pytest

from common.errors import EnvironmentFault
from common.golden import Golden, decode_golden, encode_golden
from common.manifest import SHARED, Layer, Manifest, Scenario, release_id
from common.messages import Desired
from edge.settings import InstallSettings
from edge.tally import Pair, Tally

Depot = Gateway = Any  # of conftest.py
StartGateway = Callable[..., Gateway]
RULES = InstallSettings()


@pytest.fixture
def second(gateway: Gateway, depot: Depot) -> tuple[Manifest, Desired]:
    """Release 1 is committed; release 2 exists."""
    gateway.install(depot, depot.release(1)[1])
    release: tuple[Manifest, Desired] = depot.release(2, seed=1)
    return release


def to_shadow(gateway: Gateway, depot: Depot, desired: Desired) -> None:
    gateway.installer.on_desired(desired)
    gateway.run(depot)


def to_probation(gateway: Gateway, depot: Desired, desired: Desired) -> None:
    to_shadow(gateway, depot, desired)
    gateway.stage.look(RULES.shadow_frames)
    gateway.installer.step()


def test_in_shadow_the_old_release_runs_and_the_new_one_looks_beside_it(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    manifest, desired = second
    to_shadow(gateway, depot, desired)
    assert gateway.runs.startswith("r1-")
    assert gateway.stage.beside.release_id == release_id(manifest)
    gateway.stage.look(RULES.shadow_frames - 1)
    gateway.installer.step()
    assert gateway.phases[release_id(manifest)] == "shadow"
    gateway.stage.look(1)
    gateway.installer.step()
    assert gateway.runs == release_id(manifest)
    assert gateway.stage.on_trial
    assert gateway.stage.beside.release_id.startswith("r1-")
    assert gateway.phases == {release_id(manifest): "probation"}
    gateway.stage.look(RULES.probation_frames)
    gateway.installer.step()
    assert gateway.phases == {release_id(manifest): "committed"}
    assert gateway.stage.beside is None


def test_a_gateway_without_a_live_camera_installs_by_time(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    manifest, desired = second
    to_shadow(gateway, depot, desired)
    for wait_s in (RULES.shadow_s, RULES.probation_s):
        gateway.clock.now_s += wait_s
        gateway.installer.step()
    assert gateway.installer.outcome == f"committed {release_id(manifest)}"


@pytest.mark.parametrize(
    ("seen", "reason"),
    [
        ({"deaths": 1}, "worker process died"),
        ({"beside_stuck_s": 10.0}, "has not ended"),
        ({"failed": "a worker cannot load it: no memory"}, "no memory"),
    ],
)
def test_what_fails_in_shadow_never_runs(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], seen: dict[str, object], reason: str
) -> None:
    manifest, desired = second
    to_shadow(gateway, depot, desired)
    gateway.stage.look(5, **seen)
    gateway.installer.step()
    assert gateway.runs.startswith("r1-")
    assert gateway.stage.beside is None
    assert reason in gateway.installer.outcome
    assert gateway.phases[release_id(manifest)] == "rolled-back"


def test_one_look_without_an_answer_in_shadow_is_enough(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    manifest, desired = second
    to_shadow(gateway, depot, desired)
    name = release_id(manifest)
    gateway.stage.look(5, tallies={name: Tally(frames=4, errors=1)})
    gateway.installer.step()
    assert gateway.runs.startswith("r1-")
    assert "1 of 5 looks" in gateway.installer.outcome


FAULTS: dict[str, tuple[Callable[[str], dict[str, object]], str]] = {
    "a look failed": (lambda _: {"failed": "a look failed: no kernel"}, "no kernel"),
    "numbers that are none": (lambda name: {"tallies": {name: Tally(frames=9, errors=1)}}, "gave no numbers"),
    "slow": (lambda name: {"tallies": {name: Tally(frames=20, took_ms=[80.0] * 20)}}, "8.0 times that of r1-"),
    "hangs": (lambda _: {"stuck_s": RULES.hang_s + 0.1}, "has not ended"),
    "a worker dies": (lambda _: {"deaths": 1}, "died under it"),
    "flags more": (
        lambda name: {
            "tallies": {name: Tally(frames=40, flagged=30)},
            "pair": Pair(compared=40, disagreed=30, flagged_running=30, flagged_beside=2),
        },
        "flag rate is +70 points",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_fails_on_probation_goes_back_and_is_remembered(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], start_gateway: StartGateway, fault: str
) -> None:
    manifest, desired = second
    name = release_id(manifest)
    make, reason = FAULTS[fault]
    to_probation(gateway, depot, desired)
    assert gateway.runs == name
    gateway.stage.look(0, **make(name))
    gateway.installer.step()
    assert gateway.runs.startswith("r1-")
    assert reason in gateway.installer.outcome
    (health,) = [item for item in gateway.installer.health() if item.release_id == name]
    assert (health.phase, reason in health.reason) == ("rolled-back", True)

    again = start_gateway()
    assert again.installer.boot().release_id.startswith("r1-")
    again.installer.on_desired(desired)
    assert "was rolled back here" in again.installer.outcome
    assert again.asked == []
    third, desired = depot.release(3, seed=2)
    again.install(depot, desired)
    assert again.installer.outcome == f"committed {release_id(third)}"


def test_what_the_two_said_of_the_same_frames_is_told_after_the_commit_too(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    manifest, desired = second
    to_shadow(gateway, depot, desired)
    # in shadow the old release runs and names what the new one, beside it, names otherwise
    shadow = Pair(compared=30, disagreed=9, moves_running={"belt/tear": (10, 9)}, moves_beside={"belt/tear": (1, 0)})
    gateway.stage.look(RULES.shadow_frames, pair=shadow)
    gateway.installer.step()
    probation = Pair(compared=50, disagreed=4, moves_running={"belt/mud": (4, 4)}, moves_beside={"belt/tear": (5, 4)})
    gateway.stage.look(RULES.probation_frames, pair=probation)
    gateway.installer.step()
    (health,) = gateway.installer.health()
    assert (health.release_id, health.phase) == (release_id(manifest), "committed")
    assert (health.compared, health.disagreed, health.moved) == (80, 13, {"belt/tear": (15, 13)})


def test_a_scene_that_changes_for_both_releases_is_no_reason_to_go_back(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    manifest, desired = second
    to_probation(gateway, depot, desired)
    pair = Pair(compared=40, flagged_running=37, flagged_beside=37)  # both now flag nearly every frame
    gateway.stage.look(0, tallies={release_id(manifest): Tally(frames=60, flagged=55)}, pair=pair)
    gateway.installer.step()
    assert gateway.installer.outcome.startswith("committed")


def test_a_look_that_hangs_is_taken_over_by_another_thread(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    to_probation(gateway, depot, second[1])
    gateway.stage.look(3, stuck_s=RULES.hang_s + 1)
    gateway.installer.step()
    assert gateway.stage.rescued


def test_a_release_that_brings_the_agent_down_again_and_again_is_left(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], start_gateway: StartGateway
) -> None:
    manifest, desired = second
    to_probation(gateway, depot, desired)
    for _ in range(RULES.crashes_max):  # killed, and started again
        again = start_gateway()
        assert again.installer.boot().release_id == release_id(manifest)
        assert again.stage.beside.release_id.startswith("r1-")
    again = start_gateway()
    assert again.installer.boot().release_id.startswith("r1-")
    assert "came to an end" in again.installer.outcome
    again.installer.on_desired(desired)
    assert "was rolled back here" in again.installer.outcome


def test_a_power_cut_on_probation_does_not_end_it(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], start_gateway: StartGateway
) -> None:
    manifest, desired = second
    to_probation(gateway, depot, desired)
    again = start_gateway()
    again.installer.boot()
    (health,) = again.installer.health()
    assert (health.phase, health.restarts) == ("probation", 1)
    again.stage.look(RULES.probation_frames)
    again.installer.step()
    assert again.installer.outcome == f"committed {release_id(manifest)}"


def test_orderly_stops_are_no_crashes(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], start_gateway: StartGateway
) -> None:
    manifest, desired = second
    to_probation(gateway, depot, desired)
    for _ in range(3 * RULES.crashes_max):
        again = start_gateway()
        assert again.installer.boot().release_id == release_id(manifest)
        again.installer.stop()


def test_starts_long_apart_are_no_crash_loop(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], start_gateway: StartGateway
) -> None:
    manifest, desired = second
    to_probation(gateway, depot, desired)
    for day in range(3 * RULES.crashes_max):
        again = start_gateway()
        again.clock.now_ns += day * 24 * 3600 * 10**9
        assert again.installer.boot().release_id == release_id(manifest)


def test_a_release_that_brings_the_agent_down_while_it_is_tried_is_left(
    depot: Depot, second: tuple[Manifest, Desired], start_gateway: StartGateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    def crash(*_: object) -> None:
        raise KeyboardInterrupt  # nothing below catches it, as nothing catches a kill

    for _ in range(RULES.crashes_max):
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("edge.loading.self_test", crash)
            again = start_gateway()
            again.installer.boot()
            again.installer.on_desired(second[1])
            again.run(depot)
    again = start_gateway()
    again.installer.boot()
    again.installer.on_desired(second[1])
    assert again.runs.startswith("r1-")
    assert "while it was tried" in again.installer.outcome
    assert again.phases[release_id(second[0])] == "rolled-back"


def test_what_brings_the_agent_down_while_it_is_fetched_is_left_for_a_while(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], start_gateway: StartGateway
) -> None:
    manifest, desired = second
    for _ in range(RULES.crashes_max):
        box = start_gateway()
        box.installer.boot()
        box.installer.on_desired(desired)
        assert box.asked, "and now the power is cut"
    box = start_gateway()
    box.installer.boot()
    for _ in range(3):
        box.installer.on_desired(desired)
        assert box.asked == []
    assert "while it was fetched" in box.installer.outcome
    assert box.runs.startswith("r1-")
    box.clock.now_s += RULES.crash_window_s
    box.install(depot, desired)
    assert box.runs == release_id(manifest)


def test_an_orderly_stop_while_fetching_is_no_crash(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], start_gateway: StartGateway
) -> None:
    for _ in range(RULES.crashes_max + 2):
        box = start_gateway()
        box.installer.boot()
        box.installer.on_desired(second[1])
        assert box.asked
        box.installer.stop()


def test_a_fetch_that_ends_is_not_counted_against_the_next(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    for _ in range(RULES.crashes_max + 2):
        gateway.asked.clear()
        gateway.installer.on_desired(second[1])
        fetch = gateway.asked.pop(0)
        gateway.installer.on_layer(msgspec.structs.replace(depot.answer(fetch), total_bytes=0))  # it has none just now
    assert "while it was fetched" not in gateway.installer.outcome


def test_without_room_on_the_disk_nothing_is_fetched_and_it_is_said_how_much_is_missing(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=16_000_000))
        gateway.installer.on_desired(second[1])
    assert gateway.asked == []
    assert "needs 17 MB" in gateway.installer.outcome
    assert "16 MB are free" in gateway.installer.outcome
    gateway.install(depot, second[1])  # somebody has made room, and the centre repeats itself
    assert gateway.installer.outcome == f"committed {release_id(second[0])}"


def test_a_layer_that_lies_on_the_disk_whole_but_not_yet_named_is_taken(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    layer = second[0].scenarios[0].heads[SHARED]
    gateway.installer.layer_path(f"{layer.hash}.part").write_bytes(depot.layers[layer.hash])
    gateway.install(depot, second[1])
    assert gateway.installer.outcome == f"committed {release_id(second[0])}"


def test_what_an_earlier_attempt_left_torn_is_fetched_from_the_beginning(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    layer = second[0].scenarios[0].heads[SHARED]
    gateway.installer.layer_path(f"{layer.hash}.part").write_bytes(bytes(500))  # a power cut: length without content
    gateway.install(depot, second[1])
    assert gateway.installer.outcome == f"committed {release_id(second[0])}"
    assert gateway.installer.layer_path(layer.hash).read_bytes() == depot.layers[layer.hash]


def test_a_layer_that_has_rotted_on_the_disk_is_fetched_again(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    layer = second[0].scenarios[0].heads[SHARED]
    gateway.installer.layer_path(layer.hash).write_bytes(bytes(layer.size_bytes))
    gateway.installer.on_desired(second[1])
    assert "does not match its hash" in gateway.installer.outcome
    gateway.install(depot, second[1])
    assert gateway.installer.outcome == f"committed {release_id(second[0])}"


def test_a_disk_that_refuses_the_commit_is_asked_again(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise EnvironmentFault("The disk is full")

    to_probation(gateway, depot, second[1])
    with monkeypatch.context() as patch:
        patch.setattr("edge.slots.write_atomically", full)
        gateway.stage.look(RULES.probation_frames)
        gateway.installer.step()
        assert gateway.phases == {release_id(second[0]): "probation"}
    gateway.installer.step()
    assert gateway.phases == {release_id(second[0]): "committed"}


def test_a_roll_back_that_the_disk_refuses_holds_in_memory_and_is_written_later(
    gateway: Gateway,
    depot: Depot,
    second: tuple[Manifest, Desired],
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise EnvironmentFault("The disk is full")

    to_probation(gateway, depot, second[1])
    with monkeypatch.context() as patch:
        patch.setattr("edge.slots.write_atomically", full)
        gateway.stage.look(1, deaths=1)
        gateway.installer.step()
        assert gateway.runs.startswith("r1-")
    gateway.installer.step()
    assert start_gateway().installer.boot().release_id.startswith("r1-")


def test_the_centre_that_changes_its_mind_ends_what_is_on_its_way(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    to_shadow(gateway, depot, second[1])
    gateway.installer.on_desired(depot.release(1)[1])
    assert gateway.stage.beside is None
    assert len(gateway.phases) == 1


def test_a_newer_release_waits_for_the_end_of_a_probation(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    third, desired = depot.release(3, seed=2)
    to_probation(gateway, depot, second[1])
    to_shadow(gateway, depot, desired)
    assert gateway.phases == {release_id(second[0]): "probation", release_id(third): "fetching"}
    gateway.proves_itself()
    gateway.proves_itself()
    assert gateway.installer.outcome == f"committed {release_id(third)}"


def test_a_stranger_cannot_end_what_is_on_its_way(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]
) -> None:
    to_shadow(gateway, depot, second[1])
    gateway.installer.on_desired(Desired(manifest=second[1].manifest + b"!", signature=second[1].signature))
    assert "not signed" in gateway.installer.outcome
    gateway.proves_itself()
    assert gateway.runs == release_id(second[0])


def test_the_first_release_has_nothing_to_go_back_to(gateway: Gateway, depot: Depot) -> None:
    manifest, desired = depot.release(1)
    to_shadow(gateway, depot, desired)
    assert gateway.runs == release_id(manifest)
    gateway.stage.look(1, deaths=1)
    gateway.installer.step()
    assert gateway.runs == ""
    second, desired = depot.release(2, seed=1)
    gateway.install(depot, desired)
    assert gateway.runs == release_id(second)


# The golden layer


@pytest.fixture
def golden(depot: Depot, tmp_path: Path) -> Callable[[Callable[[Golden], Golden]], tuple[Manifest, Desired]]:
    """Release 2 with a golden layer that the test may spoil."""
    (tmp_path / "centre").mkdir()

    def make(spoil: Callable[[Golden], Golden]) -> tuple[Manifest, Desired]:
        plain, _ = depot.release(2, seed=1)
        made = depot.golden_for(plain, tmp_path / "centre")
        layer = depot.put(encode_golden(spoil(decode_golden(depot.layers[made.hash]))))
        release: tuple[Manifest, Desired] = depot.release(2, seed=1, golden=layer)
        return release

    return make


def off_by(amount: float) -> Callable[[Golden], Golden]:
    def spoil(golden: Golden) -> Golden:
        heads = tuple(
            msgspec.structs.replace(
                head, probabilities=(np.frombuffer(head.probabilities, "<f4") + np.float32(amount)).tobytes()
            )
            for head in golden.heads
        )
        return msgspec.structs.replace(golden, heads=heads)

    return spoil


def other_backbone(golden: Golden) -> Golden:
    turned = {name: np.frombuffer(data, "<f4")[::-1].tobytes() for name, data in golden.embeddings.items()}
    return msgspec.structs.replace(golden, embeddings=turned)


Goldens = Callable[[Callable[[Golden], Golden]], tuple[Manifest, Desired]]


def test_what_answers_as_at_the_centre_goes_on(gateway: Gateway, depot: Depot, golden: Goldens) -> None:
    gateway.install(depot, depot.release(1)[1])
    manifest, desired = golden(off_by(0.9 * RULES.tolerance))
    gateway.install(depot, desired)
    assert gateway.installer.outcome == f"committed {release_id(manifest)}"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(off_by(1.5 * RULES.tolerance), "scenario 'belt'"), (other_backbone, "the embedding")],
)
def test_what_answers_otherwise_here_is_refused_with_how_far_it_is_off(
    gateway: Gateway, depot: Depot, golden: Goldens, spoil: Callable[[Golden], Golden], reason: str
) -> None:
    gateway.install(depot, depot.release(1)[1])
    _, desired = golden(spoil)
    to_shadow(gateway, depot, desired)
    assert gateway.runs.startswith("r1-")
    assert f"{reason} of release r2-" in gateway.installer.outcome
    assert "off what it answers at the centre" in gateway.installer.outcome


def test_a_golden_layer_that_is_none_is_refused(gateway: Gateway, depot: Depot) -> None:
    gateway.install(depot, depot.release(1)[1])
    gateway.install(depot, depot.release(2, seed=1, golden=depot.put(b"gold"))[1])
    assert "not a golden layer" in gateway.installer.outcome


def test_a_release_that_is_too_slow_here_is_refused_before_it_sees_a_frame(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.selftest._pass_s", lambda model: 0.05 if model.release_id.startswith("r1-") else 0.25)
    to_shadow(gateway, depot, second[1])
    assert "takes 250 ms here, 5.0 times that of r1-" in gateway.installer.outcome
    assert gateway.stage.beside is None


# Layers upgraded on their own


def test_another_backbone_and_its_heads_come_and_swap_as_one(
    gateway: Gateway, depot: Depot, tiny_backbone: Callable[..., bytes]
) -> None:
    gateway.install(depot, depot.release(1)[1])
    depot.backbone = depot.put(tiny_backbone(seed=5))
    manifest, desired = depot.release(2, seed=1)
    to_shadow(gateway, depot, desired)
    assert gateway.stage.runs.backbone.hash != manifest.backbone.hash
    gateway.proves_itself()
    assert gateway.stage.runs.backbone.hash == manifest.backbone.hash
    assert gateway.installer.outcome == f"committed {release_id(manifest)}"


def test_one_scenario_is_rolled_back_alone(gateway: Gateway, depot: Depot) -> None:
    def scenario(name: str, seed: int) -> Scenario:
        head: Layer = depot.put(depot.make_head(depot.backbone.hash, scenario=name, seed=seed))
        return Scenario(name, ("normal", "tear"), "normal", {SHARED: head})

    belt, helmet = scenario("belt", 1), scenario("helmet", 1)
    gateway.install(depot, depot.release(1, scenarios=(belt, helmet))[1])
    gateway.install(depot, depot.release(2, scenarios=(scenario("belt", 2), scenario("helmet", 2)))[1])
    newer = gateway.stage.runs.manifest.scenarios[1]
    before = gateway.installer.bytes_down
    manifest, desired = depot.release(3, scenarios=(belt, newer))
    gateway.install(depot, desired)
    assert gateway.installer.outcome == f"committed {release_id(manifest)}"
    assert [item.heads[SHARED] for item in gateway.stage.runs.manifest.scenarios] == [
        belt.heads[SHARED],
        newer.heads[SHARED],
    ]
    assert gateway.installer.bytes_down == before, "both heads were here"


# Disks that come and go


def test_a_slot_that_cannot_be_read_at_the_start_is_tried_again(
    gateway: Gateway,
    depot: Depot,
    second: tuple[Manifest, Desired],
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gateway.install(depot, second[1])
    again = start_gateway()

    def unreadable(self: Path) -> bytes:
        raise OSError(5, "Input/output error", str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", unreadable)
        assert again.installer.boot() is None
        again.installer.step()
        assert again.runs == ""
    again.clock.now_s += 1.0
    again.installer.step()
    assert again.runs == release_id(second[0])
    assert again.phases == {release_id(second[0]): "committed"}


def test_a_start_that_cannot_be_counted_is_made_on_the_proven_release(
    gateway: Gateway,
    depot: Depot,
    second: tuple[Manifest, Desired],
    start_gateway: StartGateway,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise EnvironmentFault("The disk is full")

    to_probation(gateway, depot, second[1])
    again = start_gateway()
    with monkeypatch.context() as patch:
        patch.setattr("edge.slots.write_atomically", full)
        assert again.installer.boot().release_id.startswith("r1-")
    again.install(depot, second[1])
    assert again.installer.outcome == f"committed {release_id(second[0])}"


def test_a_release_whose_roll_back_is_not_on_disk_yet_is_not_installed_again(
    gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise EnvironmentFault("The disk is full")

    to_probation(gateway, depot, second[1])
    monkeypatch.setattr("edge.slots.write_atomically", full)
    gateway.stage.look(1, deaths=1)
    gateway.installer.step()
    gateway.installer.on_desired(second[1])
    assert "was rolled back here" in gateway.installer.outcome


def test_after_the_stop_nothing_is_installed(gateway: Gateway, depot: Depot, second: tuple[Manifest, Desired]) -> None:
    gateway.installer.stop()
    gateway.install(depot, second[1])
    assert gateway.runs.startswith("r1-")
