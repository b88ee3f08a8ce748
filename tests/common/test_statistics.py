"""Sufficient statistics: they add in any order, they subtract exactly, and they say nothing else."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import WireError
from common.statistics import Statistics

CLASSES = ("normal", "tear", "wood")


def draw(seed: int, count: int, dimension: int = 6) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, dimension)), [CLASSES[i] for i in rng.integers(0, 3, count)]


def assert_equal(one: Statistics, other: Statistics) -> None:
    assert one.classes == other.classes
    for field in ("counts", "sums", "moment"):
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-10, atol=1e-9)


@given(st.integers(0, 10_000), st.lists(st.integers(0, 12), min_size=1, max_size=6), st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_the_sum_of_sites_is_the_statistics_of_all_data_in_one_place(seed: int, sizes: list[int], order) -> None:
    x, labels = draw(seed, sum(sizes))
    ends = np.cumsum(sizes)
    parts = [
        Statistics.of(CLASSES, x[end - size : end], labels[end - size : end])
        for size, end in zip(sizes, ends, strict=True)
    ]
    order.shuffle(parts)
    total = Statistics.empty(CLASSES, 6)
    for part in parts:
        total = total + part
    assert_equal(total, Statistics.of(CLASSES, x, labels))
    assert total.total == sum(sizes)


def test_a_site_leaves_as_if_it_had_never_been_there() -> None:
    x, labels = draw(1, 60)
    stays, leaves = Statistics.of(CLASSES, x[:40], labels[:40]), Statistics.of(CLASSES, x[40:], labels[40:])
    assert_equal((stays + leaves) - leaves, stays)


def test_new_classes_append_without_touching_old_ones() -> None:
    x, labels = draw(2, 30)
    old = Statistics.of(CLASSES, x, labels)
    new = Statistics.of(("bolt",), np.ones((2, 6)), ["bolt", "bolt"])
    both = old + new
    assert both.classes == (*CLASSES, "bolt")
    np.testing.assert_array_equal(both.counts, [*old.counts, 2])
    np.testing.assert_array_equal(both.sums[:3], old.sums)
    assert_equal(old.over(("wood", "tear", "bolt", "normal")).over(CLASSES), old)
    with pytest.raises(WireError, match="bolt"):
        both.over(CLASSES)


def test_weights_and_projections_commute_with_summing() -> None:
    x, labels = draw(3, 50)
    part = Statistics.of(CLASSES, x, labels)
    assert_equal(part * 3, part + part + part)
    basis = np.linalg.qr(np.random.default_rng(0).normal(size=(6, 3)))[0]
    assert_equal(part.project(basis), Statistics.of(CLASSES, x @ basis, labels))


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(WireError, match="dimension 5"):
        Statistics.empty(CLASSES, 6) + Statistics.empty(CLASSES, 5)
    with pytest.raises(WireError, match="shapes"):
        Statistics(CLASSES, np.zeros(2), np.zeros((3, 6)), np.zeros((6, 6)))
    for poison in (np.nan, np.inf):
        with pytest.raises(WireError, match="finite"):
            Statistics(CLASSES, np.full(3, poison), np.zeros((3, 6)), np.zeros((6, 6)))
