"""Manifests and signatures, files that survive, settings that name the wrong key."""

import errno
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.settings import CloudSettings
from common.errors import ConfigError, EnvironmentFault, OperatorError, PeerError, TrustError, WireError
from common.files import READABLE, own_folder, write_atomically
from common.manifest import SHARED, Layer, Manifest, Scenario, decode_manifest, encode_manifest, release_id
from common.mqtt import Broker
from common.settings import load_settings
from common.settings_table import list_keys
from edge.settings import EdgeSettings
from simulations.single_key import Signer, verify

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED_HEAD, OWN_HEAD = Layer("1" * 64, 10), Layer("2" * 64, 20)
MANIFEST = Manifest(
    sequence=3,
    created_at_ns=1,
    expires_at_ns=2,
    minimum_agent="0.1.0",
    backbone=Layer("0" * 64, 1000),
    scenarios=(Scenario("belt", ("normal", "撕裂"), "normal", {"north": OWN_HEAD, SHARED: SHARED_HEAD}),),
)
EDGE = """
gateway_id = "north-1"
site_id = "north"
release_root = "root.json"
[[cameras]]
id = "belt"
source = "clip.mp4"
"""


def test_a_manifest_has_one_form_and_its_hash_names_the_release() -> None:
    data = encode_manifest(MANIFEST)
    assert decode_manifest(data) == MANIFEST
    heads = dict(reversed(MANIFEST.scenarios[0].heads.items()))
    other = Manifest(
        **{
            **{f: getattr(MANIFEST, f) for f in MANIFEST.__struct_fields__},
            "scenarios": (Scenario("belt", ("normal", "撕裂"), "normal", heads),),
        }
    )
    assert encode_manifest(other) == data
    assert release_id(other) == release_id(MANIFEST)
    assert release_id(MANIFEST).startswith("r3-")
    assert MANIFEST.layers_for("north") == (MANIFEST.backbone, OWN_HEAD)
    assert MANIFEST.layers_for("south") == (MANIFEST.backbone, SHARED_HEAD)


@given(st.binary(max_size=300))
def test_what_is_no_manifest_is_refused(data: bytes) -> None:
    with pytest.raises(WireError):
        decode_manifest(data)


def test_only_the_key_that_is_trusted_signs(tmp_path: Path) -> None:
    ours, theirs = Signer.open(tmp_path / "ours"), Signer.open(tmp_path / "theirs")
    data = encode_manifest(MANIFEST)
    signature = ours.sign(data)
    verify(data, signature, ours.public_hex)
    assert Signer.open(tmp_path / "ours").public_hex == ours.public_hex
    assert stat.S_IMODE((tmp_path / "ours").stat().st_mode) == 0o600
    for bad_data, bad_signature, key in (
        (data + b"x", signature, ours.public_hex),
        (data, signature[:-1] + bytes([signature[-1] ^ 1]), ours.public_hex),
        (data, b"", ours.public_hex),
        (data, theirs.sign(data), ours.public_hex),
        (data, signature, theirs.public_hex),
    ):
        with pytest.raises(TrustError):
            verify(bad_data, bad_signature, key)
    for key in ("", "zz", "00"):
        with pytest.raises(OperatorError, match="64 hex"):
            verify(data, signature, key)
    (tmp_path / "short").write_bytes(b"12")
    with pytest.raises(OperatorError, match="short"):
        Signer.open(tmp_path / "short")


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "file"
    write_atomically(path, b"one")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_atomically(path, b"two", READABLE)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o644)

    def no_space(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(EnvironmentFault, match="is full") as caught:
        write_atomically(path, b"three")
    assert str(path) in str(caught.value)
    assert path.read_bytes() == b"two"
    assert [item.name for item in path.parent.iterdir()] == ["file"], "nothing temporary stays"


def test_a_folder_has_one_owner_even_after_a_kill(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from common.files import own_folder\n"
        "with own_folder(Path(sys.argv[1])):\n    print('mine', flush=True)\n    time.sleep(60)"
    )
    owner = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    assert owner.stdout.readline() == "mine\n"
    with pytest.raises(OperatorError, match="another process"), own_folder(tmp_path):
        pass
    owner.kill()
    owner.wait(10)
    owner.stdout.close()
    with own_folder(tmp_path):
        pass


def test_wrong_keys_and_values_are_named(tmp_path: Path) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(EDGE)
    assert load_settings(EdgeSettings, path).cameras[0].source == "clip.mp4"
    for text, said in (
        (
            EDGE.replace("site_id", "sight_id"),
            ["sight_id: unknown key, did you mean site_id?", "site_id: Field"],
        ),
        (EDGE + 'zoom = "x"', ["cameras.0.zoom: unknown key"]),
        (EDGE + "looks_per_s = -1", ["cameras.0.looks_per_s"]),
        (EDGE + EDGE[EDGE.index("[[") :], ["not unique: belt, belt"]),
        (EDGE.replace("north-1", "North 1"), ["gateway_id: ", "North 1"]),
        ("gateway_id = ", ["not valid TOML"]),
    ):
        path.write_text(text)
        with pytest.raises(ConfigError) as caught:
            load_settings(EdgeSettings, path)
        assert str(path) in str(caught.value)
        assert all(part in str(caught.value) for part in said), str(caught.value)
    with pytest.raises(ConfigError, match="no configuration file"):
        load_settings(EdgeSettings, tmp_path / "nowhere.toml")


def test_the_environment_overrides_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "edge.toml"
    path.write_text(EDGE)
    monkeypatch.setenv("HEADFRAME_EDGE_BROKER__PASSWORD", "secret")
    monkeypatch.setenv("HEADFRAME_EDGE_SITE_ID", "south")
    settings = load_settings(EdgeSettings, path)
    assert (settings.site_id, settings.broker.password) == ("south", "secret")
    assert "secret" not in repr(settings)
    assert "secret" not in repr(settings.broker.to_broker())
    assert repr(Broker(password="secret")).count("secret") == 0


@pytest.mark.parametrize("model", [EdgeSettings, CloudSettings])
def test_every_key_is_documented_by_its_model(model: type) -> None:
    rows = list_keys(model)
    assert len(rows) > 15
    assert [row["key"] for row in rows if len(row["meaning"]) < 10] == []


def test_peer_errors_are_told_apart_from_the_operators() -> None:
    assert issubclass(TrustError, PeerError)
    assert not issubclass(TrustError, OperatorError)
    assert str(OperatorError("it is wrong", "Mend it.")) == "it is wrong. Mend it."
