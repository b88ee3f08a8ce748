"""`headframe bench clocks`: the centre fine-tunes on a few uploads, the sites keep their pictures. What does that cost?

Real belts, split by scene: a third of the scenes is measured on and shown to nobody. The other scenes are sites; all
their pictures are labelled there, and of each class at most 24 came to the centre. The centre fine-tunes the backbone
on those (the default adapter), snaps it, and ships it; sites count again, and the head is solved from everybody's
statistics. Until they have counted, what they had is carried over by the linear map that the uploads teach. The bound
is a full fine-tune on every picture of every site in one place: its own softmax, or a head solved on it, whichever is
better in the mean. Everything is measured on what gateways would run: the snapped file, in ONNX Runtime.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cloud.finetuning.graph import Depth
from cloud.finetuning.tuning import Recipe, Tuned
from cloud.learning.carrying import learn_map
from cloud.learning.datasets import Item, read_folder
from cloud.learning.export import export_default_backbone, export_head
from cloud.learning.gates import balanced_accuracy
from common.ids import layer_hash
from common.packing import pack
from common.statistics import Statistics
from simulations.bench._learners import solve
from simulations.bench._sites import Pictures, Rows, embed_items, mean_and_error, split
from simulations.bench._tuning import embed, snap_tuned, tune
from simulations.data import find_data

SEEDS, QUICK_SEEDS = 5, 1
LABELS_MAX, QUICK_LABELS_MAX = 24, 12
QUICK_PER_SCENE = 3  # pictures of a class in a scene
ADAPTER = Recipe()
JOINT = Recipe(Depth.FULL, epochs=12, distillation=0.0)
QUICK_EPOCHS, QUICK_BATCH = 1, 8
JUDGED = 120  # pictures on which the snapped backbone must say what the tuned one does
FROZEN, CLOCKS, CARRIED = (
    "frozen backbone",
    "two clocks, sites have counted again",
    "two clocks, sites carried by the map",
)
STALE, OLD_HEAD = "two clocks, old statistics as they are", "new backbone under the old head"
UPLOADS, UPLOADS_SOFTMAX = "uploads alone", "uploads alone, softmax"
JOINT_HEAD, JOINT_SOFTMAX = "joint full fine-tune, head solved", "joint full fine-tune, softmax"
Scores = dict[str, tuple[float, float]]
"""learner -> accuracy and balanced accuracy, in points"""


@dataclass(frozen=True, slots=True)
class World:
    """The pictures, and what the first backbone says of them."""

    items: list[Item]
    base: bytes
    seen: Pictures

    @property
    def classes(self) -> tuple[str, ...]:
        return self.seen.classes

    def statistics(self, embeddings: NDArray[np.floating], rows: Rows) -> Statistics:
        return Statistics.of(self.classes, embeddings[rows], self.seen.labels[rows].tolist())

    def score(self, said: Sequence[str], rows: Rows) -> tuple[float, float]:
        truth = self.seen.labels[rows]
        return 100 * float((np.array(said) == truth).mean()), 100 * balanced_accuracy(truth.tolist(), said)

    def pick(self, rows: Rows) -> list[Item]:
        return [self.items[row] for row in rows]

    def uploads(self, train: Rows, seed: int, most: int) -> Rows:
        """So many of each class, by chance."""
        rng = np.random.default_rng(seed)
        labels = self.seen.labels
        parts = [rng.permutation(train[labels[train] == name])[:most] for name in self.classes]
        return np.sort(np.concatenate(parts))


@dataclass(frozen=True, slots=True)
class Found:
    """One seed."""

    scores: Scores
    up_bytes: float
    """Of a site's statistics, when it has counted again; mean"""
    pictures_bytes: int
    """Of all uploads"""
    down_bytes: int
    """Delta of the backbone and a head"""
    explained: float
    """Share of the variance of the new embeddings of other pictures that the map foretells"""
    tune_s: float
    joint_s: float
    """CPU"""


def bench_clocks(*, quick: bool) -> dict[str, Any]:
    """Both clocks, and the bound, over seeds of scenes and uploads."""
    began_s = time.monotonic()
    world = read_world(quick=quick)
    console = Console(stderr=True)
    found = []
    for seed in range(QUICK_SEEDS if quick else SEEDS):
        console.log(f"seed {seed}")
        found.append(measure(world, seed, quick=quick))
    return report(world, found) | {"seconds": round(time.monotonic() - began_s, 1)}


def read_world(*, quick: bool) -> World:
    """The belts, embedded; quick takes a few pictures of each class in each scene."""
    items = read_folder(find_data("belt-defects"))
    if quick:
        count: dict[tuple[str, str], int] = {}
        for item in items:
            count[item.site, item.label] = count.get((item.site, item.label), 0) + 1
        seen: dict[tuple[str, str], int] = {}
        kept = []
        for item in items:
            key = item.site, item.label
            seen[key] = seen.get(key, 0) + 1
            if seen[key] <= QUICK_PER_SCENE:
                kept.append(item)
        items = kept
    base = export_default_backbone()
    return World(items, base, embed_items("belts", items, base))


def measure(world: World, seed: int, *, quick: bool) -> Found:
    """One split by scene, one draw of uploads."""
    train, test = split(world.seen, seed)
    uploads = world.uploads(train, seed, QUICK_LABELS_MAX if quick else LABELS_MAX)
    rest = np.setdiff1d(train, uploads)
    old = world.seen.embeddings
    tuned, tune_s = _tune(world, uploads, _recipe(ADAPTER, seed, quick))
    snapped, delta = _snap(world, tuned, uploads)
    new = embed(snapped, world.items)
    counted_up = world.statistics(new, uploads)
    carrying = learn_map(old[uploads], new[uploads], world.seen.scenes[uploads].tolist())
    carried, up_bytes = counted_up, []
    for scene in np.unique(world.seen.scenes[rest]):
        own = rest[world.seen.scenes[rest] == scene]
        labels = world.seen.labels[own].tolist()
        packed, _ = pack(world.classes, old[own], labels)
        carried = carried + carrying.carry(packed).statistics().over(world.classes)
        up_bytes.append(sum(array.nbytes for array in pack(world.classes, new[own], labels)[0].arrays().values()))
    heads = {
        CLOCKS: solve(world.statistics(new, train)),
        CARRIED: solve(carried),
        STALE: solve(counted_up + world.statistics(old, rest)),
        OLD_HEAD: solve(world.statistics(old, train)),
        UPLOADS: solve(counted_up),
    }
    scores = {name: world.score(head.predict(new[test]), test) for name, head in heads.items()}
    scores[FROZEN] = world.score(heads[OLD_HEAD].predict(old[test]), test)
    scores[UPLOADS_SOFTMAX] = world.score(_softmax(tuned, new[test]), test)
    joint, joint_s = _tune(world, train, _recipe(JOINT, seed, quick))
    bound = embed(joint.data, world.items)
    scores[JOINT_HEAD] = world.score(solve(world.statistics(bound, train)).predict(bound[test]), test)
    scores[JOINT_SOFTMAX] = world.score(_softmax(joint, bound[test]), test)
    explained = 1 - float(((carrying.embeddings(old[rest]) - new[rest]) ** 2).sum() / _variance(new[rest]))
    head_bytes = len(export_head(heads[CLOCKS], "belt", layer_hash(snapped)))
    return Found(
        scores,
        float(np.mean(up_bytes)),
        int(world.seen.file_bytes[uploads].sum()),
        len(delta) + head_bytes,
        explained,
        tune_s,
        joint_s,
    )


def report(world: World, found: Sequence[Found]) -> dict[str, Any]:
    """The figures, means over the seeds; gaps are differences within a seed."""
    accuracy, balanced = (
        {name: [one.scores[name][which] for one in found] for name in found[0].scores} for which in (0, 1)
    )
    figures: dict[str, Any] = {}
    for ending, scores in (("", accuracy), ("_balanced", balanced)):
        bound = max((JOINT_HEAD, JOINT_SOFTMAX), key=lambda name: float(np.mean(scores[name])))
        figures |= {
            f"gap_to_joint{ending}": _gap(scores, bound, CLOCKS),
            f"gap_carried{ending}": _gap(scores, bound, CARRIED),
            f"gap_not_carried{ending}": _gap(scores, bound, STALE),
            f"won_over_frozen{ending}": _gap(scores, CLOCKS, FROZEN),
            f"errors{ending}": mean_and_error(np.subtract(scores[bound], scores[CLOCKS]).tolist()),
        }
    return figures | {
        "bytes_up_per_site": round(float(np.mean([one.up_bytes for one in found]))),
        "bytes_of_uploads": round(float(np.mean([one.pictures_bytes for one in found]))),
        "bytes_down": round(float(np.mean([one.down_bytes for one in found]))),
        "share_of_the_model_down": round(float(np.mean([one.down_bytes for one in found])) / len(world.base), 5),
        "explained_by_the_map": round(float(np.mean([one.explained for one in found])), 3),
        "cpu_s": {
            "two clocks": round(float(np.mean([one.tune_s for one in found]))),
            "joint": round(float(np.mean([one.joint_s for one in found]))),
        },
        "table": [
            {
                "learner": name,
                "accuracy": mean_and_error(accuracy[name]),
                "balanced": mean_and_error(balanced[name]),
            }
            for name in sorted(accuracy, key=lambda name: -float(np.mean(accuracy[name])))
        ],
        "pictures": len(world.items),
        "seeds": len(found),
    }


def _gap(scores: Mapping[str, list[float]], one: str, other: str) -> float:
    return round(float(np.mean(np.subtract(scores[one], scores[other]))), 2)


def _recipe(recipe: Recipe, seed: int, quick: bool) -> Recipe:
    recipe = replace(recipe, seed=seed)
    return replace(recipe, epochs=QUICK_EPOCHS, batch=QUICK_BATCH) if quick else recipe


def _tune(world: World, rows: Rows, recipe: Recipe) -> tuple[Tuned, float]:
    """A fine-tune on these pictures, and the CPU that it took."""
    began_s = time.process_time()
    return tune(world.base, world.pick(rows), recipe), time.process_time() - began_s


def _snap(world: World, tuned: Tuned, uploads: Rows) -> tuple[bytes, bytes]:
    """The file that ships, and its delta."""
    items = world.pick(uploads)
    head = solve(Statistics.of(world.classes, embed(tuned.data, items), [item.label for item in items]))
    snapped = snap_tuned(world.base, tuned.data, head, items[:: max(1, len(items) // JUDGED)], items)
    return snapped.data, snapped.delta(world.base)


def _softmax(tuned: Tuned, embeddings: NDArray[np.floating]) -> list[str]:
    """What the head says that pulled at the embedding."""
    assert tuned.head is not None  # noqa: S101  # a Tuning's result has one
    weights, bias = tuned.head
    return [tuned.classes[place][1] for place in (embeddings @ weights.T + bias).argmax(axis=1)]


def _variance(rows: NDArray[np.floating]) -> float:
    return float(((rows - rows.mean(axis=0)) ** 2).sum())
