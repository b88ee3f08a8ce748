"""`headframe bench labels`: how many labels does a site need, if what people label is chosen? Three questions.

*The cliff.* Heads learn two thirds of the scenes of a data set; every other scene is a site that nobody trained. Its
gateway chooses pictures with its own selection, those are labelled, and the site gets what the centre's own code gives
it: a personal head. Measured is the balanced accuracy within the scene, on the pictures that were not labelled, at a
tenth of the scene's pictures and at 20 labels a scene (of scenes with twice as many pictures). The gap is what an
untrained scene lies below pictures of trained scenes that were held out.

*Labels to half of the gain*, and *novel recall*: `simulations.bench._pools`.
"""

import math
import time
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.learning.candidates import Evidence, Labelled, Rules, make_candidates
from cloud.learning.gates import balanced_accuracy
from cloud.learning.heads import HeadWeights, principal_basis
from cloud.settings import LearningSettings
from common.manifest import SHARED
from common.messages import Prediction
from common.statistics import Statistics
from edge.selection import Candidate, Selector
from edge.settings import SelectionSettings
from edge.threads import one_thread_each
from simulations.bench._labels import every_set
from simulations.bench._pools import ELSEWHERE, HERE, OURS, measure, summarise
from simulations.bench._sites import Pictures, split

SEEDS, QUICK_SEEDS = 10, 3
CLIFF: Final = "belt-defects"
LABELS_A_SCENE: Final = 20
SHARE: Final = 0.10
SEEN_SHARE: Final = 0.2
"""Of the pictures of trained scenes, held out: what the model can do where it was trained."""
SECOND_NS: Final = 10**9
Rows = NDArray[np.integer]


def bench_labels(*, quick: bool) -> dict[str, Any]:
    """All three questions; the headlines are of the worst data set, measured where the labels are given."""
    began_s = time.monotonic()
    seeds = range(QUICK_SEEDS if quick else SEEDS)
    sets = list(every_set(quick=quick))
    console = Console(stderr=True)
    with one_thread_each():
        belts = next(pictures for pictures in sets if pictures.name == CLIFF)
        cliffs = [_cliff(belts, seed) for seed in track(seeds, "the cliff", console=console, transient=True)]
        pools = {
            f"{pictures.name}, {place}": summarise(
                [
                    measure(pictures, place, seed)
                    for seed in track(seeds, f"{pictures.name}, {place}", console=console, transient=True)
                ]
            )
            for pictures in sets
            for place in ((HERE, ELSEWHERE) if pictures.has_scenes and not quick else (HERE,))
        }
    here = [table for name, table in pools.items() if name.endswith(f", {HERE}")]
    cliff = {key: float(np.mean([found[key] for found in cliffs])) for key in cliffs[0]}
    return {
        "recovered_at_20": _recovered(cliff, "after_20"),
        "recovered_at_20_random": _recovered(cliff, "random_20"),
        "recovered_at_tenth": _recovered(cliff, "after_tenth"),
        "recovered_at_tenth_random": _recovered(cliff, "random_tenth"),
        "fewer_than_random": min(table["fewer_than_random"]["ratio"] for table in here),
        "fewer_than_sedna": min(table["fewer_than_sedna"]["ratio"] for table in here),
        "novel_recall": min(table["novel_recall"][OURS] for table in pools.values()),
        "cliff": {key: round(value, 4) for key, value in cliff.items()},
        "pools": pools,
        "seeds": len(seeds),
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _recovered(cliff: dict[str, float], key: str) -> float:
    """Share of the gap that the labels won back."""
    return (cliff[key] - cliff["before_" + key.split("_")[1]]) / (cliff["seen"] - cliff["before_" + key.split("_")[1]])


# --- the cliff ------------------------------------------------------------------------------------


def _cliff(pictures: Pictures, seed: int) -> dict[str, float]:
    """Balanced accuracies of one split."""
    rng = np.random.default_rng(seed)
    train, test = split(pictures, seed)
    train = rng.permutation(train)
    held, train = train[: round(SEEN_SHARE * len(train))], train[round(SEEN_SHARE * len(train)) :]
    base = Statistics.of(pictures.classes, pictures.embeddings[train], _names(pictures, train))
    basis = principal_basis(base, LearningSettings().dimensions)  # the centre's; once, it is most of the time
    pictures, base = replace(pictures, embeddings=(pictures.embeddings @ basis).astype(np.float32)), base.project(basis)
    seen = _heads(pictures, base, held, {})[SHARED]
    figures = {"seen": balanced_accuracy(_names(pictures, held), seen.predict(pictures.embeddings[held]))}
    scenes = {str(s): rng.permutation(test[pictures.scenes[test] == s]) for s in np.unique(pictures.scenes[test])}
    for suffix, count_of in (
        ("20", lambda n: LABELS_A_SCENE if n >= 2 * LABELS_A_SCENE else 0),
        ("tenth", lambda n: math.floor(SHARE * n)),
    ):
        chosen = {scene: rows for scene, rows in scenes.items() if count_of(len(rows))}
        ours = {s: rows[_choose(seen, pictures.embeddings[rows], count_of(len(rows)))] for s, rows in chosen.items()}
        chance = {s: rng.permutation(rows)[: count_of(len(rows))] for s, rows in chosen.items()}
        for name, labelled in (("after", ours), ("random", chance)):
            heads = _heads(pictures, base, held, labelled)
            before, after = [], []
            for scene, rows in chosen.items():
                rest = np.setdiff1d(rows, labelled[scene])
                truth = _names(pictures, rest)
                head = heads.get(scene) or heads[SHARED]
                before.append(balanced_accuracy(truth, seen.predict(pictures.embeddings[rest])))
                after.append(balanced_accuracy(truth, head.predict(pictures.embeddings[rest])))
            figures[f"{name}_{suffix}"] = float(np.mean(after))
            if name == "after":
                figures[f"before_{suffix}"] = float(np.mean(before))
        figures[f"labels_{suffix}"] = float(sum(map(len, ours.values())))
        figures[f"scenes_{suffix}"] = float(len(ours))
    return figures


def _heads(pictures: Pictures, base: Statistics, gold: Rows, labelled: dict[str, Rows]) -> dict[str, HeadWeights]:
    """What a training run makes of the labels of these sites."""
    settings = LearningSettings()
    parts, own, shared = {}, {}, base
    for site, rows in labelled.items():
        names = tuple(_names(pictures, rows))
        parts[site] = Statistics.of(pictures.classes, pictures.embeddings[rows], names)
        own[site] = Labelled(tuple(int(row).to_bytes(16, "big") for row in rows), pictures.embeddings[rows], names)
        shared = shared + parts[site]
    rest = Labelled(
        tuple(int(row).to_bytes(16, "big") for row in gold), pictures.embeddings[gold], tuple(_names(pictures, gold))
    )
    rules = Rules(settings.shrinkage, settings.personal_weight, 1, settings.tolerance, settings.dimensions)
    return make_candidates(Evidence(pictures.classes, shared, parts, own, rest, {}), rules).heads


def _names(pictures: Pictures, rows: Rows) -> list[str]:
    return [str(name) for name in pictures.labels[rows]]


def _choose(head: HeadWeights, embeddings: NDArray[np.floating], count: int) -> Rows:
    """Which of these pictures (n, d) the gateway's own selection takes, one camera, one picture a second."""
    settings = SelectionSettings(
        samples_per_hour=3600 * max(count - 1, 0.001) / len(embeddings), window_s=1e6, trickle=0.0, similarity_max=1.0
    )
    selector = Selector(settings, ["camera"])
    shares, novelties = head.probabilities(embeddings), head.novelty(embeddings)
    for number, embedding in enumerate(embeddings):
        said = Prediction("bench", head.classes, tuple(map(float, shares[number])), float(novelties[number]))
        selector.offer(Candidate("camera", (number + 1) * SECOND_NS, embedding, (said,), number))
    found = [choice.candidate.token for choice in selector.flush()]
    return np.array(found[:count], dtype=np.int64)
