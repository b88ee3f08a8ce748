"""Compressed updates: the stated error holds, what is lost comes later, and hostile bytes are refused unopened."""

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from common.compression import SCHEMES, decode, decompress, encode
from common.errors import WireError

floats = st.floats(-1e6, 1e6, width=32)
updates = arrays(np.float32, array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=7), elements=floats)


@given(updates, st.sampled_from(["int8", "int4"]))
def test_a_value_moves_by_at_most_half_a_step(values: np.ndarray, scheme: str) -> None:
    found = decode(encode(values, scheme).data, scheme, values.shape)
    if values.size:
        rows = values.reshape(values.shape[0], -1) if values.ndim > 1 else values.reshape(1, -1)
        step = np.abs(rows).max(axis=1, keepdims=True) / {"int8": 127, "int4": 7}[scheme]
        assert (abs(found.reshape(rows.shape) - rows) <= step * 0.501 + 1e-30).all()
    assert found.shape == values.shape


@given(updates, st.floats(0, 1))
def test_the_largest_are_kept_exactly_and_the_rest_left_out(values: np.ndarray, kept: float) -> None:
    found = decode(encode(values, "topk", kept).data, "topk", values.shape)
    there = found != 0
    np.testing.assert_array_equal(found[there], values[there])
    if there.any() and (~there).any():
        assert abs(values[~there]).max() <= abs(values[there]).min()


@given(updates, st.sampled_from(SCHEMES))
def test_what_is_lost_is_said(values: np.ndarray, scheme: str) -> None:
    encoded = encode(values, scheme)
    np.testing.assert_array_equal(decode(encoded.data, scheme, values.shape) + encoded.lost, values + 0 * encoded.lost)


@pytest.mark.parametrize(
    ("scheme", "share", "error"), [("int8", 0.24, 0.0088), ("int4", 0.10, 0.16), ("topk", 0.19, 0.75)]
)
def test_bytes_and_relative_error_are_as_the_table_says(scheme: str, share: float, error: float) -> None:
    """docs/federation.md has these figures, for normal values; trained differences are kinder to topk."""
    values = np.random.default_rng(0).standard_normal((64, 4096), np.float32)
    encoded = encode(values, scheme)
    assert len(encoded.data) / values.nbytes < share
    assert np.linalg.norm(encoded.lost) / np.linalg.norm(values) < error


@pytest.mark.parametrize("scheme", ["int4", "topk"])
def test_with_error_feedback_the_sum_of_many_updates_comes_through(scheme: str) -> None:
    truth, arrived, lost = np.zeros((8, 32)), np.zeros((8, 32)), np.zeros((8, 32), np.float32)
    rng = np.random.default_rng(1)
    for _ in range(200):
        update = rng.normal(0.1, 1, (8, 32)).astype(np.float32)
        truth += update
        encoded = encode(update + lost, scheme)
        lost = encoded.lost
        arrived += decode(encoded.data, scheme, (8, 32))
    np.testing.assert_allclose(arrived + lost, truth, atol=1e-2)
    assert abs(lost).max() < 25, "what is owed stays bounded"


def test_a_bomb_is_refused_before_it_is_opened() -> None:
    bomb = zstandard.ZstdCompressor(level=19).compress(bytes(512 * 2**20))
    assert len(bomb) < 2**16
    for scheme in SCHEMES:
        with pytest.raises(WireError, match="declares"):
            decode(bomb, scheme, (16, 16))


def test_bytes_that_do_not_fit_are_refused() -> None:
    good = encode(np.ones((4, 4), np.float32), "int8").data
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(32))
    for data, shape, says in (
        (good, (4, 5), "declares"),
        (good + b"more", (4, 4), "not a compressed update"),
        (good[:-3], (4, 4), "not a compressed update"),
        (b"nothing", (4, 4), "not a compressed update"),
        (silent, (4, 4), "declares"),
        (good, (2**20, 2**20), "cannot be decoded"),
    ):
        with pytest.raises(WireError, match=says):
            decode(data, "int8", shape)
    with pytest.raises(WireError, match="cannot be decoded"):
        decode(good, "int3", (4, 4))
    pairs = np.array([(5, 1.0), (5, 2.0)], np.dtype([("place", "<u4"), ("value", "<f4")])).tobytes()
    for body, shape in ((pairs, (9,)), (pairs[:8], (3,))):
        with pytest.raises(WireError, match="not in order"):
            decode(zstandard.compress(body), "topk", shape)


@given(st.binary(max_size=120), st.sampled_from(SCHEMES))
def test_any_bytes_are_values_or_a_wire_error(data: bytes, scheme: str) -> None:
    for given_bytes in (data, zstandard.compress(data)):
        try:
            assert decode(given_bytes, scheme, (3, 5)).shape == (3, 5)
        except WireError as error:
            assert str(error)
    assert decompress(zstandard.compress(data), 120) == data
