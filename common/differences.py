"""Numbers as differences that compress well: what `common.delta` writes of tensors. Pure."""

from typing import Final

import numpy as np
from numpy.typing import NDArray

# --- in steps ---------------------------------------------------------------------------------

STEP_MIN: Final = 4 * -100
STEP_MAX: Final = 4 * 100


def step_size(step: int) -> float:
    """The step of an index: four in each octave, (1, 1.25, 1.5, 1.75) * 2**(step // 4)."""
    return (1.0 + (step % 4) / 4) * 2.0 ** (step // 4)


def snap_tensor(before: NDArray[np.float32], after: NDArray[np.float32], step: int) -> NDArray[np.float32]:
    """The nearest values to `after` (count,) that `before` reaches in whole steps: what a delta can carry."""
    return move_by(before, nearest_moves(before, after, step), step)


def scale_tensor(before: NDArray[np.float32], ratio: NDArray[np.floating], step: int) -> NDArray[np.float32]:
    """`before` (count,) times about `ratio`: one and whole steps, the same for all tensors of the same ratios."""
    return scale_by(before, _whole((ratio.astype(np.float64) - 1) / step_size(step)), step)


def move_by(before: NDArray[np.float32], codes: NDArray[np.int16], step: int) -> NDArray[np.float32]:
    """before + code * step, rounded once."""
    with np.errstate(all="ignore"):  # whatever the floats are: the encoder looks whether they came out
        moved: NDArray[np.float32] = before + codes.astype(np.float32) * np.float32(step_size(step))
    return moved


def scale_by(before: NDArray[np.float32], codes: NDArray[np.int16], step: int) -> NDArray[np.float32]:
    """before * (1 + code * step): the product of code and step is exact, each of the other two is rounded once."""
    with np.errstate(all="ignore"):
        factor = np.float32(1) + codes.astype(np.float32) * np.float32(step_size(step))
        scaled: NDArray[np.float32] = before * factor
    return scaled


def nearest_moves(before: NDArray[np.float32], after: NDArray[np.float32], step: int) -> NDArray[np.int16]:
    """The codes with which `move_by` comes nearest to `after`."""
    with np.errstate(all="ignore"):
        return _whole((after.astype(np.float64) - before.astype(np.float64)) / step_size(step))


def nearest_ratios(before: NDArray[np.float32], after: NDArray[np.float32], step: int) -> NDArray[np.int16]:
    """… and `scale_by`."""
    with np.errstate(all="ignore"):
        return _whole((after.astype(np.float64) / before.astype(np.float64) - 1) / step_size(step))


def _whole(codes: NDArray[np.float64]) -> NDArray[np.int16]:
    with np.errstate(all="ignore"):
        whole: NDArray[np.int16] = np.clip(np.nan_to_num(np.rint(codes)), -(2**15), 2**15 - 1).astype(np.int16)
    return whole


# --- as integers ------------------------------------------------------------------------------


def _ordered(values: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Float bits as integers that are in the order of the reals: close floats are close integers."""
    bits = values.view(np.uint32)
    flipped = np.where(bits >> 31, ~bits, bits | np.uint32(1 << 31))
    return flipped.astype(np.uint32)


def _unordered(values: NDArray[np.uint32]) -> NDArray[np.float32]:
    bits = np.where(values >> 31, values & np.uint32(0x7FFFFFFF), ~values).astype(np.uint32)
    return bits.view(np.float32)


def float_differences(before: NDArray[np.float32], after: NDArray[np.float32]) -> NDArray[np.uint32]:
    """How many floats lie between, as `zigzag`."""
    return zigzag((_ordered(after) - _ordered(before)).view(np.int32)).view(np.uint32)


def move_floats(before: NDArray[np.float32], differences: NDArray[np.uint32]) -> NDArray[np.float32]:
    """The inverse: so many floats on."""
    return _unordered(_ordered(before) + unzigzag(differences).view(np.uint32))


def whole_differences(before: NDArray[np.int32], after: NDArray[np.int32]) -> NDArray[np.uint32]:
    """Of int32, which may wrap, as `zigzag`."""
    return zigzag((after.view(np.uint32) - before.view(np.uint32)).view(np.int32)).view(np.uint32)


def move_wholes(before: NDArray[np.int32], differences: NDArray[np.uint32]) -> NDArray[np.int32]:
    """The inverse."""
    return (before.view(np.uint32) + unzigzag(differences).view(np.uint32)).view(np.int32)


def zigzag(values: NDArray[np.signedinteger]) -> NDArray[np.unsignedinteger]:
    """Small magnitudes of either sign become small unsigned numbers."""
    bits = values.dtype.itemsize * 8 - 1
    folded: NDArray[np.unsignedinteger] = ((values << 1) ^ (values >> bits)).view(f"u{values.dtype.itemsize}")
    return folded


def unzigzag(values: NDArray[np.unsignedinteger]) -> NDArray[np.signedinteger]:
    one = values.dtype.type(1)
    folded = (values >> one) ^ (~(values & one) + one)
    unfolded: NDArray[np.signedinteger] = folded.view(f"i{values.dtype.itemsize}")
    return unfolded


# --- as bytes ---------------------------------------------------------------------------------


def planes(values: NDArray[np.unsignedinteger]) -> bytes:
    """All lowest bytes, then all next ones …: what is alike stands together."""
    little = values.astype(values.dtype.newbyteorder("<"))
    return np.ascontiguousarray(little.view(np.uint8).reshape(-1, little.itemsize).T).tobytes()


def unplanes(data: bytes, dtype: type[np.unsignedinteger]) -> NDArray[np.unsignedinteger]:
    size = np.dtype(dtype).itemsize
    rows = np.ascontiguousarray(np.frombuffer(data, np.uint8).reshape(size, -1).T)
    return rows.view(np.dtype(dtype).newbyteorder("<")).ravel().astype(dtype)


def find_changes(before: NDArray[np.uint8], after: NDArray[np.uint8]) -> tuple[bytes, bytes]:
    """Which of some bytes changed, a bit each, and by how much those that did, wrapped, as `zigzag`.

    Apart they come within a twentieth of their entropy when compressed; as one stream of differences a code costs a
    bit at least, also where one in fifty changed.
    """
    differences = after - before
    changed = differences != 0
    return np.packbits(changed).tobytes(), zigzag(differences[changed].view(np.int8)).tobytes()


def find_changed(bits: bytes, count: int) -> NDArray[np.bool_]:
    """bool (count,) of the first half of `find_changes`."""
    return np.unpackbits(np.frombuffer(bits, np.uint8), count=count).view(np.bool_)


def move_bytes(before: NDArray[np.uint8], changed: NDArray[np.bool_], moves: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The inverse, of the second half: the changed ones moved."""
    after = before.copy()
    after[changed] += unzigzag(moves).view(np.uint8)
    return after
