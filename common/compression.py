"""Weight updates in fewer bytes: int8 or int4 per channel, or the largest values only; then zstandard. Pure.

What is lost is bounded and stated: a value moves by at most half a step, where a channel's step is its largest value
/ 127 (int8) or / 7 (int4); `topk` keeps values exactly and leaves the others out. Whoever sends updates again and again
keeps what was lost and adds it to the next (error feedback, Karimireddy et al. 2019, arXiv:1901.09847): `encode`
returns it.

A peer's bytes are not trusted: the size of the decompressed body follows from the shape, and a frame that declares
another is refused before it is opened (zstandard's `max_output_size` is no bound where the frame declares its size).
"""

import math
from dataclasses import dataclass

import numpy as np
import zstandard
from numpy.typing import NDArray

from common.errors import WireError

Values = NDArray[np.float32]
SCHEMES = ("int8", "int4", "topk")
VALUES_MAX = 2**28  # 1 GiB of float32: larger than any layer we ship
WINDOW_BYTES_MAX = 2**23  # what a decoder must be able to hold (RFC 8878 recommends 8 MiB)
_LEVEL = 3
_STEPS = {"int8": 127, "int4": 7}
_PAIR = np.dtype([("place", "<u4"), ("value", "<f4")])


@dataclass(frozen=True, slots=True)
class Encoded:
    """Bytes, and what decoding them does not give back."""

    data: bytes
    lost: Values


def encode(values: Values, scheme: str, kept: float = 0.1) -> Encoded:
    """Encode float32 values of any shape; the first axis is the channels.

    Args:
        kept: share of values that `topk` keeps.
    """
    if scheme not in SCHEMES:
        raise ValueError(f"{scheme!r} is none of {', '.join(SCHEMES)}")
    values = np.ascontiguousarray(values, dtype=np.float32)
    body = _largest(values, kept) if scheme == "topk" else _steps(values, scheme)
    data = zstandard.ZstdCompressor(level=_LEVEL, write_content_size=True).compress(body)
    return Encoded(data, values - decode(data, scheme, values.shape))


def decode(data: bytes | memoryview, scheme: str, shape: tuple[int, ...]) -> Values:
    """Values of `shape`.

    Raises:
        WireError: an unknown scheme, or bytes that do not fit the shape.
    """
    size = math.prod(shape)
    if scheme not in SCHEMES or size > VALUES_MAX or any(length < 0 for length in shape):
        raise WireError(f"an update of scheme {scheme!r} and shape {shape} cannot be decoded")
    if scheme == "topk":
        body = decompress(data, size * _PAIR.itemsize)
        if len(body) % _PAIR.itemsize:
            raise WireError("the largest values are not whole")
        pairs = np.frombuffer(body, _PAIR)
        if len(pairs) and (pairs["place"].max() >= size or (np.diff(pairs["place"].astype(np.int64)) <= 0).any()):
            raise WireError("the places of the largest values are not in order within the array")
        found = np.zeros(size, np.float32)
        found[pairs["place"]] = pairs["value"]
        return found.reshape(shape)
    channels, width = _channels(shape)
    bytes_each = width if scheme == "int8" else -(-width // 2)
    body = decompress(data, channels * (4 + bytes_each), exact=True)
    scales = np.frombuffer(body, "<f4", channels)
    codes = np.frombuffer(body, np.uint8, offset=4 * channels).reshape(channels, bytes_each)
    whole = codes.view(np.int8) if scheme == "int8" else _unpack(codes, width)
    with np.errstate(over="ignore", invalid="ignore"):  # a peer's scale may be anything; whoever folds looks for it
        return np.asarray(whole * scales[:, None], dtype=np.float32).reshape(shape)


def decompress(data: bytes | memoryview, bytes_max: int, *, exact: bool = False) -> bytes:
    """Open one zstandard frame whose declared size is within a bound.

    Raises:
        WireError: no such frame, no declared size, another size than declared, a window over the bound, extra bytes.
    """
    try:
        frame = zstandard.get_frame_parameters(data)
        declared = frame.content_size
        if declared == zstandard.CONTENTSIZE_UNKNOWN or declared > bytes_max or (exact and declared != bytes_max):
            raise WireError(f"a compressed update declares {declared} bytes, {bytes_max} are right")
        if declared == 0:
            return b""
        decoder = zstandard.ZstdDecompressor(max_window_size=WINDOW_BYTES_MAX)
        body = decoder.decompress(data, max_output_size=declared, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise WireError(f"not a compressed update: {error}") from error
    if len(body) != declared:
        raise WireError(f"a compressed update holds {len(body)} bytes and declares {declared}")
    return body


def _channels(shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels and values per channel; a vector is one channel."""
    if len(shape) < 2:
        return 1, math.prod(shape)
    return shape[0], math.prod(shape[1:])


def _steps(values: Values, scheme: str) -> bytes:
    rows = values.reshape(_channels(values.shape))
    most = np.abs(rows).max(axis=1, initial=0.0)
    scales = (most / _STEPS[scheme]).astype("<f4")
    codes = np.rint(np.divide(rows, scales[:, None], out=np.zeros_like(rows), where=scales[:, None] > 0))
    whole = np.clip(codes, -_STEPS[scheme], _STEPS[scheme]).astype(np.int8)
    return bytes(scales.tobytes() + (whole if scheme == "int8" else _pack(whole)).tobytes())


def _largest(values: Values, kept: float) -> bytes:
    flat = values.reshape(-1)
    count = min(len(flat), math.ceil(kept * len(flat)))
    places = np.sort(np.argpartition(-np.abs(flat), count - 1)[:count]) if count else np.zeros(0, np.int64)
    pairs = np.zeros(count, _PAIR)
    pairs["place"], pairs["value"] = places, flat[places]
    return pairs.tobytes()


def _pack(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Two codes of -7..7 in a byte."""
    padded = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).view(np.uint8) & 0x0F
    return np.asarray(padded[:, ::2] | padded[:, 1::2] << 4, dtype=np.uint8)


def _unpack(packed: NDArray[np.uint8], width: int) -> NDArray[np.int8]:
    codes = np.empty((packed.shape[0], 2 * packed.shape[1]), np.int8)
    codes[:, ::2], codes[:, 1::2] = (packed << 4).view(np.int8) >> 4, packed.view(np.int8) >> 4
    return codes[:, :width]
