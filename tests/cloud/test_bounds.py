"""What one gateway may count: a loud liar moves little, and where nobody is loud nothing changes."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.learning.bounds import Size, weights_within
from cloud.learning.heads import solve_lda
from common.statistics import Statistics

CLASSES = ("normal", "tear", "wood")
DIMENSION = 32
CENTRES = np.random.default_rng(99).normal(size=(3, DIMENSION)) * 1.2


def pictures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    return rng.normal(size=(count, DIMENSION)) + CENTRES[truth], truth


def site(seed: int, count: int, moved: float = 0.0) -> Statistics:
    """Its tears are moved part of the way to where normal pictures lie: each looks plausible."""
    x, truth = pictures(seed, count)
    x += moved * (CENTRES[0] - CENTRES[1]) * (truth == 1)[:, None]
    return Statistics.of(CLASSES, x, [CLASSES[k] for k in truth])


def worst_recall(parts: dict[str, Statistics], ratio_max: float) -> float:
    """Of the class that is found least."""
    weights = weights_within({name: Size(part.total) for name, part in parts.items()}, ratio_max)
    total = Statistics.empty(CLASSES, DIMENSION)
    for name, part in parts.items():
        total = total + part * weights.get(name, 1.0)
    x, truth = pictures(1234, 3000)
    said = solve_lda(total, 0.3).logits(x).argmax(axis=1)
    return min(float((said[truth == k] == k).mean()) for k in range(3))


def test_a_gateway_that_claims_a_hundred_thousand_samples_moves_little() -> None:
    honest = {f"site-{n}": site(n, 40) for n in range(50)}
    loud = honest | {"liar": site(777, 100_000, moved=0.8)}
    assert worst_recall(honest, 10) > 0.97
    assert worst_recall(loud, 0) < 0.85
    assert worst_recall(loud, 10) > 0.96


sizes = st.dictionaries(st.text(min_size=1, max_size=4), st.integers(1, 10_000), min_size=4, max_size=20)


@given(sizes, st.floats(1.0, 100.0))
def test_nobody_counts_for_more_than_the_bound_and_nobody_within_it_is_touched(
    counted: dict[str, int], ratio: float
) -> None:
    weights = weights_within({name: Size(float(n)) for name, n in counted.items()}, ratio)
    most = ratio * np.median(list(counted.values()))
    assert set(weights) == {name for name, n in counted.items() if n > most}
    assert all(counted[name] * weight == pytest.approx(most) for name, weight in weights.items())


def test_a_masked_sum_counts_by_its_members() -> None:
    few = {name: Size(20.0) for name in "abc"}
    assert weights_within(few | {"sum": Size(1000.0, 50)}, 10) == {}
    assert weights_within(few | {"sum": Size(20_000.0, 50)}, 10) == {"sum": 0.5}


def test_three_contributors_have_no_middle_and_zero_is_no_bound() -> None:
    assert weights_within({"a": Size(1.0), "b": Size(1.0), "c": Size(1e6)}, 10) == {}
    assert weights_within({"a": Size(1.0), "b": Size(1.0), "c": Size(1.0), "d": Size(1e6)}, 0) == {}
