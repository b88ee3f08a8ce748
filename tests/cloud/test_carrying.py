"""Statistics of an old backbone, as if they had been counted on the new one."""

from collections.abc import Callable

import numpy as np
import pytest

from cloud.learning.carrying import LinearMap, learn_map
from common.packing import Factor, Triangle, pack
from common.statistics import Statistics

CLASSES, D = ("normal", "tear"), 12
Rows = tuple[np.ndarray, list[str]]


def rows(count: int, seed: int = 0) -> Rows:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 2, count)
    return rng.normal(size=(count, D)) + 2.0 * truth[:, None], [CLASSES[t] for t in truth]


def moves(seed: int = 3) -> Callable[[np.ndarray], np.ndarray]:
    """What a fine-tune did: linear, as it happens."""
    rng = np.random.default_rng(seed)
    matrix, offset = np.eye(D) + rng.normal(0, 0.2, (D, D)), rng.normal(size=D)
    return lambda x: x @ matrix + offset


def learnt(noise: float = 0.0, count: int = 300) -> LinearMap:
    x, _ = rows(count, seed=9)
    y = moves()(x) + np.random.default_rng(4).normal(0, noise, x.shape)
    return learn_map(x, y, [f"scene{n % 10}" for n in range(count)])


def test_where_the_change_is_linear_carried_statistics_are_the_recounted_ones() -> None:
    x, labels = rows(40)
    packed, _ = pack(CLASSES, x, labels)
    found = learnt().carry(packed).statistics()
    wanted = Statistics.of(CLASSES, moves()(x), labels)
    np.testing.assert_allclose(found.sums, wanted.sums, rtol=0.02, atol=0.5)
    np.testing.assert_allclose(found.moment, wanted.moment, rtol=0.05, atol=5)
    np.testing.assert_array_equal(found.counts, wanted.counts)


def test_every_form_is_carried_to_the_same_place() -> None:
    x, labels = rows(7, seed=2)  # so few that their factor is smaller than the triangle
    factor, _ = pack(CLASSES, x, labels)
    triangle = Triangle.of(factor.statistics())
    assert isinstance(factor, Factor)
    found = learnt(noise=0.3)
    one, other = found.carry(factor), found.carry(triangle)
    assert isinstance(one, Factor)
    assert isinstance(other, Triangle)
    np.testing.assert_allclose(one.statistics().moment, other.statistics().moment, rtol=1e-5, atol=1e-3)
    np.testing.assert_allclose(one.sums, other.sums, rtol=1e-9)
    rounded, _ = pack(CLASSES, x, labels, bytes_max=10)
    assert isinstance(rounded, Factor)
    assert len(rounded.steps), "int8, and a rest on the diagonal"
    moment = found.carry(rounded).statistics().moment
    assert np.trace(moment) == pytest.approx(np.trace(one.statistics().moment), rel=0.05)


def test_what_the_map_cannot_foretell_is_variance_and_not_silence() -> None:
    x, labels = rows(400)
    noise = np.random.default_rng(5).normal(0, 1.0, x.shape)
    recounted = Statistics.of(CLASSES, moves()(x) + noise, labels)
    found = learnt(noise=1.0)
    assert found.unexplained.mean() == pytest.approx(1.0, rel=0.2)
    packed, _ = pack(CLASSES, x, labels)
    assert np.trace(found.carry(packed).statistics().moment) == pytest.approx(np.trace(recounted.moment), rel=0.03)


def test_without_pictures_an_embedding_stays_what_it_was() -> None:
    found = learn_map(np.zeros((0, D)), np.zeros((0, D)), [])
    x, _ = rows(5)
    found_x = found.embeddings(x) if found.matrix.size else x
    np.testing.assert_array_equal(found_x, x)
    few, _ = rows(3)
    moved = learn_map(few, few + 1.0, ["a", "b", "c"])
    np.testing.assert_allclose(moved.embeddings(x), x + 1.0)
