"""Where layers come from, how long they stay, and a release as a file: for people, and for a mine without a network."""

import json
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cloud.archive import export_release, import_release
from cloud.cli import app
from cloud.learning.export import set_default_backbone
from cloud.lineage import trace
from cloud.retention import retain
from cloud.service import Service
from cloud.settings import CloudSettings, LearningSettings
from common.archive import Archive
from common.errors import HeadframeError, OperatorError, PeerError, TrustError, WireError
from common.messages import Desired, Fetch, LayerPart, Sample
from common.mqtt import Broker
from edge.inbox import ENDING, FOLDER, Inbox, put_in


@pytest.fixture
def service(
    tmp_path: Path, tiny_backbone: Callable[..., bytes], make_sample: Callable[..., Sample]
) -> Iterator[Service]:
    """A centre that has learnt a release from twelve labelled samples, which an earlier release chose."""
    made = Service(
        CloudSettings(data_dir=tmp_path / "centre", learning=LearningSettings(personal_labels_min=99)), Broker()
    )
    layer = made.registry.put(tiny_backbone())
    set_default_backbone(tmp_path / "centre" / "layers", layer.hash)
    learn(made, make_sample, 0)
    yield made
    made.store.close()


def learn(service: Service, make_sample: Callable[..., Sample], first: int) -> str:
    """Twelve more labelled samples, and a release of all."""
    backbone = service.registry.backbone()[0].hash
    samples = []
    for number in range(first, first + 12):
        x = np.random.default_rng(number).normal(size=12)
        x[0] += 8 * (number % 2)
        samples.append(
            make_sample(number, backbone=backbone, embedding=x.astype("<f2").tobytes(), release_id="r0-before")
        )
    service.store.add_samples(samples, 1)
    rows = [(item.sample_id, "belt", ("normal", "tear")[n % 2]) for n, item in enumerate(samples)]
    service.store.add_labels(rows, "li", 1)
    return service.trainer.run("test").release_id


def test_lineage_is_answered_in_both_directions(service: Service) -> None:
    release = service.store.releases()[0].release_id
    found = trace(service.store, release)
    assert found["made_from"]["samples"] == 12
    heads = [row for row in found["layers"] if row["kind"] == "head"]
    assert heads[0]["where"] == "belt"
    assert {"data_version", "parameters", "evaluation", "code", "licence", "datasets"} <= heads[0].keys()
    sample = found["made_from"]["ids"][0]
    back = trace(service.store, sample)
    assert (back["seen_by"], back["releases"]) == ("r0-before", [release])
    assert [row["layer"] for row in back["layers"]] == [heads[0]["layer"]]
    layer = trace(service.store, heads[0]["layer"][:8])
    assert layer["releases"] == [release]
    assert sample in layer["made_from"]["ids"]


def test_a_head_names_the_one_before_and_a_release_what_it_saw(
    service: Service, make_sample: Callable[..., Sample]
) -> None:
    first = service.store.releases()[0].release_id
    service.store.add_samples([make_sample(99, release_id=first)], 1)
    second = learn(service, make_sample, 20)
    heads = [
        next(row["layer"] for row in trace(service.store, name)["layers"] if row["kind"] == "head")
        for name in (first, second)
    ]
    assert trace(service.store, heads[1])["ancestors"] == [heads[0]]
    assert trace(service.store, heads[0])["children"] == [heads[1]]
    assert trace(service.store, first)["saw"]["samples"] == 1
    assert trace(service.store, second)["made_from"]["samples"] == 24


@pytest.mark.parametrize("name", ["r9-00000000", "zz", "0" * 32, "f" * 64, "abc"])
def test_what_is_not_known_is_said(service: Service, name: str) -> None:
    with pytest.raises(OperatorError, match=r"no release, layer or sample|0 layers begin"):
        trace(service.store, name)


def test_retention_keeps_what_is_active_assigned_running_or_stood_on(
    service: Service, make_sample: Callable[..., Sample]
) -> None:
    names = [service.store.releases()[0].release_id]
    names += [learn(service, make_sample, first) for first in (20, 40, 60, 80)]
    service.registry.desired("gw-1", names[1])
    service.registry.flush()
    told = retain(service.registry, service.store, 1, [names[2]], dry=True)
    assert service.store.release(names[3]).status != "retired"  # type: ignore[union-attr]
    done = retain(service.registry, service.store, 1, [names[2]])
    assert done == told
    assert done.releases == (names[3],), "0 is the whole release that the others stand on, 4 is active"
    assert done.layers
    for name in (names[0], names[1], names[2], names[4]):
        manifest = service.registry.manifest(name)
        assert manifest is not None
        assert all(service.registry.layer_path(layer.hash).is_file() for layer in manifest.layers())
    with pytest.raises(OperatorError, match="not kept any more"):
        service.registry.roll_back(names[3], "back")
    assert retain(service.registry, service.store, 1, [names[2]]).layers == ()
    assert trace(service.store, names[3])["status"] == "retired", "its lineage stays"
    with pytest.raises(OperatorError, match="at least one"):
        retain(service.registry, service.store, 0, [])


class Box:
    """A gateway without a network, as far as an import goes."""

    def __init__(self, folder: Path, service: Service) -> None:
        self.folder, self.root = folder, service.repository.root()
        self.told: list[Desired] = []
        self.got: list[LayerPart] = []
        self.inbox = Inbox(folder / FOLDER, "gw-1", self.told.append, self.got.append)

    def put_in(self, file: Path) -> None:
        put_in(file, self.folder, self.folder / "trust", self.root, "gw-1", "north", time.time_ns())

    def fetch(self, layer: str, size: int) -> bytes:
        data = b""
        while len(data) < size:
            assert self.inbox.take(Fetch(layer=layer, offset=len(data), length=1000))
            self.inbox.step()
            data += self.got[-1].data
        return data


def test_a_release_travels_as_a_file_to_a_gateway(service: Service, tmp_path: Path) -> None:
    release, file = service.store.releases()[0].release_id, tmp_path / "file"
    manifest = export_release(service.registry, release, file, ["gw-1"])
    box = Box(tmp_path / "box", service)
    box.put_in(file)
    box.inbox.step()
    assert [message.manifest for message in box.told] == [service.store.releases()[0].manifest]
    for layer in manifest.layers_for("north"):
        assert box.fetch(layer.hash, layer.size_bytes) == service.registry.layer_path(layer.hash).read_bytes()
    assert not box.inbox.take(Fetch(layer="0" * 64, offset=0, length=10)), "that one is for the centre"
    again = Box(tmp_path / "box", service)
    again.inbox.step()
    assert len(again.told) == 1, "a run that was cut short takes it up again"
    again.inbox.close()
    assert list((tmp_path / "box" / FOLDER).iterdir()) == []


def test_a_file_for_another_gateway_is_refused(service: Service, tmp_path: Path) -> None:
    release, file = service.store.releases()[0].release_id, tmp_path / "file"
    export_release(service.registry, release, file, ["gw-2"])
    box = Box(tmp_path / "box", service)
    with pytest.raises(OperatorError, match="is not for gw-1"):
        box.put_in(file)
    shutil.copy(file, tmp_path / f"x{ENDING}")
    (tmp_path / "box" / FOLDER).mkdir(parents=True)
    shutil.move(tmp_path / f"x{ENDING}", tmp_path / "box" / FOLDER)
    box.inbox.step()
    assert box.told == []


def test_a_release_travels_to_another_centre_and_is_published_there(
    service: Service, tmp_path: Path, tiny_backbone: Callable[..., bytes]
) -> None:
    release, file, root = service.store.releases()[0].release_id, tmp_path / "file", tmp_path / "root.json"
    manifest = export_release(service.registry, release, file, [])
    root.write_bytes(service.repository.root())
    other = Service(CloudSettings(data_dir=tmp_path / "other"), Broker())
    try:
        stranger = tmp_path / "stranger.json"
        stranger.write_bytes(other.repository.root())
        with pytest.raises(TrustError):
            import_release(other.registry, file, stranger, other.clock)
        assert other.store.releases() == []
        name = import_release(other.registry, file, root, other.clock)
        there = other.registry.manifest(name)
        assert there is not None
        assert (there.backbone, there.scenarios) == (manifest.backbone, manifest.scenarios)
        assert all(other.registry.layer_path(layer.hash).is_file() for layer in there.layers())
        assert other.registry.desired("gw-9", name) is not None
    finally:
        other.store.close()


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_tampered_file_is_refused_and_nothing_is_handed_over(
    service: Service, tmp_path: Path, data: st.DataObject
) -> None:
    file, bad = tmp_path / "file", tmp_path / "bad"
    if not file.exists():
        export_release(service.registry, service.store.releases()[0].release_id, file, ["gw-1"])
    with zipfile.ZipFile(file) as archive:
        parts = {info.filename: archive.read(info) for info in archive.infolist()}
    name = data.draw(st.sampled_from(sorted(name for name in parts if name != "assignments/archive")))
    at = data.draw(st.integers(0, len(parts[name]) - 1))
    kind = data.draw(st.sampled_from(["flip", "cut", "drop", "raw"]))
    if kind == "raw":  # of the zip itself, wherever that is
        raw = bytearray(file.read_bytes())
        where = data.draw(st.integers(0, len(raw) - 1))
        raw[where] ^= 1 << data.draw(st.integers(0, 7))
        bad.write_bytes(raw)
    else:
        changed = bytearray(parts[name])
        changed[at] ^= 0x10
        parts[name] = parts[name][:at] if kind == "cut" else bytes(changed)
        with zipfile.ZipFile(bad, "w") as archive:
            for key, value in parts.items():
                if kind != "drop" or key != name:
                    archive.writestr(key, value)
    box = Box(tmp_path / "box", service)
    try:
        box.put_in(bad)
    except (OperatorError, PeerError):
        assert not (tmp_path / "box" / FOLDER).exists() or list((tmp_path / "box" / FOLDER).iterdir()) == []
        return
    assert kind in ("raw", "flip"), (
        "only what nobody reads may be changed: a date in the zip, a map's key that is unknown"
    )
    shutil.rmtree(tmp_path / "box" / FOLDER)


def test_an_archive_is_bounded_and_names_what_is_missing(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"no zip")
    with pytest.raises(OperatorError, match="cannot read"):
        Archive(file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("other", b"")
    with pytest.raises(OperatorError, match="holds no release"):
        Archive(file)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("release", b"\0" * 50_000_000)
        archive.writestr("assignments/gw-1", b"")
    with Archive(file) as bomb, pytest.raises(WireError, match="over its bound"):
        bomb.desired("gw-1")


def test_the_commands_tell_keep_and_write(service: Service, tmp_path: Path) -> None:
    config = tmp_path / "cloud.toml"
    config.write_text(f"data_dir = {json.dumps(str(tmp_path / 'centre'))}\n")
    release = service.store.releases()[0].release_id

    def run(*arguments: str) -> str:
        done = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
        assert done.exit_code == 0, done.output + repr(done.exception)
        return done.output

    assert json.loads(run("lineage", "-c", str(config), release, "--json"))["made_from"]["samples"] == 12
    assert "made from: 12 samples" in run("lineage", "-c", str(config), release)
    assert "would remove 0 layers" in run("retain", "-c", str(config), "--keep", "3", "--dry-run")
    assert "for gw-7" in run("export", "-c", str(config), release, str(tmp_path / "out"), "--gateway", "gw-7")
    assert {row["action"] for row in service.store.audits()} >= {"export release"}
    assert issubclass(OperatorError, HeadframeError)
