"""`headframe bench privacy`: what do the protections of statistics cost in points and bytes, and what do they hide?

Sites share the training pictures out by Dirichlet 0.1 and answer by the product's own ClientApp, messages as bytes: in
the clear, in the clear without rare classes, as masked sums over cohorts, and masked with noise for some ε. A part of
the pictures is the centre's own: the directions of masked sums come from it, and no head is solved from it, so that
what is compared is what the sites told. Noise is against one picture more or less of one site, for one round.

Beside accuracy stands what somebody at the centre makes of what it sees: given a picture, is it in there? The attack is
the leverage xᵀG⁻¹x of its embedding, which the pictures in G keep low; AUROC 0.5 is a coin, 1.0 is certainty.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.federation.accounting import multiplier_for
from cloud.federation.masked import public_projection
from cloud.federation.secure import CohortRules, CohortSum, Question, SecureSums
from cloud.federation.strategy import AnalyticStrategy, Parts
from cloud.learning.datasets import Dataset
from cloud.learning.gates import balanced_accuracy
from common.cohort import COHORT_MAX
from common.flower import (
    SERVER_NODE_ID,
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    name_message,
    take_identity,
)
from common.partition import Partition
from common.projection import Projection, describe, lift
from common.statistics import Array, Statistics
from edge.contributor import Policy, make_client_app
from edge.learner import ClientAppCallable
from simulations.bench._learners import SCENARIO, add_up, solve
from simulations.bench._sites import Pictures, Rows, embed_folder, find_folders, mean_and_error, partition, split

SEEDS, QUICK_SEEDS = 5, 1
SITES: Final = 50
CENTRES_SHARE, STRANGERS_SHARE = 0.15, 0.1
"""Of the training pictures: those that are the centre's own, and those of the same scenes that no site has."""
BACKBONE: Final = "b" * 64
DELTA: Final = 1e-5
RARE: Final = 6
"""A class of fewer pictures at a site is not told."""


@dataclass(frozen=True, slots=True)
class Masked:
    """A form of masked sums."""

    directions: int
    epsilon: float = 0.0
    """Of one round; 0: no noise."""
    cohort: int = CohortRules().size

    @property
    def name(self) -> str:
        """In the figures."""
        what = f"ε = {self.epsilon:g}" if self.epsilon else f"{self.directions} directions"
        return f"masked, {what}{', one cohort' if self.cohort == ONE else ''}"


ONE: Final = COHORT_MAX
"""A cohort of everybody, with 50 sites."""
FORMS: Final = (
    Masked(64),
    Masked(128),
    Masked(512),
    Masked(64, cohort=ONE),
    Masked(64, 8.0),
    Masked(64, 8.0, ONE),
    Masked(32, 3.0),
    Masked(32, 3.0, ONE),
    Masked(8, 1.0),
)
"""Fewer directions are fewer numbers and less noise: chosen on seeds from 100 on, which are not reported."""
QUICK_FORMS: Final = tuple(form for form in FORMS if form.directions in (64, 128))
ATTACKED, ATTACKED_SUMS = 200, 8
"""Pictures that are asked about, in so many of the sums or sites."""
RIDGE: Final = 1e-3
Floats = NDArray[np.floating]
Point = tuple[float, float, float, float, float]
"""accuracy, balanced accuracy (points), bytes up and down of a site, AUROC of the attack"""


def bench_privacy(*, quick: bool) -> dict[str, object]:
    """Every protection on every data set."""
    began_s, forms_run = time.monotonic(), QUICK_FORMS if quick else FORMS
    found: dict[tuple[str, str], list[Point]] = defaultdict(list)
    for folder in find_folders():
        pictures = embed_folder(folder)
        seeds = range(QUICK_SEEDS if quick else SEEDS)
        for seed in track(seeds, pictures.name, console=Console(stderr=True), transient=True):
            for form, point in measure(pictures, seed, forms_run).items():
                found[pictures.name, form].append(point)
    forms = list(dict.fromkeys(form for _, form in found))
    names = list(dict.fromkeys(name for name, _ in found))
    return {
        "points_lost": {form: max(_mean(_lost(found, name, form)) for name in names) for form in forms[1:]},
        "membership_auroc": {form: max(_mean([p[4] for p in found[name, form]]) for name in names) for form in forms},
        "bytes_up": {form: round(max(_mean([p[2] for p in found[name, form]]) for name in names)) for form in forms},
        "epsilon": {form.name: form.epsilon for form in forms_run if form.epsilon},
        "delta": DELTA,
        "multiplier": {form.name: multiplier_for(form.epsilon, DELTA) for form in forms_run if form.epsilon},
        "sites": SITES,
        "seeds": QUICK_SEEDS if quick else SEEDS,
        "table": [_row(name, form, found) for name in names for form in forms],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def measure(pictures: Pictures, seed: int, forms: Sequence[Masked] = FORMS) -> dict[str, Point]:
    """All protections on the same sites; the first is none."""
    train, test = split(pictures, seed)
    mixed = np.random.default_rng(seed).permutation(train)
    own, strangers, rest = np.split(
        mixed, np.round(np.cumsum([CENTRES_SHARE, STRANGERS_SHARE]) * len(mixed)).astype(int)
    )
    homes = partition(pictures.labels, np.sort(rest), SITES, "dirichlet", seed)
    world = World(pictures, list(homes.values()), test, strangers, seed)
    found = {"none": world.in_the_clear(0)}
    found[f"classes of {RARE} or more"] = world.in_the_clear(RARE)
    for form in forms:
        multiplier = multiplier_for(form.epsilon, DELTA) if form.epsilon else 0.0
        frame = projection_of(pictures, own, form.directions)
        found[form.name] = world.masked(frame, multiplier, CohortRules(form.cohort))
    return found


def projection_of(pictures: Pictures, rows: Rows, width: int) -> Projection:
    """As the centre makes it of its own dataset."""
    ids, labels = tuple(int(row).to_bytes(16, "big") for row in rows), tuple(str(n) for n in pictures.labels[rows])
    gold = np.zeros(len(rows), dtype=bool)
    own = Dataset(
        "own", SCENARIO, BACKBONE, pictures.classes, pictures.embeddings[rows], labels, ("",) * len(rows), ids, gold
    )
    return public_projection(SCENARIO, [own], width)


@dataclass
class World:
    """Sites with their pictures, and a grid on which they answer."""

    pictures: Pictures
    homes: Sequence[Rows]
    test: Rows
    strangers: Rows
    seed: int

    def in_the_clear(self, class_samples_min: int) -> Point:
        """Every site's own statistics."""
        grid, parts = self._grid(), dict[int, Statistics]()

        def keep(node: int, told: Parts) -> None:
            if SCENARIO in told:
                parts[node] = told[SCENARIO][0].statistics()

        asked = AnalyticStrategy(
            BACKBONE, {SCENARIO: self.pictures.classes}, lambda _: {}, keep, class_samples_min=class_samples_min
        )
        messages = asked.configure_train(1, ArrayRecord(), ConfigRecord(), grid)
        asked.aggregate_train(1, grid.send_and_receive(messages))
        inside = {node: self._embeddings(self._told(node, class_samples_min)) for node in parts}
        moments = {node: part.moment for node, part in parts.items()}
        auroc = self._attack(inside, moments, lambda x: x)
        return self._point(add_up(parts.values()), grid, auroc)

    def masked(self, frame: Projection, multiplier: float, rules: CohortRules) -> Point:
        """Sums over cohorts, as the centre opens them."""
        grid, classes = self._grid(), self.pictures.classes
        noise = {SCENARIO: multiplier} if multiplier else {}
        asked = Question(BACKBONE, {SCENARIO: classes}, {SCENARIO: frame}, multipliers=noise)
        sums = SecureSums(grid, asked, rules, 60.0).run(list(grid.get_node_ids()))
        self._check(sums, frame, exact=not multiplier)
        described = [made.described[SCENARIO] for made in sums]
        inside = {n: np.concatenate([self._embeddings(self.homes[m]) for m in s.members]) for n, s in enumerate(sums)}
        moments = {number: _moment(told, len(classes), frame.width) for number, told in enumerate(described)}
        auroc = self._attack(inside, moments, lambda x: frame.coordinates(x, clip=bool(multiplier))[0])
        return self._point(add_up(lift(told, frame, classes).statistics() for told in described), grid, auroc)

    def _grid(self) -> "SitesGrid":
        x, y = self.pictures.embeddings, self.pictures.labels
        apps = {}
        for number, rows in enumerate(self.homes):
            ids, labels = tuple(int(row).to_bytes(16, "big") for row in rows), tuple(str(name) for name in y[rows])
            own = Partition(ids, x[rows], labels, SCENARIO, BACKBONE)
            draw = np.random.default_rng([self.seed, number]).bytes
            apps[number] = make_client_app(own, Policy(shares_updates=True), number, draw)
        return SitesGrid(apps)

    def _check(self, sums: Sequence[CohortSum], frame: Projection, *, exact: bool) -> None:
        """All sites are in a sum, and without noise the sums are those of their pictures."""
        if sorted(node for made in sums for node in made.members) != list(range(len(self.homes))):
            raise RuntimeError("a site is in no sum")
        for made in sums if exact else ():
            rows = np.concatenate([self.homes[node] for node in made.members])
            labels = [str(name) for name in self.pictures.labels[rows]]
            told = describe(frame, self.pictures.classes, self._embeddings(rows), labels)
            if np.abs(told - made.described[SCENARIO]).max() > 1e-6:
                raise RuntimeError("a masked sum is not the sum")

    def _told(self, node: int, class_samples_min: int) -> Rows:
        labels = self.pictures.labels[self.homes[node]]
        often = [name for name in np.unique(labels) if (labels == name).sum() >= class_samples_min]
        return self.homes[node][np.isin(labels, often)]

    def _embeddings(self, rows: Rows) -> Floats:
        return self.pictures.embeddings[rows]

    def _attack(
        self, inside: Mapping[int, Floats], moments: Mapping[int, Array], seen: Callable[[Floats], Floats]
    ) -> float:
        """AUROC of the leverage: pictures in a moment against pictures of the same scenes that are in none."""
        rng = np.random.default_rng(self.seed)
        strangers = self._embeddings(self.strangers)
        members, others = list[float](), list[float]()
        for number in rng.permutation(sorted(moments))[:ATTACKED_SUMS].tolist():
            moment = moments[number]
            inverse = np.linalg.inv(moment + RIDGE * max(np.trace(moment), 1e-9) / len(moment) * np.eye(len(moment)))
            count = ATTACKED // min(len(moments), ATTACKED_SUMS)
            for found, rows in ((members, inside[number]), (others, strangers)):
                x = seen(rows[rng.permutation(len(rows))[:count]])
                found.extend(np.einsum("nd,de,ne->n", x, inverse, x).tolist())
        low, high = np.array(members)[:, None], np.array(others)[None, :]
        return float(((low < high) + 0.5 * (low == high)).mean())

    def _point(self, total: Statistics, grid: "SitesGrid", auroc: float) -> Point:
        said = solve(total).predict(self._embeddings(self.test))
        truth = [str(name) for name in self.pictures.labels[self.test]]
        right = 100 * float(np.mean([a == b for a, b in zip(truth, said, strict=True)]))
        sites = len(self.homes)
        return right, 100 * balanced_accuracy(truth, said), grid.bytes_up / sites, grid.bytes_down / sites, auroc


class SitesGrid:
    """As much of a Flower Grid as a round needs: every node's ClientApp in this process, messages as bytes."""

    def __init__(self, apps: Mapping[int, ClientAppCallable]) -> None:
        self._apps = apps
        self.bytes_up = self.bytes_down = 0
        take_identity(SERVER_NODE_ID)

    def get_node_ids(self) -> Iterable[int]:
        return list(self._apps)

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        del timeout
        for number, message in enumerate(messages):
            name_message(message, f"m-{number}")
            node, data = message.metadata.dst_node_id, message_to_bytes(message)
            self.bytes_down += len(data)
            reply = self._apps[node](message_from_bytes(data), Context(1, node, {}, RecordDict(), {}))
            reply.metadata.__dict__["_src_node_id"] = node
            data = message_to_bytes(reply)
            self.bytes_up += len(data)
            yield message_from_bytes(data)


def _moment(described: Array, classes: int, width: int) -> Array:
    """The second moment of a description, without variances that noise made negative."""
    moment = np.zeros((width, width))
    moment[np.triu_indices(width)] = described[classes + classes * width : -1]
    values, vectors = np.linalg.eigh(moment + np.triu(moment, 1).T)
    repaired: Array = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return repaired


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))


def _lost(found: Mapping[tuple[str, str], Sequence[Point]], name: str, form: str) -> list[float]:
    return [none[0] - point[0] for none, point in zip(found[name, "none"], found[name, form], strict=True)]


def _row(name: str, form: str, found: Mapping[tuple[str, str], Sequence[Point]]) -> dict[str, object]:
    points = found[name, form]
    return {
        "data": name,
        "protection": form,
        "accuracy": mean_and_error([point[0] for point in points]),
        "points_lost": mean_and_error(_lost(found, name, form)),
        "balanced": mean_and_error([point[1] for point in points]),
        "kb_up": round(_mean([point[2] for point in points]) / 1e3, 1),
        "kb_down": round(_mean([point[3] for point in points]) / 1e3, 1),
        "membership_auroc": mean_and_error([point[4] for point in points]),
    }
