"""A faster variant of a backbone goes out only while the heads say the same on it."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from cloud.learning.datasets import Catalogue, read_folder
from cloud.learning.heads import HeadWeights, calibrate, solve_lda
from cloud.learning.quantise import GOLD_MIN, measure_drift, quantise, read_gold, write_gold
from cloud.learning.training import Trainer
from cloud.learning.variants import make_variant
from cloud.registry import Registry
from cloud.settings import LearningSettings
from cloud.store import Store
from cloud.trust import Repository
from common.backbone import Backbone
from common.clock import SystemClock
from common.errors import OperatorError
from common.manifest import INT8
from common.statistics import Statistics

CLASSES = ("normal", "tear")


def pictures(count: int, seed: int = 0) -> list[np.ndarray]:
    """Dark ones and bright ones in turn, with noise."""
    rng = np.random.default_rng(seed)
    return [
        np.clip(rng.normal(90 if number % 2 else 160, 25, (12, 12, 3)), 0, 255).astype(np.uint8)
        for number in range(count)
    ]


@pytest.fixture
def backbone(tmp_path: Path, tiny_backbone: Callable[..., bytes]) -> Backbone:
    (tmp_path / "float.onnx").write_bytes(tiny_backbone())
    return Backbone.open(tmp_path / "float.onnx")


def test_the_variant_says_what_it_is_and_embeds_alike(backbone: Backbone, tmp_path: Path) -> None:
    seen = pictures(40)
    data = quantise((tmp_path / "float.onnx").read_bytes(), seen, backbone)
    (tmp_path / "int8.onnx").write_bytes(data)
    variant = Backbone.open(tmp_path / "int8.onnx")
    assert (variant.precision, variant.stands_for) == (INT8, backbone.hash)
    assert (variant.input_px, variant.dimension) == (backbone.input_px, backbone.dimension)
    assert variant.hash != backbone.hash
    for picture in pictures(10, seed=5):
        ours, theirs = variant.embed(picture), backbone.embed(picture)
        assert not np.array_equal(ours, theirs)
        assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.99
    again = quantise((tmp_path / "float.onnx").read_bytes(), seen, backbone)
    assert again == data, "the same pictures make the same layer"


def test_without_pictures_nothing_is_calibrated(backbone: Backbone, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="too few to calibrate"):
        quantise((tmp_path / "float.onnx").read_bytes(), pictures(3), backbone)


def head_and_samples(count: int = 200) -> tuple[HeadWeights, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    labels = [CLASSES[number % 2] for number in range(count)]
    x = rng.normal(0, 1, (count, 6))
    x[1::2, 0] += 4
    return calibrate(solve_lda(Statistics.of(CLASSES, x, labels), 0.1), x, labels), x, labels


def test_drift_is_told_from_none() -> None:
    head, x, labels = head_and_samples()
    same = measure_drift(head, "normal", labels, x, x, 0.02)
    assert same.passed
    assert (same.agreement, same.crossing) == (1.0, 0.0)
    noisy = measure_drift(head, "normal", labels, x, x + np.random.default_rng(1).normal(0, 2, x.shape), 0.02)
    assert not noisy.passed
    shifted = measure_drift(head, "normal", labels, x, x - [1.5, 0, 0, 0, 0, 0], 0.02)
    assert not shifted.passed
    tear = next(item for item in shifted.comparisons if item.name == "gold/tear")
    assert not tear.passed, "one class loses, whatever the mean says"


def test_what_cannot_be_judged_does_not_pass() -> None:
    head, x, labels = head_and_samples()
    few = GOLD_MIN - 1
    assert not measure_drift(head, "normal", labels[:few], x[:few], x[:few], 0.02).passed
    assert not measure_drift(head, "normal", [], x[:0], x[:0], 0.02).passed


def test_a_release_carries_a_variant_until_a_head_drifts_on_it(
    tmp_path: Path, store: Store, tiny_backbone: Callable[..., bytes]
) -> None:
    registry = Registry(tmp_path / "layers", store, Repository.open(tmp_path / "trust", SystemClock()), SystemClock())
    registry.set_backbone(tiny_backbone())
    layer, path = registry.backbone()
    for number, picture in enumerate(pictures(300)):
        folder = tmp_path / "pictures" / CLASSES[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    (tmp_path / "datasets").mkdir()
    catalogue = Catalogue(tmp_path / "datasets")
    with pytest.raises(OperatorError, match="gold picture of a dataset"):
        make_variant(registry, catalogue, [tmp_path / "pictures"])
    catalogue.add("base", "belt", read_folder(tmp_path / "pictures"), Backbone.open(path))
    trainer = Trainer(store, catalogue, registry, LearningSettings())

    trainer.run("without")
    assert registry.active().variants == ()  # type: ignore[union-attr]

    made = make_variant(registry, catalogue, [tmp_path / "pictures"])
    assert made.gold >= GOLD_MIN
    assert made.cosine > 0.99
    outcome = trainer.run("with")
    (variant,) = registry.active().variants  # type: ignore[union-attr]
    assert (variant.layer, variant.precision) == (made.layer, INT8)
    assert outcome.record["variants"][made.layer.hash]["drift"]["belt"]["*"]["passed"]  # type: ignore[index]

    (gold,) = read_gold(catalogue.folder, layer.hash)
    spoilt = np.random.default_rng(0).permutation(gold.embeddings)
    write_gold(
        catalogue.folder,
        type(gold)(gold.layer, gold.size_bytes, gold.precision, gold.backbone, gold.ids, spoilt),
    )
    outcome = trainer.run("spoilt")
    assert outcome.release_id, "the release itself goes out, on the float backbone"
    assert registry.active().variants == ()  # type: ignore[union-attr]
    assert outcome.record["variants"][made.layer.hash]["passed"] is False  # type: ignore[index]

    registry.roll_back(store.releases()[1].release_id, "back")
    assert registry.active().variants == (variant,), "an earlier release comes back with its own"  # type: ignore[union-attr]
