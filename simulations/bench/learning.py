"""`headframe bench learning`: many sites with few classes each, classes arriving in phases. Who ends nearest the bound?

The bound is a logistic head trained on all data in one place on the same frozen backbone, its penalty chosen by
cross-validation. Ours travels as it does in production: each site's statistics, packed into Flower messages, unpacked,
added, solved. The others are Flower's own strategies on the same embeddings, and Sedna's hard-example fine-tuning.
"""

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from cloud.learning.gates import balanced_accuracy
from cloud.learning.heads import HeadWeights
from common.statistics import Statistics
from simulations.bench._learners import (
    PENALTIES,
    Linear,
    Local,
    add_up,
    choose_penalty,
    contribute,
    fine_tune_hard,
    fit_joint,
    run_flower,
    solve,
    untrained,
)
from simulations.bench._sites import (
    Pictures,
    Rows,
    embed_folder,
    find_folders,
    mean_and_error,
    partition,
    phases_of,
    split,
)

SEEDS, QUICK_SEEDS = 5, 1
SITES, QUICK_SITES = (50, 200), (50,)
ROUNDS, QUICK_ROUNDS = 20, 6
FOLDS, QUICK_FOLDS = 5, 2
QUICK_PENALTIES = (0.1, 1.0)
CLIENTS_A_ROUND = 50
PARTITIONS = ("dirichlet", "one-class")
OURS, JOINT = "Headframe", "joint logistic"
Head = HeadWeights | Linear


@dataclass(frozen=True, slots=True)
class Stage:
    """One data set and seed: what is learnt from, what is measured on, and in which order classes come."""

    pictures: Pictures
    train: Rows
    test: Rows
    phases: list[tuple[str, ...]]
    seed: int

    def seen(self, phase: int) -> tuple[str, ...]:
        """Classes that have arrived by the end of a phase."""
        return tuple(name for part in self.phases[: phase + 1] for name in part)

    def rows_of(self, classes: tuple[str, ...], rows: Rows) -> Rows:
        return rows[np.isin(self.pictures.labels[rows], classes)]

    def accuracy(self, head: Head, classes: tuple[str, ...] | None = None) -> float:
        """Share of the test pictures (of these classes) named rightly, in points."""
        rows = self.test if classes is None else self.rows_of(classes, self.test)
        said = np.array(head.predict(self.pictures.embeddings[rows]))
        return 100 * float((said == self.pictures.labels[rows]).mean())

    def balanced(self, head: Head) -> float:
        said = head.predict(self.pictures.embeddings[self.test])
        return 100 * balanced_accuracy(list(self.pictures.labels[self.test]), said)


@dataclass(frozen=True, slots=True)
class Result:
    """One learner, one seed of one setting; accuracies in points."""

    accuracy: float
    balanced: float
    forgetting: float
    bytes_up: float
    seconds: float


@dataclass
class Figures:
    """Everything measured so far."""

    results: dict[tuple[str, int, str, str], list[Result]] = field(default_factory=lambda: defaultdict(list))
    """(data set, sites, partition, learner) -> one per seed."""
    differences: list[float] = field(default_factory=list)
    disagreements: int = 0


def bench_learning(*, quick: bool) -> dict[str, object]:
    """Every learner on every setting."""
    began_s = time.monotonic()
    figures = Figures()
    console = Console(stderr=True)
    for folder in find_folders():
        pictures = embed_folder(folder)
        for seed in range(QUICK_SEEDS if quick else SEEDS):
            console.log(f"{pictures.name}: seed {seed}")
            train, test = split(pictures, seed)
            stage = Stage(pictures, train, test, phases_of(pictures.classes, seed), seed)
            _measure(stage, figures, quick)
    return _report(figures) | {
        "seeds": QUICK_SEEDS if quick else SEEDS,
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _measure(stage: Stage, figures: Figures, quick: bool) -> None:
    """All settings of one data set and seed. What does not depend on the sites is solved once."""
    joint = _joint(stage, QUICK_FOLDS if quick else FOLDS, QUICK_PENALTIES if quick else PENALTIES)
    x, y, classes = stage.pictures.embeddings, stage.pictures.labels, stage.pictures.classes
    in_one_place = [
        Statistics.of(classes, x[rows], [str(name) for name in y[rows]])
        for rows in (stage.rows_of(stage.seen(phase), stage.train) for phase in range(len(stage.phases)))
    ]
    ours = [solve(statistics) for statistics in in_one_place]
    for sites in QUICK_SITES if quick else SITES:
        for how in PARTITIONS:
            homes = partition(y, stage.train, sites, how, stage.seed)
            found = {JOINT: joint, OURS: _ours(stage, homes, ours, figures)}
            found |= dict(_gradient(stage, homes, QUICK_ROUNDS if quick else ROUNDS))
            for learner, result in found.items():
                figures.results[stage.pictures.name, sites, how, learner].append(result)


def _result(stage: Stage, heads: Sequence[Head], bytes_up: float, seconds: float) -> Result:
    """Forgetting as usual (Chaudhry et al. 2018): what the classes of a phase lose from its end to the very end."""
    lost = [
        stage.accuracy(heads[phase], stage.phases[phase]) - stage.accuracy(heads[-1], stage.phases[phase])
        for phase in range(len(heads) - 1)
    ]
    return Result(stage.accuracy(heads[-1]), stage.balanced(heads[-1]), float(np.mean(lost)), bytes_up, seconds)


def _joint(stage: Stage, folds: int, penalties: Sequence[float]) -> Result:
    """The bound, trained anew on everything at the end of each phase. Its pictures would all have to travel."""
    began_s = time.perf_counter()
    x, y = stage.pictures.embeddings, stage.pictures.labels
    groups = stage.pictures.scenes if stage.pictures.has_scenes else np.array([str(n) for n in range(len(y))])
    penalty = choose_penalty(
        stage.pictures.classes, x[stage.train], y[stage.train], groups[stage.train], folds, penalties
    )
    heads: list[Head] = []
    for phase in range(len(stage.phases)):
        rows = stage.rows_of(stage.seen(phase), stage.train)
        heads.append(fit_joint(stage.seen(phase), x[rows], y[rows], penalty))
    size = float(stage.pictures.file_bytes[stage.train].sum())
    return _result(stage, heads, size, time.perf_counter() - began_s)


def _ours(stage: Stage, homes: Mapping[str, Rows], in_one_place: list[HeadWeights], figures: Figures) -> Result:
    """One analytic round over the sites, compared with all data in one place: in another order, and with repeats."""
    x, y, classes = stage.pictures.embeddings, stage.pictures.labels, stage.pictures.classes
    uploaded = contribute(classes, x, y, homes)
    began_s = time.perf_counter()
    head = solve(add_up(uploaded.parts.values()))
    seconds = uploaded.seconds + time.perf_counter() - began_s
    by_client = dict(reversed(uploaded.parts.items()))
    by_client |= dict(list(uploaded.parts.items())[::2])  # sent again: keyed by client, so it counts once
    again = solve(add_up(by_client.values()))
    for other in (head, again):
        figures.differences.append(difference(other, in_one_place[-1]))
        figures.disagreements += sum(
            a != b for a, b in zip(other.predict(x[stage.test]), in_one_place[-1].predict(x[stage.test]), strict=True)
        )
    uploads = np.mean([sum(len(stage.rows_of(part, rows)) > 0 for part in stage.phases) for rows in homes.values()])
    return _result(stage, [*in_one_place[:-1], head], uploaded.bytes_per_site * float(uploads), seconds)


def difference(a: HeadWeights, b: HeadWeights) -> float:
    """Largest difference of two heads' numbers, relative to the largest of the kind."""
    pairs = ((a.directions, b.directions), (a.offsets, b.offsets), (a.constants, b.constants))
    return max(float(np.abs(p - q).max() / np.abs(q).max()) for p, q in pairs)


def _gradient(stage: Stage, homes: Mapping[str, Rows], rounds: int) -> Iterator[tuple[str, Result]]:
    """Flower's strategies with and without replay, and Sedna's rule, phase after phase."""
    start = untrained(stage.pictures.classes, stage.pictures.embeddings[stage.train])
    fraction = min(1.0, CLIENTS_A_ROUND / len(homes))
    for label, strategy, replay in (
        ("FedAvg", "FedAvg", False),
        ("FedProx", "FedProx", False),
        ("FedAvg + replay", "FedAvg", True),
    ):
        began_s, head, heads, size = time.perf_counter(), start, [], 0
        for phase in range(len(stage.phases)):
            clients = _clients(stage, homes, stage.seen(phase) if replay else stage.phases[phase], start)
            head, sent = run_flower(strategy, head, clients, rounds, fraction, stage.seed + phase)
            heads.append(head)
            size += sent
        yield label, _result(stage, heads, size / len(homes), time.perf_counter() - began_s)
    yield "Sedna hard examples", _sedna(stage, start, len(homes), rounds)


def _clients(stage: Stage, homes: Mapping[str, Rows], classes: tuple[str, ...], head: Linear) -> dict[int, Local]:
    """Node id -> the site's data of these classes; a site without any is not asked."""
    found = {}
    for number, rows in enumerate(homes.values(), start=2):
        own = stage.rows_of(classes, rows)
        if len(own):
            truth: NDArray[np.integer] = np.array(
                [head.classes.index(str(name)) for name in stage.pictures.labels[own]]
            )
            found[number] = Local(head.features(stage.pictures.embeddings[own]), truth)
    return found


def _sedna(stage: Stage, start: Linear, sites: int, rounds: int) -> Result:
    """The first phase is trained in full at the centre; after it only what the head finds hard is uploaded."""
    began_s, head, heads, size = time.perf_counter(), start, [], 0
    for phase, classes in enumerate(stage.phases):
        rows = stage.rows_of(classes, stage.train)
        x, y = stage.pictures.embeddings[rows], stage.pictures.labels[rows]
        head, hard = fine_tune_hard(head, x, y, stage.seed + phase, steps=rounds * 20)
        size += int(stage.pictures.file_bytes[rows[hard]].sum())
        heads.append(head)
    return _result(stage, heads, size / sites, time.perf_counter() - began_s)


def _report(figures: Figures) -> dict[str, object]:
    """The fields of the issue, largest over the settings, and the table."""
    gaps, forgetting, raw, table = [], [], [], []
    for (name, sites, how, learner), rows in figures.results.items():
        joint = figures.results[name, sites, how, JOINT]
        bytes_up = float(np.mean([row.bytes_up for row in rows]))
        table.append(
            {
                "data": name,
                "sites": sites,
                "partition": how,
                "learner": learner,
                "accuracy": mean_and_error([row.accuracy for row in rows]),
                "balanced": mean_and_error([row.balanced for row in rows]),
                "forgetting": mean_and_error([row.forgetting for row in rows]),
                "bytes_up_per_site": round(bytes_up / sites if learner == JOINT else bytes_up),
                "seconds": round(float(np.mean([row.seconds for row in rows])), 2),
            }
        )
        if learner == OURS:
            gaps.append(float(np.mean([j.accuracy - r.accuracy for j, r in zip(joint, rows, strict=True)])))
            forgetting.append(float(np.mean([r.forgetting - j.forgetting for j, r in zip(joint, rows, strict=True)])))
            raw.append(float(np.mean([row.forgetting for row in rows])))
    return {
        "gap_to_joint": max(gaps),
        "forgetting": max(forgetting),
        "forgetting_with_confusion": max(raw),
        "federated_vs_centralised": max(figures.differences),
        "predictions_that_differ": figures.disagreements,
        "rounds_per_phase": 1,
        "table": table,
    }
