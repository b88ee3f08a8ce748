"""Splits that do not leak and partitions that lose nothing."""

import numpy as np
import pytest

from cloud.learning.heads import solve_shared
from common.statistics import Statistics
from simulations.bench._learners import add_up, contribute
from simulations.bench._sites import Pictures, partition, phases_of, split
from simulations.bench.learning import difference

CLASSES = ("hole", "normal", "tear")


def pictures(scenes: int = 12, each: int = 10) -> Pictures:
    rng = np.random.default_rng(0)
    n = scenes * each
    truth = rng.integers(0, 3, n)
    x = (rng.normal(0, 1, (n, 16)) + 3 * np.eye(16)[truth]).astype(np.float32)
    labels = np.array([CLASSES[i] for i in truth])
    return Pictures("toy", CLASSES, x, labels, np.repeat([f"s{i}" for i in range(scenes)], each), np.ones(n, int))


@pytest.mark.parametrize("seed", range(3))
def test_no_scene_is_on_both_sides(seed: int) -> None:
    found = pictures()
    train, test = split(found, seed)
    assert not set(found.scenes[train]) & set(found.scenes[test])
    assert sorted([*train, *test]) == list(range(len(found.labels)))


@pytest.mark.parametrize("how", ["dirichlet", "one-class"])
def test_a_partition_gives_every_picture_to_one_site(how: str) -> None:
    found = pictures()
    homes = partition(found.labels, np.arange(120), 20, how, 1)
    assert sorted(row for rows in homes.values() for row in rows) == list(range(120))
    if how == "one-class":
        assert all(len(set(found.labels[rows])) == 1 for rows in homes.values())


def test_every_class_arrives_in_one_phase() -> None:
    assert sorted(name for part in phases_of(CLASSES, 0) for name in part) == sorted(CLASSES)


def test_the_head_of_all_sites_is_the_head_of_all_data_in_any_order() -> None:
    found = pictures()
    homes = partition(found.labels, np.arange(120), 20, "dirichlet", 1)
    parts = contribute(CLASSES, found.embeddings, found.labels, homes).parts
    whole = solve_shared(Statistics.of(CLASSES, found.embeddings, list(map(str, found.labels))), 0.3, 8)
    for order in (parts.values(), reversed(parts.values())):
        assert difference(solve_shared(add_up(order), 0.3, 8), whole) < 1e-6


def test_a_site_that_leaves_was_never_there() -> None:
    found = pictures()
    homes = partition(found.labels, np.arange(120), 20, "dirichlet", 1)
    parts = contribute(CLASSES, found.embeddings, found.labels, homes).parts
    leaver = next(iter(parts))
    left = add_up(parts.values()) - parts[leaver]
    never = add_up(part for site, part in parts.items() if site != leaver)
    assert difference(solve_shared(left, 0.3, 8), solve_shared(never, 0.3, 8)) < 1e-6
