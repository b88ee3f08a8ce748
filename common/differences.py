"""Numbers as differences that compress well: what `common.delta` writes of tensors. Pure."""

import numpy as np
from numpy.typing import NDArray

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
