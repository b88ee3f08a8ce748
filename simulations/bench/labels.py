"""`headframe bench labels`: how many labels does a site need, if the edge chooses what is labelled? Three questions.

*The cliff.* Heads learn two thirds of the scenes of a data set; every other scene is a site that nobody trained. Its
gateway chooses pictures with its own selection, those are labelled, and the site gets what the centre's own code gives
it: a personal head. Measured is the balanced accuracy within the scene, on the pictures that were not labelled, at a
tenth of the scene's pictures and at 20 labels a scene (of scenes with twice as many pictures). The gap is what an
untrained scene lies below pictures of trained scenes that were held out.

*Labels to half of the gain.* Two classes are held out of training and are one in twenty of a pool. Batches of five
are chosen, labelled and learnt, until half of what labelling the whole pool would gain is gained. Chosen by the value
that the edge's selection gives (the order of the review queue), by its window (what it would upload), by chance, and by
the best of Sedna's rules (the best after the fact), each with the newest head.

*Novel recall.* Of the held-out classes' pictures, the share among the first tenth of the pool that is chosen so.
"""

import math
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.learning.candidates import Evidence, Labelled, Rules, make_candidates
from cloud.learning.gates import balanced_accuracy
from cloud.learning.heads import HeadWeights, calibrate, principal_basis, solve_lda
from cloud.settings import LearningSettings
from common.manifest import SHARED
from common.messages import Prediction
from common.statistics import Statistics
from edge.selection import Candidate, Selector, Sight
from edge.selection.rules import Rule, SednaCrossEntropy, SednaIBT, SednaThreshold
from edge.settings import SelectionSettings
from edge.threads import one_thread_each
from simulations.bench._labels import generated_belts
from simulations.bench._sites import Pictures, embed_folder, find_folders, mean_and_error, split

SEEDS, QUICK_SEEDS = 10, 3
CLIFF: Final = "belt-defects"
LABELS_A_SCENE: Final = 20
SHARE: Final = 0.10
SEEN_SHARE: Final = 0.2
"""Of the pictures of trained scenes, held out: what the model can do where it was trained."""
BATCH: Final = 5
DIRECTIONS: Final = 256
SHRINKAGE: Final = 0.3
NOVEL_SHARE: Final = 0.05
NOVEL_MIN: Final = 6
SECOND_NS: Final = 10**9
OURS, CHANCE = "ours", "random"
SEDNA: Final[dict[str, Rule]] = {
    "sedna_threshold": SednaThreshold(),
    "sedna_cross_entropy": SednaCrossEntropy(),
    "sedna_ibt": SednaIBT(),
}
Rows = NDArray[np.integer]
Choose = Callable[[HeadWeights, NDArray[np.floating], int, np.random.Generator], Rows]


def bench_labels(*, quick: bool) -> dict[str, Any]:
    """All three questions."""
    began_s = time.monotonic()
    seeds = QUICK_SEEDS if quick else SEEDS
    sets = [embed_folder(folder) for folder in find_folders()]
    sets.append(generated_belts(quick=quick))
    console = Console(stderr=True)
    with one_thread_each():
        belts = next(pictures for pictures in sets if pictures.name == CLIFF)
        cliffs = [_cliff(belts, seed) for seed in track(range(seeds), "the cliff", console=console, transient=True)]
        pools = {
            pictures.name: [
                _pool(pictures, seed) for seed in track(range(seeds), pictures.name, console=console, transient=True)
            ]
            for pictures in sets
        }
    tables = {name: _pool_summary(found) for name, found in pools.items()}
    cliff = {key: float(np.mean([found[key] for found in cliffs])) for key in cliffs[0]}
    return {
        "recovered_at_20": _recovered(cliff, "after_20"),
        "recovered_at_20_random": _recovered(cliff, "random_20"),
        "recovered_at_tenth": _recovered(cliff, "after_tenth"),
        "recovered_at_tenth_random": _recovered(cliff, "random_tenth"),
        "fewer_than_random": min(table["fewer_than_random"] for table in tables.values()),
        "fewer_than_sedna": min(table["fewer_than_sedna"] for table in tables.values()),
        "novel_recall": min(table["novel_recall"][OURS] for table in tables.values()),
        "cliff": {key: round(value, 4) for key, value in cliff.items()},
        "pools": tables,
        "seeds": seeds,
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


# --- labels to half of the gain, novel recall -----------------------------------------------------


def _by_window(head: HeadWeights, left: NDArray[np.floating], count: int, rng: np.random.Generator) -> Rows:
    del rng
    return _choose(head, left, count)


def _by_value(head: HeadWeights, left: NDArray[np.floating], count: int, rng: np.random.Generator) -> Rows:
    """The most valuable first, as the review queue shows them; a gateway has seen much before, so it sees all twice."""
    del rng
    selector = Selector(SelectionSettings(), ["camera"])
    shares, novelties = head.probabilities(left), head.novelty(left)
    values = np.zeros(len(left))
    for number in range(2 * len(left)):
        row = number % len(left)
        said = Prediction("bench", head.classes, tuple(map(float, shares[row])), float(novelties[row]))
        candidate = Candidate("camera", (number + 1) * SECOND_NS, left[row], (said,), None)
        values[row] = selector.appraise(candidate).value
    return np.argsort(-values)[:count]


def _chance(head: HeadWeights, left: NDArray[np.floating], count: int, rng: np.random.Generator) -> Rows:
    del head
    return rng.permutation(len(left))[:count]


def _by_rule(rule: Rule) -> Choose:
    def choose(head: HeadWeights, left: NDArray[np.floating], count: int, rng: np.random.Generator) -> Rows:
        shares, novelties = head.probabilities(left), head.novelty(left)
        scores = [
            rule.score(
                Sight(
                    Candidate(
                        "camera", 0, row, (Prediction("bench", head.classes, tuple(share), float(novelty)),), None
                    ),
                    0.0,
                )
            )
            for row, share, novelty in zip(left, shares.tolist(), novelties, strict=True)
        ]
        return np.lexsort((rng.random(len(scores)), -np.array(scores)))[:count]

    return choose


METHODS: Final[dict[str, Choose]] = {
    OURS: _by_value,
    "ours_by_window": _by_window,
    CHANCE: _chance,
    **{name: _by_rule(rule) for name, rule in SEDNA.items()},
}


def _pool(pictures: Pictures, seed: int) -> dict[str, tuple[float, float]]:
    """method -> labels to half of the gain, and novel recall at a tenth of the pool."""
    rng = np.random.default_rng(seed)
    names = [name for name in pictures.classes if name != "normal"]
    novel = [str(name) for name in rng.permutation(names)[:2]]
    first, test = split(pictures, seed)
    is_novel = np.isin(pictures.labels, novel)
    known = rng.permutation(first[~is_novel[first]])
    train, ordinary = known[: len(known) // 2], known[len(known) // 2 :]
    rare = rng.permutation(first[is_novel[first]])[: max(NOVEL_MIN, round(NOVEL_SHARE * len(ordinary)))]
    pool = rng.permutation(np.concatenate([ordinary, rare]))
    x = pictures.embeddings.astype(np.float64)
    basis = principal_basis(Statistics.of(pictures.classes, x[train], _names(pictures, train)), DIRECTIONS)
    x = x @ basis

    gold, train = train[::5], np.delete(train, np.s_[::5])

    def head(labelled: Rows) -> HeadWeights:
        chosen = np.concatenate([train, labelled])
        made = solve_lda(Statistics.of(pictures.classes, x[chosen], _names(pictures, chosen)), SHRINKAGE)
        return calibrate(made, x[gold], _names(pictures, gold))

    def score(made: HeadWeights) -> float:
        return balanced_accuracy(_names(pictures, test), made.predict(x[test]))

    base, full = score(head(pool[:0])), score(head(pool))
    goal = base + (full - base) / 2
    found = {}
    for name, choose in METHODS.items():
        found[name] = _follow(
            choose, pool, x, head, lambda made: score(made) >= goal, is_novel, np.random.default_rng(seed)
        )
    return found


def _follow(
    choose: Choose,
    pool: Rows,
    x: NDArray[np.float64],
    head: Callable[[Rows], HeadWeights],
    reached: Callable[[HeadWeights], bool],
    is_novel: NDArray[np.bool_],
    rng: np.random.Generator,
) -> tuple[float, float]:
    labelled: Rows = pool[:0]
    half, recall = float(len(pool)), math.nan
    tenth = math.floor(SHARE * len(pool))
    made = head(labelled)
    while len(labelled) < len(pool) and (half == len(pool) or math.isnan(recall)):
        left = np.setdiff1d(pool, labelled)
        count = min(BATCH, len(left))
        if len(labelled) < tenth < len(labelled) + count:
            count = tenth - len(labelled)
        taken = left[choose(made, x[left], count, rng)]
        labelled = np.concatenate([labelled, taken if len(taken) else left[:count]])
        made = head(labelled)
        if half == len(pool) and reached(made):
            half = float(len(labelled))
        if len(labelled) >= tenth and math.isnan(recall):
            recall = float(is_novel[labelled].sum() / is_novel[pool].sum())
    return half, recall


def _pool_summary(found: Sequence[dict[str, tuple[float, float]]]) -> dict[str, Any]:
    labels, recall = defaultdict(list), defaultdict(list)
    for run in found:
        for name, (half, share) in run.items():
            labels[name].append(half)
            recall[name].append(share)
    mean = {name: float(np.mean(values)) for name, values in labels.items()}
    return {
        "fewer_than_random": mean[CHANCE] / mean[OURS],
        "fewer_than_sedna": min(mean[name] for name in SEDNA) / mean[OURS],
        "labels_to_half": {name: mean_and_error(values) for name, values in labels.items()},
        "novel_recall": {name: round(float(np.mean(values)), 3) for name, values in recall.items()},
    }
