"""Weight deltas: whatever the weights are, the target comes out bit by bit; whatever arrives, nothing else does."""

from typing import Any

import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from common.delta import ITEM_BYTES, apply_delta, make_delta
from common.differences import STEP_MAX, STEP_MIN, scale_tensor, snap_tensor, step_size
from common.errors import WireError
from common.weights import Tensor

Floats = NDArray[np.float32]
any_floats = arrays.arrays(np.float32, st.integers(1, 40), elements=st.floats(width=32))
HEADER, FOOTER = b"a file's head", b"and its foot"


def file_of(*tensors: NDArray[Any], note: bytes = b"") -> tuple[bytes, dict[str, Tensor]]:
    """A file with the tensors between other bytes, and where they lie."""
    data, places = HEADER, {}
    for number, values in enumerate(tensors):
        data += f"tensor {number}".encode()
        little = values.astype(values.dtype.newbyteorder("<"))
        places[str(number)] = Tensor(len(data), values.shape, little.dtype.str.lstrip("|"))
        data += little.tobytes()
    return data + note + FOOTER, places


def weights(seed: int, count: int = 4_000, scale: float = 0.05) -> Floats:
    return np.random.default_rng(seed).normal(0, scale, count).astype(np.float32)


@settings(max_examples=300, deadline=None)
@given(before=any_floats, data=st.data())
def test_any_floats_come_out_bit_by_bit(before: Floats, data: st.DataObject) -> None:
    after = data.draw(arrays.arrays(np.float32, before.shape, elements=st.floats(width=32)))
    (base, old), (target, new) = file_of(before), file_of(after, note=data.draw(st.binary(max_size=20)))
    step = data.draw(st.none() | st.integers(STEP_MIN, STEP_MAX))
    snapped = {} if step is None else {"0": step}
    delta = make_delta(base, target, old, new, *data.draw(st.permutations([snapped, {}])))
    assert apply_delta(base, delta, len(target)) == target


@settings(max_examples=100, deadline=None)
@given(dtype=st.sampled_from((np.int8, np.uint8, np.int32)), count=st.integers(0, 40), data=st.data())
def test_any_whole_numbers_come_out_bit_by_bit(dtype: type[np.integer], count: int, data: st.DataObject) -> None:
    floats, codes, more = (
        [data.draw(arrays.arrays(kind, count)) for _ in range(2)] for kind in (np.float32, dtype, dtype)
    )
    (base, old), (target, new) = (file_of(floats[age], codes[age], more[age]) for age in range(2))
    assert apply_delta(base, make_delta(base, target, old, new), len(target)) == target


def test_few_changed_codes_cost_less_than_a_bit_a_code() -> None:
    generator = np.random.default_rng(1)
    before = generator.integers(-127, 128, 200_000).astype(np.int8)
    moves = generator.choice([-1, 0, 1], before.shape, p=[0.01, 0.98, 0.01]).astype(np.int8)
    (base, old), (target, new) = file_of(before), file_of(before + moves)
    assert len(make_delta(base, target, old, new)) * 8 < 0.25 * len(before)


def test_biases_that_moved_a_little_travel_as_what_they_moved_by() -> None:
    generator = np.random.default_rng(1)
    before = generator.integers(-(2**20), 2**20, 20_000).astype(np.int32)
    after = before + generator.integers(-100, 100, before.shape).astype(np.int32)
    (base, old), (target, new) = file_of(before), file_of(after)
    assert len(make_delta(base, target, old, new)) < 0.3 * before.nbytes


def test_a_tensor_of_another_type_travels_with_the_rest_of_the_file() -> None:
    (base, old), (target, new) = file_of(np.arange(40, dtype=np.int32)), file_of(weights(1, 40))
    assert apply_delta(base, make_delta(base, target, old, new), len(target)) == target


def test_a_delta_from_before_there_were_codes_is_read() -> None:
    base, target, delta = sent(weights(1), weights(2))
    assert apply_delta(base, msgspec.msgpack.encode(msgspec.msgpack.decode(delta)[:6]), len(target)) == target


def test_a_piece_of_an_unknown_kind_is_refused() -> None:
    base, target, delta = sent()
    parts = msgspec.msgpack.decode(delta)
    pieces = msgspec.msgpack.decode(zstandard.decompress(parts[2][1]))
    pieces[0][0] = max(ITEM_BYTES) + 1
    table = msgspec.msgpack.encode(pieces)
    parts[2] = [len(table), zstandard.compress(table)]
    with pytest.raises(WireError, match="does not know"):
        apply_delta(base, msgspec.msgpack.encode(parts), len(target))


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), step=st.integers(-60, -20))
def test_snapped_weights_stay_within_half_a_step(seed: int, step: int) -> None:
    before = weights(seed, 100)
    after = before + weights(seed + 1, 100, 0.001)
    snapped = snap_tensor(before, after, step)
    rounding = np.spacing(np.abs(snapped)) + np.spacing(np.abs(after))
    assert (np.abs(snapped.astype(np.float64) - after) <= step_size(step) / 2 + rounding).all()
    assert snap_tensor(before, snapped, step).tobytes() == snapped.tobytes()


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), step=st.integers(-60, -8))
def test_scaled_weights_keep_their_ratios_and_come_out_bit_by_bit(seed: int, step: int) -> None:
    before, other = weights(seed, 100), weights(seed + 1, 100)
    ratio = np.random.default_rng(seed).normal(1, 20 * step_size(step), 100)
    scaled, alike = (scale_tensor(values, ratio, step) for values in (before, other))
    np.testing.assert_allclose(scaled / before, ratio, rtol=0, atol=0.51 * step_size(step) + 1e-5)
    np.testing.assert_allclose(scaled / before, alike / other, rtol=1e-5)
    (base, old), (target, new) = file_of(before, other), file_of(scaled, alike)
    delta = make_delta(base, target, old, new, None, {"0": step, "1": step})
    assert apply_delta(base, delta, len(target)) == target
    assert len(delta) < len(make_delta(base, target, old, new))


def test_steps_grow_by_quarters_of_an_octave() -> None:
    assert [step_size(step) for step in range(5)] == [1.0, 1.25, 1.5, 1.75, 2.0]
    assert step_size(-4) == 0.5


def test_a_snapped_delta_is_a_fraction_of_an_exact_one() -> None:
    before = weights(1, 100_000)
    step = -40  # about a thousandth
    after = snap_tensor(before, before + weights(2, 100_000, 0.003), step)
    (base, old), (target, new) = file_of(before), file_of(after)
    snapped, exact = (make_delta(base, target, old, new, steps) for steps in ({"0": step}, None))
    assert apply_delta(base, snapped, len(target)) == apply_delta(base, exact, len(target)) == target
    assert len(snapped) < 0.15 * len(target) < len(exact)


def test_what_did_not_change_costs_nothing() -> None:
    before, other = weights(1, 50_000), weights(2)
    (base, old), (target, new) = file_of(before, other), file_of(before, other * 2)
    assert len(make_delta(base, target, old, new)) < other.nbytes + 500


def test_tensors_that_came_went_or_grew_travel_with_the_rest_of_the_file() -> None:
    (base, old), (target, new) = file_of(weights(1), weights(2)), file_of(weights(1, 3_000), weights(2), weights(3))
    assert apply_delta(base, make_delta(base, target, old, new), len(target)) == target


def sent(*more: NDArray[Any]) -> tuple[bytes, bytes, bytes]:
    """A base, a target, and the delta between them with every kind of tensor (float ones alone if some are given)."""
    before = [weights(seed) for seed in range(3)]
    after = [before[0], snap_tensor(before[1], before[1] + weights(9, scale=0.001), -48), before[2] * 1.5]
    whole = [] if more else [np.arange(100, dtype=dtype) for dtype in (np.int32, np.int8, np.uint8)]
    (base, old), (target, new) = (
        file_of(*floats, *more, *(values + age for values in whole)) for age, floats in enumerate((before, after))
    )
    return base, target, make_delta(base, target, old, new, {"1": -48})


@settings(max_examples=400, deadline=None)
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_makes_other_bytes_but_never_crashes(at: float, bit: int) -> None:
    base, target, delta = sent()
    damaged = bytearray(delta)
    damaged[int(at * len(delta))] ^= 1 << bit
    try:
        made = apply_delta(base, bytes(damaged), len(target))
    except WireError:
        return
    assert len(made) == len(target)  # its hash, which the caller checks, tells


@settings(max_examples=200, deadline=None)
@given(keep=st.floats(0, 1, exclude_max=True))
def test_a_truncated_delta_is_refused(keep: float) -> None:
    base, target, delta = sent()
    with pytest.raises(WireError):
        apply_delta(base, delta[: int(keep * len(delta))], len(target))


@settings(max_examples=200, deadline=None)
@given(garbage=st.binary(max_size=200))
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(WireError):
        apply_delta(sent()[0], garbage, 10)


def test_a_delta_for_a_shorter_base_is_refused() -> None:
    base, target, delta = sent()
    with pytest.raises(WireError, match="another base"):
        apply_delta(base[: len(base) // 2], delta, len(target))


def test_a_delta_of_another_size_than_the_manifest_declares_is_refused() -> None:
    base, target, delta = sent()
    with pytest.raises(WireError, match="manifest declares"):
        apply_delta(base, delta, len(target) + 1)


def test_a_decompression_bomb_is_refused_before_it_grows() -> None:
    base, target, delta = sent()
    parts = msgspec.msgpack.decode(delta)
    bomb = zstandard.compress(bytes(512 * 1024 * 1024), 3)
    for place in range(2, len(parts)):
        for declared in (512 * 1024 * 1024, parts[place][0]):
            evil = [*parts]
            evil[place] = [declared, bomb]
            with pytest.raises(WireError):
                apply_delta(base, msgspec.msgpack.encode(evil), len(target))
