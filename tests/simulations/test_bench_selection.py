"""What the selection benchmark may not do: let training see a scene or a class of the stream's, or flatter a tie."""

import numpy as np
import pytest

from simulations.bench import selection as bench
from simulations.bench._sites import Pictures

CLASSES = ("dent", "hole", "normal", "tear")


@pytest.fixture
def pictures() -> Pictures:
    """Twenty scenes with twelve pictures each of every class; a class is a direction, a scene a small shift."""
    rng = np.random.default_rng(0)
    directions, shifts = rng.normal(0, 3, (len(CLASSES), 24)), rng.normal(0, 1, (20, 24))
    rows = [(scene, label) for scene in range(20) for label in range(len(CLASSES)) for _ in range(12)]
    embeddings = np.stack([directions[label] + shifts[scene] + rng.normal(0, 1, 24) for scene, label in rows])
    return Pictures(
        "made",
        CLASSES,
        embeddings.astype(np.float32),
        np.array([CLASSES[label] for _, label in rows]),
        np.array([f"scene-{scene}" for scene, _ in rows]),
        np.zeros(len(rows), np.int64),
    )


@pytest.mark.parametrize("seed", range(3))
def test_training_sees_neither_scene_nor_novel_class_of_the_stream(pictures: Pictures, seed: int) -> None:
    for names in bench.held_out(CLASSES, quick=False):
        stream = bench.draw(pictures, seed, names)
        assert not set(stream.train.scenes) & set(stream.seen.scenes)
        assert not set(stream.train.labels) & set(names)
        assert set(stream.weights.classes) == set(CLASSES) - set(names)
        assert set(stream.seen.labels[stream.novel]) <= set(names)
        assert 0.03 < stream.novel.mean() < 0.07


def test_normal_is_never_held_out() -> None:
    sets = bench.held_out(CLASSES, quick=False)
    assert len(sets) == 3
    assert all("normal" not in names for names in sets)


def test_ties_are_broken_by_chance_and_not_by_order() -> None:
    novel = np.arange(1000) < 50
    shares = [bench.found_early(np.zeros(1000), novel, np.random.default_rng(seed)) for seed in range(20)]
    np.testing.assert_allclose(np.mean(shares, axis=0), bench.BUDGETS, atol=0.03)
    assert bench.found_early(novel.astype(float), novel, np.random.default_rng(0)) == [1.0, 1.0, 1.0]


def test_every_method_scores_every_picture_and_ours_finds_what_is_easy(pictures: Pictures) -> None:
    stream = bench.draw(pictures, 0, ("hole", "tear"))
    for name, method in bench.METHODS.items():
        scores = method(stream)
        assert scores.shape == stream.novel.shape, name
        assert np.isfinite(scores).all(), name
    ours, chance = (
        bench.found_early(bench.METHODS[name](stream), stream.novel, np.random.default_rng(0))
        for name in ("ours", "random")
    )
    assert ours[2] > 0.6 > chance[2]


def test_the_margin_is_over_the_best_baseline_in_paired_standard_errors() -> None:
    rng = np.random.default_rng(0)
    split = rng.normal(0, 0.1, (10, 1))  # a hard split is hard for all: it must not count against the difference
    shares = {name: 0.1 + split + rng.normal(0, 1e-3, (10, 3)) for name in bench.METHODS}
    shares["entropy"] += 0.2
    shares["ours"] += 0.25
    shares["relative_mahalanobis"] += 0.9
    for best, margin in bench._margins(shares):
        assert best == "entropy"
        assert margin > 50
