"""What a gateway trusts: roles, assignments, time, and what a power cut leaves of it."""

import contextlib
import random
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
import tuf
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from common import metadata
from common.errors import EnvironmentFault, HeadframeError, OperatorError, PeerError, TrustError
from common.manifest import Manifest, encode_manifest
from common.messages import Desired
from common.metadata import STATE, TrustedMetadata
from simulations.bench._forgery import SERVING, Forger, Theft, reaches
from simulations.bench._replays import DAY_NS, mutations
from simulations.bench._yard import BEGIN_NS, GATEWAY, SCENARIOS, Centre, HandClock


@dataclass
class Scene:
    """A centre with two releases, and a gateway that has taken the first."""

    centre: Centre
    folder: Path
    first: Desired
    second: Desired

    def gateway(self, folder: str = "gateway") -> TrustedMetadata:
        return TrustedMetadata(self.folder / folder, self.centre.repository.root(), GATEWAY)

    def copy(self, name: str) -> TrustedMetadata:
        shutil.copytree(self.folder / "gateway", self.folder / name, dirs_exist_ok=True)
        return self.gateway(name)


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    folder = tmp_path_factory.mktemp("trust")
    centre = Centre(folder / "centre", HandClock())
    first = centre.desired(centre.publish(*SCENARIOS))
    made = Scene(centre, folder, first, first)
    made.gateway().check(first, BEGIN_NS)
    made.second = centre.desired(centre.publish("belt"))
    yield made


def refused(gateway: TrustedMetadata, desired: Desired, now_ns: int = BEGIN_NS) -> str:
    with pytest.raises(PeerError) as caught:
        gateway.check(desired, now_ns)
    return str(caught.value)


def test_the_library_is_of_the_version_whose_inside_is_touched() -> None:
    """`Updater` takes no clock: its reference time is set from outside. Look again before raising this."""
    assert tuf.__version__.split(".")[0] == "7"


def test_a_release_of_a_part_is_trusted_with_its_base(scene: Scene) -> None:
    gateway = scene.copy("part")
    assert gateway.check(scene.second, BEGIN_NS) == scene.centre.manifests[1]
    assert scene.second.base == scene.first.manifest
    assert "no role stands behind" in refused(scene.copy("baseless"), msgspec.structs.replace(scene.second, base=b""))


def test_the_same_message_may_come_again(scene: Scene) -> None:
    gateway = scene.copy("again")
    for _ in range(3):
        gateway.check(scene.second, BEGIN_NS)


def test_an_assignment_is_for_one_gateway_one_release_and_not_older(scene: Scene) -> None:
    gateway, centre = scene.copy("assigned"), scene.centre
    other = centre.repository.assign("gw-2", scene.second.manifest, 9)
    assert "not for gateway gw-1" in refused(gateway, msgspec.structs.replace(scene.second, assignment=other))
    mixed = msgspec.structs.replace(scene.second, assignment=scene.first.assignment)
    assert "for another release" in refused(gateway, mixed)
    gateway.check(scene.second, BEGIN_NS)
    old = msgspec.structs.replace(scene.second, assignment=centre.repository.assign(GATEWAY, scene.second.manifest, 1))
    assert "is number 1, after number 2" in refused(gateway, old)


@pytest.mark.parametrize(("days", "said"), [(31, "timestamp"), (1101, "root")])
def test_what_is_frozen_expires_and_what_runs_is_recalled_all_the_same(scene: Scene, days: int, said: str) -> None:
    gateway = scene.copy(f"frozen-{days}")
    assert f"{said}.json is expired" in refused(gateway, scene.second, BEGIN_NS + days * DAY_NS)
    assert gateway.recall(scene.first) == scene.centre.manifests[0]


def test_an_unknown_manifest_is_not_recalled_but_a_lost_memory_does_not_stop_inference(scene: Scene) -> None:
    gateway = scene.copy("recall")
    with pytest.raises(TrustError, match="never trusted here"):
        gateway.recall(scene.second)
    (scene.folder / "recall" / STATE).write_bytes(b"\xc1 torn")
    assert gateway.recall(scene.second) == scene.centre.manifests[1]
    gateway.check(scene.second, BEGIN_NS)


def test_a_timestamp_says_that_it_cannot_be_earlier(scene: Scene, tmp_path: Path) -> None:
    """A box that wakes long before: what expired before the timestamp was signed is expired."""
    clock = HandClock()
    centre = Centre(tmp_path / "centre", clock)
    manifest = centre.publish(*SCENARIOS)
    early = centre.desired(manifest)
    clock.now_ns += 65 * DAY_NS
    centre.repository.refresh()
    late = centre.desired(manifest)
    gateway = TrustedMetadata(tmp_path / "gateway", centre.repository.root(), GATEWAY)
    stale = msgspec.structs.replace(late, assignment=early.assignment)
    assert "the assignment has expired" in refused(gateway, stale, BEGIN_NS)
    gateway.check(late, BEGIN_NS)


@pytest.mark.parametrize("role", ["root", "targets", "snapshot", "timestamp", "assignments", "scenario-belt"])
def test_after_a_rotation_the_old_keys_are_worth_nothing(tmp_path: Path, role: str) -> None:
    centre = Centre(tmp_path / "centre", HandClock())
    gateway = TrustedMetadata(tmp_path / "gateway", centre.repository.root(), GATEWAY)
    gateway.check(centre.desired(centre.publish(*SCENARIOS)), BEGIN_NS)
    honest = centre.desired(centre.publish("belt"))
    revoked = Forger(centre, Theft("", (role,)), honest, 0).stolen
    assert centre.repository.rotate(role)
    gateway.check(centre.desired(centre.manifests[-1]), BEGIN_NS)
    others = Theft("", tuple(name for name in SERVING if name != role))
    for number, edit in enumerate((Forger.whole, Forger.new_root, lambda forger: forger.scenario("belt"))):
        forger = Forger(centre, others, centre.desired(centre.manifests[-1]), 1, revoked)
        shutil.copytree(tmp_path / "gateway", tmp_path / f"copy-{number}")
        victim = TrustedMetadata(tmp_path / f"copy-{number}", centre.repository.root(), GATEWAY)
        assert "was signed by" in refused(victim, edit(forger))
    assert gateway.check(centre.desired(centre.publish("belt")), BEGIN_NS) == centre.manifests[-1]


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "assignments"])
def test_a_version_pushed_far_ahead_is_mended_by_new_keys(tmp_path: Path, role: str) -> None:
    centre = Centre(tmp_path / "centre", HandClock())
    gateway = TrustedMetadata(tmp_path / "gateway", centre.repository.root(), GATEWAY)
    running = centre.desired(centre.publish(*SCENARIOS))
    gateway.check(running, BEGIN_NS)
    thief = Theft("", ("snapshot", "timestamp") if role == "snapshot" else (role,))
    with contextlib.suppress(TrustError):  # what did verify stays known: that is the harm
        gateway.check(Forger(centre, thief, running, 0).forward(role, running), BEGIN_NS)
    following = centre.publish("belt")
    refused(gateway, centre.desired(following))
    for stolen in thief.roles:
        centre.repository.rotate(stolen)
    assert gateway.check(centre.desired(following), BEGIN_NS) == following


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_stolen_scenario_key_with_the_serving_machine_reaches_its_scenario_alone(scene: Scene, scenario: str) -> None:
    theft = Theft("", (*SERVING, f"scenario-{scenario}"))
    for name in SCENARIOS:
        evil = Forger(scene.centre, theft, scene.second, 1).scenario(name)
        victim = scene.copy(f"reach-{scenario}-{name}")
        if reaches(theft, name):
            assert victim.check(evil, BEGIN_NS) not in scene.centre.manifests
        else:
            refused(victim, evil)


def test_a_part_cannot_use_up_all_sequence_numbers(scene: Scene) -> None:
    theft = Theft("", (*SERVING, "scenario-belt", "scenario-helmet"))
    evil = Forger(scene.centre, theft, scene.second, 1).beyond("sequence")
    assert "is not within 10000 of" in refused(scene.copy("ahead"), evil)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_no_mutation_is_believed_and_none_raises_anything_else(scene: Scene, seed: int) -> None:
    gateway = scene.copy("mutated")
    mutated = next(mutations(scene.second, random.Random(seed)))[1]
    try:
        found: Manifest | None = gateway.check(mutated, BEGIN_NS)
    except PeerError:
        found = None
    if found is not None:  # nothing that counts was changed
        assert encode_manifest(found) == scene.second.manifest
    assert scene.copy("mutated").check(scene.second, BEGIN_NS) == scene.centre.manifests[1]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    noise=st.binary(max_size=300),
    where=st.sampled_from(["manifest", "base", "assignment", "timestamp.json", "2.root.json"]),
)
def test_noise_is_refused_as_a_peers_fault(scene: Scene, noise: bytes, where: str) -> None:
    files = {**scene.second.metadata, where: noise} if where.endswith(".json") else scene.second.metadata
    fields = {"metadata": files} | ({} if where.endswith(".json") else {where: noise})
    noisy = msgspec.structs.replace(scene.second, **fields)
    if noisy != scene.second:
        refused(scene.copy("noisy"), noisy)


def test_a_power_cut_at_any_write_leaves_what_was_known_or_what_is_new(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one file is replaced whole: whatever happens around it, the gateway goes on from the old or the new."""
    writes = 0
    real = metadata.write_atomically

    def cut(path: Path, data: bytes) -> None:
        nonlocal writes
        writes += 1
        path.with_name(f".{path.name}.torn").write_bytes(data[: len(data) // 2])  # what such a cut leaves beside it
        raise EnvironmentFault("power cut")

    gateway = scene.copy("cut")
    before = (scene.folder / "cut" / STATE).read_bytes()
    monkeypatch.setattr(metadata, "write_atomically", cut)
    with pytest.raises(EnvironmentFault):
        gateway.check(scene.second, BEGIN_NS)
    assert writes == 1, "nothing is durable before the whole of it"
    assert (scene.folder / "cut" / STATE).read_bytes() == before
    monkeypatch.setattr(metadata, "write_atomically", real)
    again = scene.gateway("cut")
    assert again.recall(scene.first) == scene.centre.manifests[0]
    assert again.check(scene.second, BEGIN_NS) == scene.centre.manifests[1]
    assert [path.name for path in (scene.folder / "cut").glob("scratch-*")] == []


def test_what_a_killed_run_left_is_cleared(scene: Scene) -> None:
    scene.copy("killed")
    left = scene.folder / "killed" / "scratch-abc" / "root_history"
    left.mkdir(parents=True)
    (left / "9.root.json").write_bytes(b"{}")
    (left.parent / "root.json").symlink_to("root_history/9.root.json")
    gateway = scene.gateway("killed")
    assert not left.parent.exists()
    gateway.check(scene.second, BEGIN_NS)


def test_a_full_disk_is_the_environments_fault(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    gateway = scene.copy("full")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(metadata, "_lay_out", full)
    with pytest.raises((EnvironmentFault, OSError)):
        gateway.check(scene.second, BEGIN_NS)
    monkeypatch.undo()
    assert gateway.check(scene.second, BEGIN_NS) == scene.centre.manifests[1]


def test_a_wrong_root_is_the_operators_fault_and_says_what_to_do(tmp_path: Path, scene: Scene) -> None:
    for data in (b"", b"{}", scene.first.metadata["timestamp.json"], scene.centre.repository.root()[:-20]):
        with pytest.raises(OperatorError, match="keys root"):
            TrustedMetadata(tmp_path / "gateway", data, GATEWAY)
    assert issubclass(OperatorError, HeadframeError)
