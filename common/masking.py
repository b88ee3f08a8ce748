"""Masks that cancel in a sum: the arithmetic and the keys of secure aggregation. No I/O, no rounds.

Bonawitz et al. 2017 (ACM CCS, "Practical Secure Aggregation for Privacy-Preserving Machine Learning"). Every member u
of a cohort adds to its vector a mask of its own, PRG(b_u), and one for each other member v, which u adds and v
subtracts: PRG(s_uv), with s_uv agreed by X25519. In the sum the pairs cancel; the sum of the own masks is taken off
with b_u of those who answered, and the pairs of those who fell silent with their key, both put together from shares
(Shamir) that any `threshold` members hold. Of one member the shares of b or those of the key are given out, never both.

Numbers are fixed-point words of 64 bits modulo 2^64, so that a masked word is uniform and a sum is exact in any order.
"""

import hashlib
from collections.abc import Mapping

import numpy as np
from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from common.errors import BoundError, WireError
from common.statistics import Array

Words = NDArray[np.uint64]

SEED_BYTES = 16  # what Shamir's field of 2^128 shares
SHARE_BYTES = SEED_BYTES
FRACTION_BITS = 32  # of samples of about unit length: a rounding of 1e-10 each
_WHOLE_BITS = 63 - FRACTION_BITS  # with a sign
_NONCE = bytes(12)  # every key below is used once


def to_words(values: Array, summands: int) -> Words:
    """Fixed-point, such that the sum of so many vectors cannot wrap around.

    Raises:
        BoundError: a value is too large for that, or not finite.
    """
    largest = float(np.abs(values).max(initial=0.0))
    if not largest < 2**_WHOLE_BITS / max(summands, 1):
        raise BoundError(f"a value of {largest:g} is too large to be masked for a sum of {summands}")
    words: Words = np.round(values * 2.0**FRACTION_BITS).astype(np.int64).view(np.uint64)
    return words


def from_words(words: Words) -> Array:
    """The numbers of a sum."""
    values: Array = words.view(np.int64) / 2.0**FRACTION_BITS
    return values


def keystream(seed: bytes, size: int) -> Words:
    """PRG: so many uniform words of a secret that is used for nothing else."""
    encryptor = Cipher(algorithms.ChaCha20(_derive(seed, b"stream"), bytes(16)), mode=None).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * size)), dtype="<u8").astype(np.uint64, copy=False)


def gaussian(seed: bytes, size: int) -> Array:
    """Normal numbers of variance 1 of a secret, by Box and Muller.

    Doubles, so an attacker who reads the last bits of an unrounded sum could do more than the theory says (Mironov
    2012); the sums here are rounded to fixed-point, which blunts this and is no proof against it.
    """
    half = (size + 1) // 2
    uniform = ((keystream(seed, 2 * half) >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    radius, angle = np.sqrt(-2 * np.log(uniform[:half])), 2 * np.pi * uniform[half:]
    drawn: Array = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
    return drawn


def key_of(seed: bytes) -> X25519PrivateKey:
    """The key pair of a seed: what is shared out is the seed."""
    return X25519PrivateKey.from_private_bytes(_derive(seed, b"key"))


def public_of(seed: bytes) -> bytes:
    """32 bytes."""
    return key_of(seed).public_key().public_bytes_raw()


def agree(seed: bytes, peer_public: bytes, purpose: bytes) -> bytes:
    """The secret of two members for one purpose; both get the same.

    Raises:
        WireError: no public key.
    """
    own = key_of(seed)
    try:
        shared = own.exchange(X25519PublicKey.from_public_bytes(peer_public))
    except ValueError as error:
        raise WireError(f"not a public key: {error}") from error
    both = b"".join(sorted((own.public_key().public_bytes_raw(), peer_public)))
    return _derive(shared, b"agree " + purpose + b" " + both)


def masked(words: Words, own: int, seed: bytes, own_mask: bytes, peers: Mapping[int, bytes], session: bytes) -> Words:
    """A member's vector under its masks.

    Args:
        own: the member's number; of a pair the smaller one adds.
        seed: of its key pair.
        own_mask: b, the seed of its own mask.
        peers: number -> public key of the other members of the sum.
    """
    total = words + keystream(own_mask, len(words))
    for peer, public in peers.items():
        total += pair_mask(own, peer, seed, public, session, len(words))
    return total


def pair_mask(own: int, peer: int, seed: bytes, peer_public: bytes, session: bytes, size: int) -> Words:
    """What `own` adds on account of `peer`; the negative is what `peer` adds."""
    stream = keystream(agree(seed, peer_public, b"mask " + session), size)
    return stream if own < peer else np.negative(stream)


def split_secret(secret: bytes, threshold: int, count: int) -> list[bytes]:
    """Shares for members 1..count; any `threshold` of them give the secret, fewer say nothing."""
    return [share for _, share in Shamir.split(threshold, count, secret, ssss=False)]


def join_secret(shares: Mapping[int, bytes]) -> bytes:
    """The secret of `threshold` shares, by the place 1..count of who held them; of fewer, or wrong ones, another."""
    secret: bytes = Shamir.combine(list(shares.items()), ssss=False)
    return secret


def seal(seed: bytes, to_public: bytes, text: bytes, session: bytes) -> bytes:
    """For one member's eyes; once per pair, direction and session."""
    key = agree(seed, to_public, b"seal " + session + public_of(seed))
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, None)


def unseal(seed: bytes, from_public: bytes, sealed: bytes, session: bytes) -> bytes:
    """Raises:
    WireError: not sealed by that member for us in this session.
    """
    key = agree(seed, from_public, b"seal " + session + from_public)
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except (InvalidTag, ValueError) as error:
        raise WireError("a sealed share does not open") from error


def commitment(secret: bytes) -> bytes:
    """By which a secret that was put together from shares is known again; says nothing of 128 random bits."""
    return hashlib.blake2b(secret, digest_size=16, person=b"headframe-mask").digest()


def _derive(secret: bytes, purpose: bytes) -> bytes:
    return HKDF(SHA256(), 32, salt=None, info=b"headframe masking 1 " + purpose).derive(secret)
