"""Curation on a real centre: nothing like a gold picture is learnt from, conflicts are decided, versions hold."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from cloud.cli import app
from cloud.curation.roles import Role
from cloud.curation.versions import decode_version
from cloud.learning.curator import Look
from cloud.learning.datasets import read_folder
from cloud.learning.export import set_default_backbone
from cloud.service import Service
from cloud.settings import CloudSettings, LearningSettings
from common.backbone import Backbone
from common.errors import OperatorError
from common.messages import Sample
from common.mqtt import Broker

SCENES = 12
MakeSample = Callable[..., Sample]


def picture(number: int, label: str) -> np.ndarray:
    """A smooth surface of its own, darker where it is torn."""
    small = np.random.default_rng(number).integers(90, 255, (6, 6, 3), dtype=np.uint8)
    made = cv2.resize(small, (64, 64), interpolation=cv2.INTER_CUBIC)
    if label == "tear":
        made = (made * 0.35).astype(np.uint8)
    return np.asarray(made, dtype=np.uint8)


def jpeg(image: np.ndarray, quality: int = 95) -> bytes:
    data: bytes = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return data


class Centre:
    """A service with a dataset of many scenes, and a place to upload samples."""

    def __init__(self, folder: Path, backbone: bytes, make_sample: MakeSample) -> None:
        settings = CloudSettings(data_dir=folder / "centre", learning=LearningSettings(personal_labels_min=99))
        self.service = Service(settings, Broker())
        layer = self.service.registry.put(backbone)
        set_default_backbone(folder / "centre" / "layers", layer.hash)
        self.backbone = Backbone.open(self.service.registry.layer_path(layer.hash))
        self.pictures, self.make_sample = folder / "pictures", make_sample
        self.config = folder / "cloud.toml"
        self.config.write_text(f'data_dir = "{folder / "centre"}"\n')
        rows = ["file,class,scene"]
        self.pictures.mkdir()
        for number in range(4 * SCENES):
            label = ("normal", "tear")[number % 2]
            (self.pictures / f"{number}.jpg").write_bytes(jpeg(picture(number, label)))
            rows.append(f"{number}.jpg,{label},scene-{number // 4}")
        self.manifest = self.pictures / "manifest.csv"
        self.manifest.write_text("\n".join(rows) + "\n")
        self.add()

    def add(self) -> None:
        self.dataset = self.service.catalogue.add("base", "belt", read_folder(self.pictures), self.backbone)

    def file_of(self, name: bytes) -> Path:
        return Path(self.dataset.files[self.dataset.ids.index(name)])

    def upload(self, image: np.ndarray, label: str, number: int = 0, quality: int = 95, site: str = "north") -> bytes:
        data = jpeg(image, quality)
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        sample = self.make_sample(
            number,
            site_id=site,
            jpeg=data,
            backbone=self.backbone.hash,
            embedding=self.backbone.embed(np.asarray(decoded, dtype=np.uint8)).astype("<f2").tobytes(),
        )
        self.service.store.add_samples([sample], 1)
        self.service.store.add_labels([(sample.sample_id, "belt", label)], "li", 1)
        return sample.sample_id

    def look(self) -> Look:
        classes = self.service.trainer.scenarios()["belt"]
        return self.service.trainer.gathering.curator.look("belt", classes, self.backbone.hash)

    def role(self, name: bytes) -> Role:
        found = self.look()
        return Role(int(found.roles[found.rows.ids.index(name)]))

    def gold(self) -> set[bytes]:
        found = self.look()
        return {name for name, role in zip(found.rows.ids, found.roles, strict=True) if role == Role.GOLD}


@pytest.fixture
def centre(tmp_path: Path, tiny_backbone: Callable[..., bytes], make_sample: MakeSample) -> Iterator[Centre]:
    made = Centre(tmp_path, tiny_backbone(), make_sample)
    yield made
    made.service.store.close()


def test_a_near_duplicate_of_a_gold_picture_does_not_leak_into_learning(centre: Centre) -> None:
    name = next(iter(sorted(centre.gold())))
    label = centre.dataset.labels[centre.dataset.ids.index(name)]
    image = cv2.imread(str(centre.file_of(name)))
    leak = centre.upload(np.clip(image * 1.1, 0, 255).astype(np.uint8), label, 1, quality=50)
    other = centre.upload(picture(900, "normal"), "normal", 2)
    assert centre.role(leak) == Role.NEAR_GOLD
    outcome = centre.service.trainer.run("first")
    assert outcome.release_id
    (head,) = [item for item in centre.service.store.layers() if item.kind == "head"]
    learnt = set(centre.service.store.sample_set(head.samples))
    assert leak not in learnt
    assert other in learnt
    assert not learnt & centre.gold(), "gold pictures never enter learning"


def test_a_copy_counts_once_and_the_sums_say_so(centre: Centre) -> None:
    image = picture(900, "tear")
    first = centre.upload(image, "tear", 1)
    before = centre.service.trainer.run("one").record["belt"]["samples"]
    centre.upload(image, "tear", 2, quality=60)
    assert centre.service.trainer.run("two").record["belt"]["samples"] == before
    assert {centre.role(first)} <= {Role.LEARNT, Role.FOLDED}
    centre.upload(image, "tear", 3, quality=60, site="south")
    after = centre.service.trainer.run("three").record["belt"]["samples"]
    assert after == before + 1, "another site's counts for that site"


def test_a_conflicting_label_is_listed_decided_and_not_asked_again(centre: Centre) -> None:
    image = picture(900, "tear")
    right, wrong = centre.upload(image, "tear", 1), centre.upload(image, "normal", 2, quality=60)
    trainer, runner = centre.service.trainer, CliRunner()
    (found,) = [c for c in trainer.conflicts("belt") if c["kind"] == "twins"]
    assert {p["id"]: p["label"] for p in found["pictures"]} == {right.hex(): "tear", wrong.hex(): "normal"}
    listed = runner.invoke(app, ["dataset", "conflicts", "-c", str(centre.config), "--json"])
    assert listed.exit_code == 1
    assert found["pictures"] in [c["pictures"] for c in json.loads(listed.stdout)["conflicts"]]
    with pytest.raises(OperatorError, match="no class"):
        trainer.decide("belt", [(wrong, "rope")], "li")
    decided = runner.invoke(app, ["dataset", "decide", "-c", str(centre.config), wrong.hex(), "tear", "--author", "li"])
    assert decided.exit_code == 0, decided.output
    assert centre.service.store.labels("belt")[wrong] == "tear"
    assert [c for c in trainer.conflicts("belt") if c["kind"] == "twins"] == []
    assert centre.service.store.audits(1)[0]["actor"] == "li"


def test_two_people_who_label_a_sample_differently_are_asked_until_one_decision(centre: Centre) -> None:
    name = centre.upload(picture(900, "tear"), "tear", 1)
    centre.service.store.add_labels([(name, "belt", "normal")], "wang", 2)
    (found,) = [c for c in centre.service.trainer.conflicts("belt") if c["kind"] == "people"]
    assert (found["pictures"][0]["label"], found["suggested"]) == ("normal", "tear")
    centre.service.trainer.decide("belt", [(name, "normal")], "chief")  # the label that it has stands
    assert [c for c in centre.service.trainer.conflicts("belt") if c["pictures"][0]["id"] == name.hex()] == []
    centre.service.store.add_labels([(name, "belt", "tear")], "wang", 3)
    assert [c["kind"] for c in centre.service.trainer.conflicts("belt") if c["pictures"][0]["id"] == name.hex()]


def test_a_damaged_picture_is_compared_with_none_and_still_counts(centre: Centre) -> None:
    name = centre.upload(picture(900, "tear"), "tear", 1)
    for segment in (centre.config.parent / "centre" / "blobs").glob("**/*.seg"):
        segment.write_bytes(b"\0" * segment.stat().st_size)
    assert centre.role(name) == Role.LEARNT
    look = centre.look()
    assert not look.rows.hashed[look.rows.ids.index(name)]


def test_a_wrong_label_of_a_gold_picture_is_doubted_left_out_until_decided_and_fixed(centre: Centre) -> None:
    name = min(n for n in centre.gold() if centre.dataset.labels[centre.dataset.ids.index(n)] == "tear")
    file = centre.file_of(name).name
    centre.manifest.write_text(centre.manifest.read_text().replace(f"{file},tear", f"{file},normal"))
    centre.add()
    assert centre.role(name) == Role.GOLD_IN_DOUBT
    (found,) = [c for c in centre.service.trainer.conflicts("belt") if c["pictures"][0]["id"] == name.hex()]
    assert (found["kind"], found["suggested"]) == ("doubted", "tear")
    assert found["pictures"][0]["gold"]
    centre.service.trainer.decide("belt", [(name, "tear")], "li")
    assert centre.role(name) == Role.GOLD
    look = centre.look()
    assert look.rows.labels[look.rows.ids.index(name)] == "tear"
    (dataset,) = look.datasets
    assert dataset.gold.labels[dataset.gold.ids.index(name)] == "tear"


def test_gold_stays_when_its_dataset_says_otherwise_and_grows_by_new_scenes(centre: Centre) -> None:
    centre.service.trainer.run("first")
    before = centre.gold()
    rows = centre.manifest.read_text().splitlines()
    for number in range(900, 940):
        label = ("normal", "tear")[number % 2]
        (centre.pictures / f"{number}.jpg").write_bytes(jpeg(picture(number, label)))
        rows.append(f"{number}.jpg,{label},late-{number // 4}")
    centre.manifest.write_text("\n".join(rows) + "\n")
    centre.add()
    flagged = centre.dataset.is_gold
    flagged[:] = ~flagged  # a catalogue that proposes the very opposite
    centre.service.catalogue.put(centre.dataset)
    after = centre.gold()
    assert before < after
    sites = dict(zip(centre.dataset.ids, centre.dataset.sites, strict=True))
    assert all(sites[name].startswith("late-") for name in after - before), "never a scene that was learnt from"
    centre.service.trainer.run("second")
    result = CliRunner().invoke(app, ["dataset", "diff", "-c", str(centre.config), "1", "2", "--json"])
    assert json.loads(result.stdout)["gold_added"] == len(after - before)


def test_versions_are_counted_only_when_something_changed_and_are_what_their_hash_says(centre: Centre) -> None:
    trainer, store = centre.service.trainer, centre.service.store
    one = trainer.run("one").record["belt"]["dataset"]
    assert trainer.run("again").record["belt"]["dataset"] == one, "the same version: the same hash, no new number"
    centre.upload(picture(900, "tear"), "tear", 1)
    two = trainer.run("two").record["belt"]["dataset"]
    assert (one["version"], two["version"]) == (1, 2)
    assert one["hash"] != two["hash"]
    name, content = store.version_content("belt", 1)
    assert len(decode_version(content, name)) == 4 * SCENES
    heads = [item.record["dataset_version"]["hash"] for item in store.layers() if item.kind == "head"]
    assert set(heads) == {one["hash"], two["hash"]}
    runner = CliRunner()
    shown = json.loads(runner.invoke(app, ["dataset", "show", "-c", str(centre.config), "2", "--json"]).stdout)
    assert shown["hash"] == two["hash"]
    assert len(shown["layers"]) == 1
    assert shown["balance"]["north"] == {"tear": {"learnt": 1, "folded": 0, "gold": 0}}
    listed = json.loads(runner.invoke(app, ["dataset", "list", "-c", str(centre.config), "--json"]).stdout)
    assert [row["version"] for row in listed["versions"]] == [2, 1]
    for command in (["list"], ["show"], ["diff", "1"], ["conflicts"]):
        result = runner.invoke(app, ["dataset", command[0], "-c", str(centre.config), *command[1:]])
        assert result.exit_code in (0, 1), result.output
        assert "Traceback" not in result.output
    missing = runner.invoke(app, ["dataset", "show", "-c", str(centre.config), "9"])
    assert isinstance(missing.exception, OperatorError)


def test_hashes_are_kept_and_a_broken_file_of_them_costs_time_only(centre: Centre) -> None:
    name = centre.upload(picture(900, "tear"), "tear", 1)
    first = centre.look()
    cache = centre.config.parent / "centre" / "curation" / "hashes.npz"
    assert cache.is_file()
    cache.write_bytes(b"broken")
    second = centre.look()
    row = second.rows.ids.index(name)
    assert second.rows.hashed[row]
    np.testing.assert_array_equal(first.rows.hashes, second.rows.hashes)


def test_a_dataset_of_before_there_were_hashes_still_counts(centre: Centre) -> None:
    path = next((centre.config.parent / "centre" / "datasets").glob("*.npz"))
    with np.load(path, allow_pickle=False) as arrays:
        old = {key: arrays[key] for key in arrays.files if key not in ("hashes", "files")}
    np.savez(path, **old)
    assert not centre.look().rows.hashed.any()
    assert centre.service.trainer.run("old").release_id


def test_the_id_of_a_picture_is_that_of_its_file(centre: Centre) -> None:
    for name, file in zip(centre.dataset.ids, centre.dataset.files, strict=True):
        assert hashlib.blake2b(Path(file).read_bytes(), digest_size=16).digest() == name
