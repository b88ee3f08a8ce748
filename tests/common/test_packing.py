"""Packed statistics: nothing lost without a bound, little with one, and what cannot be true is refused."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.contribution import Request, pack_reply, pack_request, unpack_reply, unpack_request
from common.errors import WireError
from common.flower import Array, ArrayRecord
from common.packing import Factor, Triangle, pack, packed_bytes, read_packed
from common.statistics import Statistics

CLASSES = ("normal", "tear", "wood")
IDS = [bytes([number]) * 16 for number in range(12)]


def site(seed: int, count: int, dimension: int) -> tuple[np.ndarray, list[str]]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 3, count)
    spread = rng.normal(size=(dimension, dimension)) * np.geomspace(1, 0.02, dimension)
    return rng.normal(size=(count, dimension)) @ spread.T + truth[:, None] * 2.0, [CLASSES[t] for t in truth]


def size_of(packed: Triangle | Factor) -> int:
    return sum(array.nbytes for array in packed.arrays().values())


def assert_same(one: Statistics, other: Statistics, tolerance: float) -> None:
    for name in ("counts", "sums", "moment"):
        a, b = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, float(np.abs(b).max())))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 99), st.integers(1, 40), st.integers(2, 24))
def test_without_a_bound_the_statistics_are_the_same_to_rounding(seed: int, count: int, dimension: int) -> None:
    x, labels = site(seed, count, dimension)
    packed, lost = pack(CLASSES, x, labels)
    assert lost == 0
    whole = Statistics.of(CLASSES, x, labels)
    opened = read_packed(packed.classes, packed.arrays()).over(CLASSES)
    assert_same(opened.statistics(), whole, 1e-11)
    assert size_of(packed) <= size_of(Triangle.of(whole)) + 8 * 3 * dimension, "never larger than the triangle"
    basis = np.linalg.qr(np.random.default_rng(seed).normal(size=(dimension, dimension)))[0][:, : dimension // 2]
    assert_same(opened.project(basis), whole.project(basis), 1e-11)


def test_few_samples_are_rows_and_many_are_a_triangle() -> None:
    assert isinstance(pack(CLASSES, *site(0, 9, 64))[0], Factor)
    assert isinstance(pack(CLASSES, *site(0, 200, 64))[0], Triangle)


@pytest.mark.parametrize(("bytes_max", "dtype", "tolerance"), [(20_000, np.float16, 2e-3), (4_000, np.int8, 0.1)])
def test_a_bound_is_kept_and_no_direction_loses_its_variance(
    bytes_max: int, dtype: type[np.generic], tolerance: float
) -> None:
    x, labels = site(1, 90, 96)
    packed, lost = pack(CLASSES, x, labels, bytes_max)
    assert isinstance(packed, Factor)
    assert packed.factor.dtype == dtype
    assert size_of(packed) <= bytes_max
    assert (lost > 0) == (dtype is np.int8)
    whole, opened = Statistics.of(CLASSES, x, labels), packed.over(CLASSES).statistics()
    np.testing.assert_allclose(np.diag(opened.moment), np.diag(whole.moment), rtol=5e-3)
    assert np.linalg.norm(opened.moment - whole.moment) < tolerance * np.linalg.norm(whole.moment)
    assert np.linalg.eigvalsh(opened.moment).min() > -1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(4, 24), st.sampled_from([0, 200, 1_000, 100_000]))
def test_bytes_are_known_before_anything_is_packed(count: int, dimension: int, bytes_max: int) -> None:
    rng = np.random.default_rng(count)
    labels = [CLASSES[k] for k in rng.integers(0, 3, count)]
    packed, _ = pack(CLASSES, rng.normal(size=(count, dimension)), labels, bytes_max)
    assert packed_bytes(count, len(set(labels)), dimension, bytes_max) == size_of(packed)


def test_forms_add_up_and_are_subtracted_again() -> None:
    parts = [pack(CLASSES, *site(seed, 30, 32), bound)[0] for seed, bound in enumerate((0, 3_000, 0, 2_000))]
    parts.append(Triangle.of(Statistics.of(CLASSES, *site(9, 30, 32))))
    opened = [part.over(CLASSES).statistics() for part in parts]
    total = sum(opened[1:], opened[0])
    assert_same(total - opened[1] - opened[3], opened[0] + opened[2] + opened[4], 1e-12)


def test_classes_without_samples_do_not_travel_and_foreign_ones_are_refused() -> None:
    x, _ = site(0, 6, 8)
    packed, _ = pack(CLASSES, x, ["tear"] * 6)
    assert packed.classes == ("tear",)
    assert packed.over(CLASSES).statistics().counts.tolist() == [0, 6, 0]
    with pytest.raises(WireError, match="tear"):
        packed.over(("normal",))


BROKEN: dict[str, dict[str, np.ndarray]] = {
    "counts below zero": {"counts": np.array([-1.0, 5.0])},
    "counts of another size": {"counts": np.array([4.0])},
    "a half": {"counts": np.array([1.5, 2.5])},
    "not finite": {"factor": np.full((2, 5), np.nan)},
    "another width": {"factor": np.zeros((2, 4))},
    "integers of 64 bits": {"factor": np.zeros((2, 5), np.int64)},
    "no matrix": {"factor": np.zeros(5)},
    "int8 without steps": {"factor": np.zeros((2, 5), np.int8)},
    "steps of floats": {"steps": np.ones(2, np.float32)},
    "a negative variance": {"rest": np.full(5, -1.0, np.float32)},
    "rest of another width": {"rest": np.zeros(4, np.float32)},
    "means of integers": {"means": np.zeros((2, 5), np.int64)},
    "means of another shape": {"means": np.zeros((3, 5))},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_factor_that_cannot_be_true_is_refused(case: str) -> None:
    good = {
        "counts": np.array([2.0, 2.0]),
        "means": np.ones((2, 5)),
        "factor": np.ones((2, 5)),
        "steps": np.zeros(0, np.float32),
        "rest": np.zeros(0, np.float32),
    }
    assert read_packed(("normal", "tear"), good).total == 4
    with pytest.raises(WireError):
        read_packed(("normal", "tear"), good | BROKEN[case])
    with pytest.raises(WireError):
        read_packed(("tear", "tear"), good)
    with pytest.raises(WireError, match="without samples"):
        read_packed(("normal", "tear"), good | {"counts": np.array([4.0, 0.0])})


@pytest.mark.parametrize("bytes_max", [0, 700, 400])
def test_a_reply_in_any_form_comes_back_over_the_classes_of_the_request(bytes_max: int) -> None:
    x, labels = site(2, 12, 32)
    request = unpack_request(pack_request("b" * 64, {"belt": CLASSES}, {}, bytes_max))
    assert request == Request("b" * 64, {"belt": CLASSES}, {}, bytes_max)
    packed, lost = pack(CLASSES, x, labels, request.bytes_max)
    content = pack_reply({"belt": (packed, IDS)}, {"belt": lost})
    found, covered = unpack_reply(content, request)["belt"]
    assert (found.classes, covered, found.total) == (CLASSES, set(IDS), 12)
    assert content["metrics"]["lost/belt"] == lost
    assert_same(found.statistics(), packed.over(CLASSES).statistics(), 1e-12)
    arrays = dict(content["statistics/belt"].items()) | {"means": Array(np.full((3, 31), 1.0))}
    content["statistics/belt"] = ArrayRecord(arrays)
    with pytest.raises(WireError):
        unpack_reply(content, request)
