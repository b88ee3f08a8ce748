"""Masks cancel exactly in every sum, and one masked vector says nothing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common import masking
from common.errors import BoundError, WireError

SESSION = b"s" * 16
SIZE = 40


def seed_of(number: int, kind: int = 0) -> bytes:
    return bytes([kind]) * 8 + number.to_bytes(8, "big")


def vectors(count: int, salt: int) -> list[np.ndarray]:
    rng = np.random.default_rng(salt)
    return [rng.normal(0, 100, SIZE) for _ in range(count)]


def under_masks(numbers: list[np.ndarray]) -> list[masking.Words]:
    members = range(len(numbers))
    public = {member: masking.public_of(seed_of(member)) for member in members}
    return [
        masking.masked(
            masking.to_words(numbers[own], len(numbers)),
            own,
            seed_of(own),
            seed_of(own, 1),
            {peer: key for peer, key in public.items() if peer != own},
            SESSION,
        )
        for own in members
    ]


@given(st.integers(2, 7), st.integers(0, 1000), st.data())
def test_masks_cancel_exactly_whoever_falls_silent(count: int, salt: int, data: st.DataObject) -> None:
    numbers = vectors(count, salt)
    silent = data.draw(st.sets(st.integers(0, count - 1), max_size=count - 1))
    answered = sorted(set(range(count)) - silent)
    sent = under_masks(numbers)
    total = np.sum([sent[member] for member in answered], axis=0, dtype=np.uint64)
    for member in answered:
        total -= masking.keystream(seed_of(member, 1), SIZE)
    for gone in silent:
        for member in answered:
            public = masking.public_of(seed_of(member))
            total += masking.pair_mask(gone, member, seed_of(gone), public, SESSION, SIZE)
    words = [masking.to_words(numbers[member], count) for member in answered]
    np.testing.assert_array_equal(total, np.sum(words, axis=0, dtype=np.uint64))
    expected = np.sum([numbers[member] for member in answered], axis=0)
    np.testing.assert_allclose(masking.from_words(total), expected, atol=count * 2.0**-32)


def test_one_masked_vector_is_uniform_whatever_is_in_it() -> None:
    size, public = 1 << 16, {1: masking.public_of(seed_of(1))}
    bits = []
    for number in (0.0, 1.0, 1e6):
        words = masking.to_words(np.full(size, number), 2)
        sent = masking.masked(words, 0, seed_of(0), seed_of(0, 1), public, SESSION)
        counts = np.bincount(sent.view(np.uint8), minlength=256)
        expected = 8 * size / 256
        chi2 = float(((counts - expected) ** 2 / expected).sum())
        assert 150 < chi2 < 380, "bytes of 255 degrees of freedom: within 5 standard deviations"
        bits.append(np.unpackbits(sent.view(np.uint8)).mean())
        assert abs(np.corrcoef(sent.astype(float), np.arange(size))[0, 1]) < 0.02
    assert max(abs(share - 0.5) for share in bits) < 0.002


def test_another_session_or_peer_has_other_masks() -> None:
    public = masking.public_of(seed_of(1))
    one = masking.pair_mask(0, 1, seed_of(0), public, SESSION, 4)
    np.testing.assert_array_equal(one, -masking.pair_mask(1, 0, seed_of(1), masking.public_of(seed_of(0)), SESSION, 4))
    assert (one != masking.pair_mask(0, 1, seed_of(0), public, b"t" * 16, 4)).all()
    assert (one != masking.pair_mask(0, 2, seed_of(0), masking.public_of(seed_of(2)), SESSION, 4)).all()


@given(st.binary(min_size=16, max_size=16), st.integers(2, 9), st.data())
def test_a_threshold_of_shares_opens_a_secret_and_one_fewer_does_not(
    secret: bytes, count: int, data: st.DataObject
) -> None:
    threshold = data.draw(st.integers(2, count))
    shares = dict(enumerate(masking.split_secret(secret, threshold, count), 1))
    held = data.draw(st.permutations(sorted(shares)))
    assert masking.join_secret({place: shares[place] for place in held[:threshold]}) == secret
    fewer = masking.join_secret({place: shares[place] for place in held[: threshold - 1]})
    assert masking.commitment(fewer) != masking.commitment(secret)


def test_a_sealed_share_opens_for_its_receiver_only() -> None:
    sealed = masking.seal(seed_of(0), masking.public_of(seed_of(1)), b"share", SESSION)
    sender = masking.public_of(seed_of(0))
    assert masking.unseal(seed_of(1), sender, sealed, SESSION) == b"share"
    for seed, public, text, session in (
        (seed_of(2), sender, sealed, SESSION),
        (seed_of(1), masking.public_of(seed_of(2)), sealed, SESSION),
        (seed_of(1), sender, sealed[:-1], SESSION),
        (seed_of(1), sender, sealed, b"t" * 16),
    ):
        with pytest.raises(WireError):
            masking.unseal(seed, public, text, session)


@pytest.mark.parametrize("value", [2.0**31, -(2.0**40), np.inf, np.nan])
def test_what_would_wrap_around_is_refused(value: float) -> None:
    with pytest.raises(BoundError):
        masking.to_words(np.array([value]), 16)


def test_noise_is_normal() -> None:
    drawn = masking.gaussian(seed_of(5), 200_001)
    assert abs(drawn.mean()) < 0.01
    assert abs(drawn.std() - 1) < 0.01
    assert abs((np.abs(drawn) > 1.959964).mean() - 0.05) < 0.003
