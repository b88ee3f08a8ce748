"""`headframe bench poison`: a fifth of the sites lie. What does it cost, are they named, and who is accused wrongly?

Sites share the training pictures out by Dirichlet 0.1; those below the minimum of samples do not contribute. Then 20 %
of the contributing sites flip their labels (each in a way of its own, or all in the same), or scale their statistics.
The centre holds a small trusted set. Compared are the head of the clean run, of the defended and of the open centre.
"""

import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cloud.learning.robustness import Trusted, find_suspects
from common.statistics import Statistics
from simulations.bench._learners import add_up, solve
from simulations.bench._sites import Pictures, embed_folder, find_folders, mean_and_error, partition, split

SEEDS, QUICK_SEEDS = 5, 1
SITES = 50
POISONED = 0.2
SAMPLES_MIN = 6  # below it a site is not asked: too few to judge, and too few to be private
TRUSTED_PER_CLASS = 5
ATTACKS = ("flipped labels", "colluding flips", "scaled statistics", "scaled sums")


@dataclass(frozen=True, slots=True)
class Result:
    """One attack on one seed; accuracies in points, shares 0..1."""

    clean: float
    defended: float
    open: float
    named: float
    wrongly: float


def bench_poison(*, quick: bool) -> dict[str, object]:
    """Every attack on every data set and seed."""
    began_s = time.monotonic()
    results: dict[tuple[str, str], list[Result]] = defaultdict(list)
    for folder in find_folders():
        pictures = embed_folder(folder)
        for seed in range(QUICK_SEEDS if quick else SEEDS):
            for attack, result in _attacks(pictures, seed).items():
                results[pictures.name, attack].append(result)
    rows = [row for found in results.values() for row in found]
    return {
        "accuracy_loss": max(float(np.mean([r.clean - r.defended for r in found])) for found in results.values()),
        "named": float(np.mean([row.named for row in rows])),
        "wrongly_quarantined": float(np.mean([row.wrongly for row in rows])),
        "seeds": QUICK_SEEDS if quick else SEEDS,
        "table": [
            {
                "data": name,
                "attack": attack,
                "clean": mean_and_error([r.clean for r in found]),
                "defended": mean_and_error([r.defended for r in found]),
                "open": mean_and_error([r.open for r in found]),
                "named": mean_and_error([r.named for r in found]),
                "wrongly_quarantined": mean_and_error([r.wrongly for r in found]),
            }
            for (name, attack), found in results.items()
        ],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _attacks(pictures: Pictures, seed: int) -> dict[str, Result]:
    """All attacks on the same honest sites."""
    train, test = split(pictures, seed)
    rng = np.random.default_rng(seed)
    x, y, classes = pictures.embeddings, pictures.labels, pictures.classes
    gold = np.concatenate([rng.permutation(train[y[train] == name])[:TRUSTED_PER_CLASS] for name in classes])
    homes = partition(y, np.setdiff1d(train, gold), SITES, "dirichlet", seed)
    homes = {site: rows for site, rows in homes.items() if len(rows) >= SAMPLES_MIN}
    honest = {site: Statistics.of(classes, x[rows], [str(n) for n in y[rows]]) for site, rows in homes.items()}
    liars = set(rng.choice(sorted(honest), max(1, round(POISONED * len(honest))), replace=False).tolist())
    trusted = Trusted(
        Statistics.empty(classes, x.shape[1]), x[gold].astype(np.float64), tuple(str(name) for name in y[gold])
    )

    def accuracy(parts: Mapping[str, Statistics]) -> float:
        said = np.array(solve(add_up(parts.values())).predict(x[test]))
        return 100 * float((said == y[test]).mean())

    clean = accuracy(honest)
    found = {}
    for attack in ATTACKS:
        sent = {site: poison(part, attack, rng) if site in liars else part for site, part in honest.items()}
        named = {suspect.site for suspect in find_suspects(sent, trusted)}
        found[attack] = Result(
            clean,
            accuracy({site: part for site, part in sent.items() if site not in named}),
            accuracy(sent),
            len(named & liars) / len(liars),
            len(named - liars) / (len(honest) - len(liars)),
        )
    return found


def poison(part: Statistics, attack: str, rng: np.random.Generator) -> Statistics:
    """What a lying site sends instead: still well-formed, so the checks of the wire let it pass."""
    if attack == "scaled statistics":
        factor = float(rng.choice([0.3, 3.0, 10.0]))
        return Statistics(part.classes, part.counts, part.sums * factor, part.moment * factor**2)
    if attack == "scaled sums":
        factor = float(rng.choice([3.0, 10.0]))  # a moment as large as the sums ask for
        return Statistics(
            part.classes, part.counts, part.sums * factor, part.moment * factor**2 + np.eye(part.dimension)
        )
    order = (
        np.roll(np.arange(len(part.classes)), 1) if attack == "colluding flips" else derangement(len(part.classes), rng)
    )
    return Statistics(part.classes, part.counts[order], part.sums[order], part.moment)


def derangement(size: int, rng: np.random.Generator) -> NDArray[np.integer]:
    """An order in which nothing stays at its place."""
    while True:
        order: NDArray[np.integer] = rng.permutation(size)
        if not (order == np.arange(size)).any():
            return order
