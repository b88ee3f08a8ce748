"""From one backbone to the next: what the centre sees again, and what it carries over."""

import logging
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cloud.learning.clocks import CARRIED, Clocks, supersedes
from cloud.learning.datasets import Catalogue
from cloud.store import SUM, Store
from common.backbone import Backbone
from common.messages import Sample
from common.packing import pack

MakeSample = Callable[..., Sample]
CLASSES, SCENARIO = ("normal", "tear"), "belt"


@pytest.fixture
def clocks(tmp_path: Path, store: Store) -> Clocks:
    (tmp_path / "datasets").mkdir()
    return Clocks(store, Catalogue(tmp_path / "datasets"), tmp_path / "maps")


@pytest.fixture
def backbones(tmp_path: Path, tiny_backbone: Callable[..., bytes]) -> tuple[Backbone, Backbone]:
    """The old one and the new one."""
    found = []
    for seed in (0, 1):
        path = tmp_path / f"{seed}.onnx"
        path.write_bytes(tiny_backbone(seed=seed))
        found.append(Backbone.open(path))
    return found[0], found[1]


def upload(store: Store, make_sample: MakeSample, backbone: str, count: int = 6, **changes: object) -> list[bytes]:
    """Samples of which the first four are labelled."""
    embedding = np.zeros(12, "<f2").tobytes()
    samples = [make_sample(number, backbone=backbone, embedding=embedding, **changes) for number in range(count)]
    store.add_samples(samples, 0)
    names = [sample.sample_id for sample in samples]
    store.add_labels([(name, SCENARIO, CLASSES[n % 2]) for n, name in enumerate(names[:4])], "li", 1)
    return names


def test_labelled_samples_are_looked_at_again_once(
    clocks: Clocks, store: Store, make_sample: MakeSample, backbones: tuple[Backbone, Backbone], tmp_path: Path
) -> None:
    old, new = backbones
    names = upload(store, make_sample, old.hash)
    assert store.labelled(SCENARIO, new.hash).sample_ids == []
    clocks.bring(new.hash, tmp_path / "1.onnx")
    found = store.labelled(SCENARIO, new.hash)
    assert sorted(found.sample_ids) == sorted(names[:4])
    assert found.embeddings.shape == (4, new.dimension)
    assert np.abs(found.embeddings).max() > 0
    assert store.labelled(SCENARIO, old.hash).embeddings.max() == 0, "those of the gateway stay"
    clocks.bring(new.hash, tmp_path / "there is none")  # nothing to do: it is not opened
    assert sorted(store.unembedded(new.hash, unlabelled=10)) == sorted(names[4:])


def test_what_has_no_label_teaches_the_map_as_well(
    clocks: Clocks, store: Store, make_sample: MakeSample, backbones: tuple[Backbone, Backbone], tmp_path: Path
) -> None:
    old, new = backbones
    upload(store, make_sample, old.hash)
    clocks.bring(new.hash, tmp_path / "1.onnx", unlabelled=1)
    assert len(store.pairs(old.hash, new.hash, 100)) == 5
    assert len(store.pairs(old.hash, new.hash, 2)) == 2
    clocks.learn(old.hash, new.hash)
    clocks.forget(new.hash)
    assert store.pairs(old.hash, new.hash, 100) == []
    assert list((tmp_path / "maps").iterdir()) == []


def test_a_damaged_picture_stays_behind_and_is_named(
    clocks: Clocks,
    store: Store,
    make_sample: MakeSample,
    backbones: tuple[Backbone, Backbone],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    old, new = backbones
    upload(store, make_sample, old.hash, jpeg=b"no picture")
    with caplog.at_level(logging.WARNING):
        clocks.bring(new.hash, tmp_path / "1.onnx")
    assert caplog.text.count("does not decode") == 4
    assert store.labelled(SCENARIO, new.hash).sample_ids == []


def contribute(store: Store, gateway: str, backbone: str, covered: list[bytes]) -> None:
    labels = [CLASSES[n % 2] for n in range(len(covered))]
    packed, _ = pack(CLASSES, np.random.default_rng(0).normal(size=(len(covered), 12)), labels)
    meta = {"classes": list(packed.classes), "covered": sorted(name.hex() for name in covered)}
    store.put_contribution(SCENARIO, backbone, gateway, packed.arrays(), meta, 1)


def test_only_what_stays_at_its_site_is_carried_until_it_was_counted_again(
    clocks: Clocks, store: Store, make_sample: MakeSample, backbones: tuple[Backbone, Backbone], tmp_path: Path
) -> None:
    old, new = backbones
    uploaded = upload(store, make_sample, old.hash, count=12)
    contribute(store, "north-1", old.hash, uploaded[:4])  # it shares both: the centre has its pictures
    contribute(store, "deep-1", old.hash, [bytes([n]) * 16 for n in range(6)])
    assert clocks.carry(SCENARIO, new.hash) == 0, "there is no map yet"
    clocks.bring(new.hash, tmp_path / "1.onnx", unlabelled=100)
    clocks.learn(old.hash, new.hash)
    assert [clocks.carry(SCENARIO, new.hash) for _ in range(2)] == [1, 1]
    (carried,) = store.contributions(SCENARIO, new.hash)
    assert (carried.client, carried.meta[CARRIED]) == ("deep-1", old.hash)

    contribute(
        store, "deep-1", old.hash, [bytes([n]) * 16 for n in range(8)]
    )  # labelled more before it had the new one
    clocks.carry(SCENARIO, new.hash)
    assert len(store.contribution_records(SCENARIO, new.hash)["deep-1"]["covered"]) == 8
    contribute(store, "deep-1", new.hash, [bytes([n]) * 16 for n in range(8)])
    assert clocks.carry(SCENARIO, new.hash) == 0
    assert CARRIED not in store.contribution_records(SCENARIO, new.hash)["deep-1"]


def test_a_masked_sum_is_carried_whole_until_one_of_its_members_is_told_of_anew(
    clocks: Clocks, store: Store, make_sample: MakeSample, backbones: tuple[Backbone, Backbone], tmp_path: Path
) -> None:
    old, new = backbones
    upload(store, make_sample, old.hash, count=12)
    clocks.bring(new.hash, tmp_path / "1.onnx", unlabelled=100)
    clocks.learn(old.hash, new.hash)
    packed, _ = pack(CLASSES, np.random.default_rng(0).normal(size=(8, 12)), ["normal", "tear"] * 4)
    meta = {"classes": list(packed.classes), "covered": [], "round": "run-1", "parts": 1, "members": ["a-1", "b-1"]}
    store.put_contribution(SCENARIO, old.hash, f"{SUM}run-1", packed.arrays(), meta, 3)
    assert clocks.carry(SCENARIO, new.hash) == 1
    (carried,) = store.contributions(SCENARIO, new.hash)
    assert carried.members == ("a-1", "b-1")
    assert "round" not in carried.meta, "it answers no round"
    contribute(store, "b-1", new.hash, [bytes([n]) * 16 for n in range(4)])
    assert clocks.carry(SCENARIO, new.hash) == 0


@pytest.mark.parametrize(("own", "replaces"), [(10, True), (9, True), (8, False), (1, False)])
def test_a_gateway_in_the_middle_of_counting_again_does_not_replace_what_was_carried(own: int, replaces: bool) -> None:
    carried = {"covered": [f"{n:032x}" for n in range(10)], CARRIED: "a" * 64}
    assert supersedes(own, carried) is replaces
    assert supersedes(own, {"covered": carried["covered"]}), "what it counted itself before is always replaced"
    assert supersedes(own, None)
