"""Descriptions add up to what they describe, one sample moves them by no more than one, and noise is repaired."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import WireError
from common.packing import read_packed
from common.projection import SHARES, Projection, describe, lift, noise, size_of
from common.statistics import Statistics

CLASSES, D = ("normal", "tear", "wood"), 12


def projection(width: int, seed: int = 0, length: float = 3.0) -> Projection:
    rng = np.random.default_rng(seed)
    directions, _ = np.linalg.qr(rng.normal(size=(D, width)))
    return Projection(rng.normal(size=D), directions, length)


def samples(count: int, seed: int = 1) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    return rng.normal(size=(count, D)) + truth[:, None], [CLASSES[k] for k in truth]


def test_all_directions_lose_nothing() -> None:
    x, labels = samples(40)
    full = projection(D)
    opened = lift(describe(full, CLASSES, x, labels), full, CLASSES).statistics()
    central = Statistics.of(CLASSES, x, labels)
    for name in ("counts", "sums", "moment"):
        np.testing.assert_allclose(getattr(opened, name), getattr(central, name), atol=1e-9)


def test_fewer_directions_keep_the_variance_of_what_is_left_out() -> None:
    x, labels = samples(200)
    narrow = projection(4)
    opened = lift(describe(narrow, CLASSES, x, labels), narrow, CLASSES)
    centred = x - narrow.origin
    inside = centred @ narrow.directions @ narrow.directions.T
    expected = Statistics.of(CLASSES, inside + narrow.origin, labels)
    np.testing.assert_allclose(opened.sums, expected.sums, atol=1e-9)
    within = float((opened.factor.astype(float) ** 2).sum() + opened.rest.sum())
    means = expected.sums / expected.counts[:, None]
    rows = inside + narrow.origin - means[[CLASSES.index(label) for label in labels]]
    assert within == pytest.approx(float((rows**2).sum() + ((centred - inside) ** 2).sum()), rel=1e-6)


@given(st.integers(1, D), st.integers(0, 100), st.floats(0.1, 50))
def test_one_clipped_sample_moves_a_weighted_description_by_at_most_one(width: int, seed: int, scale: float) -> None:
    x = scale * np.random.default_rng(seed).normal(size=(1, D))
    rough = projection(width, seed)
    rough = Projection(rough.origin, rough.directions.astype(np.float16).astype(float), rough.length)
    told = describe(rough, CLASSES, x, ["tear"], clip=True)
    counts, sums, moment = told[:3], told[3 : 3 + 3 * width], told[3 + 3 * width : -1]
    upper = np.triu_indices(width)
    whole = np.where(upper[0] == upper[1], 1.0, np.sqrt(2)) * moment
    parts = {"counts": counts, "sums": sums, "moment": np.append(whole, told[-1])}
    assert sum(SHARES[name] * float((part**2).sum()) for name, part in parts.items()) <= 1 + 1e-9
    assert sum(SHARES.values()) == 1


def test_noise_of_the_contributors_adds_up_to_what_is_accounted_for() -> None:
    seeds = [[(8 * number + part).to_bytes(16, "big") for part in range(8)] for number in range(800)]
    spread = np.std([np.sum([noise(3, 6, 2.0, 8, seed) for seed in own], axis=0) for own in seeds], axis=0)
    np.testing.assert_allclose(spread[:3], 2.0 / np.sqrt(SHARES["counts"]), rtol=0.15)
    np.testing.assert_allclose(spread[3:21], 2.0 / np.sqrt(SHARES["sums"]), rtol=0.15)
    diagonal = 21 + np.cumsum([0, 6, 5, 4, 3, 2])
    np.testing.assert_allclose(spread[diagonal], 2.0 / np.sqrt(SHARES["moment"]), rtol=0.15)
    np.testing.assert_allclose(spread[22], 2.0 / np.sqrt(2 * SHARES["moment"]), rtol=0.15)


@given(st.integers(0, 200), st.floats(0.1, 300))
def test_whatever_noise_makes_of_it_opens_into_statistics_that_can_be(seed: int, multiplier: float) -> None:
    x, labels = samples(30)
    frame = projection(6)
    told = describe(frame, CLASSES, x, labels, clip=True) + noise(3, 6, multiplier, 1, seed.to_bytes(16, "big"))
    packed = lift(told, frame, CLASSES)
    again = read_packed(packed.classes, packed.arrays()).statistics()
    assert np.linalg.eigvalsh(again.moment).min() > -1e-6 * max(np.trace(again.moment), 1)


def test_what_describes_something_else_is_refused() -> None:
    frame = projection(6)
    with pytest.raises(WireError):
        lift(np.zeros(size_of(3, 6) - 1), frame, CLASSES)
    with pytest.raises(WireError):
        describe(frame, CLASSES, np.zeros((2, D + 1)), ["tear", "tear"])
    with pytest.raises(WireError):
        Projection(np.zeros(D), np.zeros((D, 3)), 0.0)
