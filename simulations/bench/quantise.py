"""What int8 saves and what it costs: EfficientNet-Lite0 on real belts, through the centre's own path.

The variant is made and judged as a release does it. Comparators in the same run: the float backbone; the int8 model
that came with the data, made by the common recipe with every layer quantised; and, as the measure of what disagreement
is worth, two heads solved from different nine tenths of the same data.
"""

import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.learning.candidates import Labelled
from cloud.learning.datasets import Catalogue, Dataset, Item, read_folder
from cloud.learning.gates import balanced_accuracy
from cloud.learning.heads import HeadWeights, calibrate, lift, principal_basis, solve_lda
from cloud.learning.quantise import AGREEMENT_MIN, embed_all, measure_drift, read_gold
from cloud.learning.variants import make_variant
from cloud.registry import Registry
from cloud.settings import LearningSettings
from cloud.store import Store
from cloud.trust import Repository
from common.backbone import Backbone
from common.clock import SystemClock
from common.pictures import read_picture
from common.statistics import Statistics
from edge.threads import one_thread_each
from simulations.bench._edge_models import write_int8_backbone
from simulations.data import find_data

SCENARIO: Final = "belt"
QUICK_PICTURES: Final = 500
CPU_PASSES: Final = 60


def bench_quantise(*, quick: bool) -> dict[str, Any]:
    """Figures of docs/benchmarks.md, `quantise`."""
    with tempfile.TemporaryDirectory() as name, one_thread_each():
        folder = Path(name)
        pictures = _pictures(folder, quick=quick)
        store = Store.open(f"sqlite:///{folder / 'centre.db'}", folder / "blobs")
        try:
            return _measure(folder, pictures, store)
        finally:
            store.close()


def _measure(folder: Path, pictures: Path, store: Store) -> dict[str, Any]:
    registry = Registry(folder / "layers", store, Repository.open(folder / "trust", SystemClock()), SystemClock())
    (folder / "datasets").mkdir()
    catalogue = Catalogue(folder / "datasets")
    layer, path = registry.backbone()
    backbone = Backbone.open(path)
    items = read_folder(pictures)
    dataset = catalogue.add("belts", SCENARIO, items, backbone)
    began_s = time.process_time()
    made = make_variant(registry, catalogue, [pictures])
    made_s = time.process_time() - began_s
    (gold,) = read_gold(catalogue.folder, layer.hash)
    head, other = _head(dataset, 0), _head(dataset, 1)
    rows, on_variant = gold.of(dataset.gold.ids)
    known = dataset.gold.pick(np.isin(np.arange(len(dataset.gold.ids)), rows))
    drift = measure_drift(head, "normal", known.labels, known.embeddings, on_variant, LearningSettings().tolerance)
    ready = _ready_made(folder, items, dataset, known, head)
    variant = Backbone.open(registry.layer_path(made.layer.hash))
    return {
        "speedup": _cpu_s(backbone) / _cpu_s(variant),
        "agreement": drift.agreement,
        "agreement_of_a_refit": float(np.mean(_same(head, other, known.embeddings))),
        "crossing": drift.crossing,
        "balanced_accuracy_float": balanced_accuracy(known.labels, head.predict(known.embeddings)),
        "balanced_accuracy_int8": balanced_accuracy(known.labels, head.predict(on_variant)),
        "cosine": made.cosine,
        "passed": drift.passed,
        "agreement_min": AGREEMENT_MIN,
        **ready,
        "bytes_ratio": layer.size_bytes / made.layer.size_bytes,
        "made_s": made_s,
        "gold": len(known.labels),
    }


def _pictures(folder: Path, *, quick: bool) -> Path:
    """The labelled patches, one folder per class; in the quick form every n-th of each scene's."""
    source = find_data("belt-defects")
    if not quick:
        return source
    items = read_folder(source)
    for item in items[:: max(1, len(items) // QUICK_PICTURES)]:
        (folder / "pictures" / item.label).mkdir(parents=True, exist_ok=True)
        (folder / "pictures" / item.label / item.path.name).symlink_to(item.path)
    return folder / "pictures"


def _head(dataset: Dataset, seed: int) -> HeadWeights:
    """Solved from nine tenths of what is not gold, as a release solves it."""
    train = Labelled(dataset.ids, dataset.embeddings, dataset.labels).pick(~dataset.is_gold)
    kept = train.pick(np.random.default_rng(seed).random(len(train.labels)) < 0.9)
    settings = LearningSettings()
    statistics = Statistics.of(dataset.classes, kept.embeddings, kept.labels)
    basis = principal_basis(statistics, settings.dimensions)
    solved = solve_lda(statistics.project(basis), settings.shrinkage)
    gold = dataset.gold.project(basis)
    return lift(calibrate(solved, gold.embeddings, list(gold.labels)), basis)


def _same(a: HeadWeights, b: HeadWeights, embeddings: NDArray[np.floating]) -> list[bool]:
    return [x == y for x, y in zip(a.predict(embeddings), b.predict(embeddings), strict=True)]


def _ready_made(
    folder: Path, items: list[Item], dataset: Dataset, known: Labelled, head: HeadWeights
) -> dict[str, float]:
    """The comparator: every layer quantised, by the common recipe."""
    backbone = Backbone.open(write_int8_backbone(folder))
    paths = dict(zip(dataset.ids, (item.path for item in items), strict=True))
    embeddings = embed_all(backbone, [read_picture(paths[name]) for name in known.ids])
    drift = measure_drift(head, "normal", known.labels, known.embeddings, embeddings, LearningSettings().tolerance)
    return {
        "agreement_all_layers": drift.agreement,
        "crossing_all_layers": drift.crossing,
        "balanced_accuracy_all_layers": balanced_accuracy(known.labels, head.predict(embeddings)),
    }


def _cpu_s(backbone: Backbone) -> float:
    """CPU seconds of a pass, the median over passes."""
    noise = np.random.default_rng(0).integers(0, 255, (backbone.input_px, backbone.input_px, 3), dtype=np.uint8)
    spent_s = []
    for _ in range(CPU_PASSES):
        began_s = time.process_time()
        backbone.embed(noise)
        spent_s.append(time.process_time() - began_s)
    return float(np.median(spent_s))
