"""The centre's side of trust: what online keys sign, what waits for a ceremony, and what each key is worth."""

import json
from pathlib import Path

import msgspec
import pytest
from typer.testing import CliRunner

from cloud import keys_cli
from cloud.trust import Keys, Repository, ceremony
from common import trust
from common.errors import OperatorError, TrustError, WireError
from common.manifest import SHARED, Layer, Manifest, Scenario, encode_manifest, release_id
from common.messages import Desired
from common.metadata import TrustedMetadata

DAY_NS = 24 * 3600 * 10**9
NOW_NS = 1_800_000_000 * 10**9


class Clock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_ns = NOW_NS

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_s(self) -> float:
        return 0.0


def release(sequence: int, head: str = "a", scenarios: tuple[str, ...] = ("belt", "helmet")) -> bytes:
    return encode_manifest(
        Manifest(
            sequence=sequence,
            created_at_ns=NOW_NS,
            expires_at_ns=NOW_NS + 300 * DAY_NS,
            minimum_agent="0.1.0",
            backbone=Layer("b" * 64, 10),
            scenarios=tuple(
                Scenario(n, ("normal", "tear"), "normal", {SHARED: Layer(head * 64, 10)}) for n in scenarios
            ),
        )
    )


def message(repository: Repository, data: bytes, base: bytes = b"", sequence: int = 1) -> Desired:
    return Desired(
        manifest=data,
        base=base,
        metadata=repository.bundle(data, base),
        assignment=repository.assign("gw-1", data, sequence),
    )


@pytest.fixture
def sticks(tmp_path: Path) -> list[Path]:
    made = [tmp_path / f"stick-{number}" for number in range(3)]
    for stick in made:
        stick.mkdir()
    return made


@pytest.fixture
def centre(tmp_path: Path, sticks: list[Path]) -> Repository:
    """A centre whose offline keys were made onto three sticks, which are in the safe again."""
    place = tmp_path / "centre"
    Repository(place / "metadata", Keys([place / "keys", *sticks], "secret"), Clock()).create(sticks)
    return Repository(place / "metadata", Keys([place / "keys"]), Clock())


def gateway(centre: Repository, tmp_path: Path) -> TrustedMetadata:
    return TrustedMetadata(tmp_path / "gateway", centre.root(), "gw-1")


def carried(centre: Repository, tmp_path: Path, sticks: list[Path]) -> bool:
    """The ceremony: stage, sign on another machine with these sticks one after the other, bring back."""
    file = tmp_path / "ceremony.json"
    ceremony.stage(centre, file)
    for stick in sticks:
        ceremony.sign(file, Keys([stick], "secret"))
    return centre.adopt(ceremony.load(file).read())


def test_offline_keys_are_one_file_each_and_encrypted(centre: Repository, sticks: list[Path], tmp_path: Path) -> None:
    names = [[path.name.partition("-")[0] for path in sorted(stick.iterdir())] for stick in sticks]
    assert names == [["backbone", "root", "targets"], ["detectors", "root", "targets"], ["root"]]
    assert all(b"ENCRYPTED" in path.read_bytes() for stick in sticks for path in stick.iterdir())
    assert all(path.stat().st_mode & 0o077 == 0 for stick in sticks for path in stick.iterdir())
    here = {path.name.rpartition("-")[0] for path in (tmp_path / "centre" / "keys").iterdir()}
    assert here == {"snapshot", "timestamp", "assignments"}
    with pytest.raises(OperatorError, match="is encrypted"):
        Keys([sticks[0]]).signers(["x"])
    with pytest.raises(OperatorError, match="right passphrase"):
        Keys([sticks[0]], "wrong").signers(["x"])


def test_the_serving_machine_alone_signs_no_root_and_no_whole_release(centre: Repository) -> None:
    assert not centre.is_development
    assert not centre.rotate("root")
    assert not centre.add(release(1), (), ()).in_force
    assert {row.role: row.here for row in centre.status() if row.role in ("root", "targets")} == {
        "root": 0,
        "targets": 0,
    }


def test_a_staged_release_is_in_force_after_two_of_two_have_signed(
    centre: Repository, sticks: list[Path], tmp_path: Path
) -> None:
    data = release(1)
    assert not centre.add(data, (), ()).in_force
    assert not carried(centre, tmp_path, sticks[:1]), "one of two is not enough"
    assert carried(centre, tmp_path, sticks[1:2]), "signatures add up"
    assert gateway(centre, tmp_path).check(message(centre, data), NOW_NS).sequence == 1


def test_heads_go_out_with_the_scenarios_keys_and_need_no_ceremony(
    centre: Repository, sticks: list[Path], tmp_path: Path
) -> None:
    first, second = release(1), release(2, "c")
    centre.add(first, (), ())
    assert carried(centre, tmp_path, sticks[:2])
    signed = centre.add(second, [first], ())
    assert (signed.in_force, signed.base) == (True, first)
    assert gateway(centre, tmp_path).check(message(centre, second, first), NOW_NS).sequence == 2
    assert not centre.add(release(3, "c", ("belt", "helmet", "smoke")), [first], ()).in_force, "a scenario is new"


def test_what_waits_is_described_from_the_metadata_itself(centre: Repository, tmp_path: Path) -> None:
    data = release(1)
    centre.add(data, (), ())
    lines = list(ceremony.describe(ceremony.stage(centre, tmp_path / "file")))
    assert any(f"releases/{release_id_of(data)}" in line and trust.digest(data).hex() in line for line in lines)
    assert any("keys of scenario-belt: 1 of 1" in line for line in lines)


def test_a_file_that_was_changed_on_the_way_is_refused(centre: Repository, sticks: list[Path], tmp_path: Path) -> None:
    centre.add(release(1), (), ())
    file = tmp_path / "file"
    staged = ceremony.stage(centre, file)
    other = msgspec.structs.replace(
        staged,
        waiting={
            "targets": staged.waiting["targets"]
            .replace(b'"version":2', b'"version":3')
            .replace(b'"version": 2', b'"version": 3')
        },
    )
    file.write_bytes(msgspec.json.encode(other))
    ceremony.sign(file, Keys([sticks[0]], "secret"))
    with pytest.raises(TrustError, match="not what is staged here"):
        centre.adopt(ceremony.load(file).read())
    file.write_bytes(msgspec.json.encode(msgspec.structs.replace(staged, waiting={"targets": b"{}"})))
    with pytest.raises(WireError, match="not metadata"):
        ceremony.load(file).read()
    for noise in (b"", b"{}", b"x" * 2_000_000):
        file.write_bytes(noise)
        with pytest.raises(OperatorError, match="keys stage"):
            ceremony.load(file)


def test_a_stolen_root_key_is_replaced_by_the_other_two(centre: Repository, sticks: list[Path], tmp_path: Path) -> None:
    """The thief has stick 0. New keys on new sticks, signed by the two that are left; gateways follow the chain."""
    data = release(1)
    centre.add(data, (), ())
    assert carried(centre, tmp_path, sticks[:2])
    mine = gateway(centre, tmp_path)
    mine.check(message(centre, data), NOW_NS)
    new = [tmp_path / f"new-{number}" for number in range(3)]
    place = tmp_path / "centre"
    there = Repository(place / "metadata", Keys([place / "keys", *sticks[1:]], "secret"), Clock())
    assert there.rotate("root", new)
    assert mine.check(message(centre, data, sequence=2), NOW_NS).sequence == 1
    old = Repository(place / "metadata", Keys([place / "keys", *sticks], "secret"), Clock())
    assert not old.rotate("root", new[:1]), "the keys on the old sticks are worth nothing now"


def test_a_threshold_of_one_key_is_not_met(centre: Repository, sticks: list[Path], tmp_path: Path) -> None:
    place = tmp_path / "centre"
    there = Repository(place / "metadata", Keys([place / "keys", sticks[0]], "secret"), Clock())
    assert not there.rotate("root", [sticks[0]])
    assert not there.add(release(1), (), ()).in_force


def test_online_metadata_is_kept_fresh(centre: Repository, tmp_path: Path) -> None:
    clock = Clock()
    fresh = Repository(tmp_path / "centre" / "metadata", Keys([tmp_path / "centre" / "keys"]), clock)
    assert not fresh.refresh()
    clock.now_ns += 2 * DAY_NS
    assert fresh.refresh()
    assert not fresh.refresh()
    versions = {row.role: row.version for row in fresh.status()}
    clock.now_ns += 35 * DAY_NS
    assert fresh.refresh()
    later = {row.role: row.version for row in fresh.status()}
    assert later["snapshot"] == versions["snapshot"] + 1
    assert later["timestamp"] == versions["timestamp"] + 1


def test_old_versions_do_not_pile_up(tmp_path: Path) -> None:
    repository = Repository.open(tmp_path, Clock())
    first = release(1)
    repository.add(first, (), ())
    for sequence in range(2, 40):
        repository.add(release(sequence, "cd"[sequence % 2]), [first], ())
    names = sorted(path.name for path in (tmp_path / "metadata").glob("*.json"))
    assert len(names) == 6, names
    bundle = repository.bundle(release(39, "d"), first)
    assert sum(map(len, bundle.values())) < 12_000


def test_a_crash_between_two_files_leaves_the_set_of_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The timestamp is written last: whoever reads sees what it names, and the next change goes on from there."""
    from cloud.trust import sets as module

    repository = Repository.open(tmp_path, Clock())
    first, second = release(1), release(2, "c")
    repository.add(first, (), ())
    real, left = module.write_atomically, 0

    def dies(path: Path, data: bytes, mode: int = 0o600) -> None:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        real(path, data, mode)

    for writes in range(4):
        left = writes
        monkeypatch.setattr(module, "write_atomically", dies)
        with pytest.raises(KeyboardInterrupt):
            repository.add(second, [first], ())
        monkeypatch.undo()
        fresh = TrustedMetadata(tmp_path / f"gateway-{writes}", repository.root(), "gw-1")
        assert fresh.check(message(repository, first), NOW_NS).sequence == 1
    assert repository.add(second, [first], ()).in_force
    assert fresh.check(message(repository, second, first, 2), NOW_NS).sequence == 2


def test_the_commands_make_rotate_stage_sign_and_import(tmp_path: Path, sticks: list[Path]) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f"data_dir = {json.dumps(str(tmp_path / 'data'))}\n")
    environment = {"HEADFRAME_PASSPHRASE": "secret", "COLUMNS": "200"}

    def run(*arguments: str, fails: bool = False) -> str:
        done = CliRunner().invoke(keys_cli.app, list(arguments), env=environment)
        assert (done.exit_code != 0) == fails, done.output
        return done.output + (str(done.exception) if fails else "")

    folders = [item for stick in sticks for item in ("--folder", str(stick))]
    where = ("-c", str(config))
    assert "no keys yet" in run("status", *where, fails=True)
    assert "this machine alone cannot sign" in run("init", *where, *folders)
    assert "has a root of trust already" in run("init", *where, *folders, fails=True)
    assert "version 1" in run("root", *where, str(tmp_path / "root.json"))
    assert TrustedMetadata(tmp_path / "gateway", (tmp_path / "root.json").read_bytes(), "gw-1")
    known = json.loads(run("status", *where, "--json"))
    assert (known["development"], known["waiting"]) == (False, [])
    assert "there is no role 'scenario-belt'" in run("rotate", "scenario-belt", *where, fails=True)
    assert "it waits for offline keys" in run("rotate", "targets", *where)
    assert "waits for signatures: root, targets" in run("status", *where)
    file = str(tmp_path / "ceremony.json")
    assert "keys of targets: 2 of 2" in run("stage", *where, file)
    for stick in sticks[:2]:
        run("sign", file, "--folder", str(stick), "--yes")
    assert "in force" in run("import", *where, file)
    assert "nothing waits" in run("stage", *where, file, fails=True)
    assert "it waits for offline keys" in run("renew", *where)
    assert "are renewed" in run("renew", *where, *folders)


def test_development_keys_say_so(tmp_path: Path) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f"data_dir = {json.dumps(str(tmp_path / 'data'))}\n")
    done = CliRunner().invoke(keys_cli.app, ["root", "-c", str(config), str(tmp_path / "root.json")])
    assert "DEVELOPMENT" in done.output
    assert json.loads((tmp_path / "root.json").read_bytes())["signed"][trust.DEVELOPMENT] is True


def release_id_of(data: bytes) -> str:
    return release_id(msgspec.msgpack.decode(data, type=Manifest))
