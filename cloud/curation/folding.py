"""Which pictures are near-duplicates of which: exact, whatever the order, in bounded memory. Decides nothing more.

Two pictures are near-duplicates when a perceptual hash *and* the embedding say so:

- *copies*: hashes differ in at most a fifth of their bits (the same picture compressed, brightened, or cropped by a
  hair), and the embeddings do not contradict;
- *views*: hashes differ in up to a third, and the embeddings are nearly the same (a crop, the next frame).

Either alone fails on real pictures: a patch of 128 pixels keeps a cosine of 0.73 to its own JPEG copy while other
pictures of its class reach 0.95, and a hash alone calls two even surfaces the same.

Groups are the connected components of that relation among the pictures of one owner (site or scene), so they do not
depend on the order, and a site that leaves changes no other site's groups. The relation is compared pair by pair in
blocks: n² / 2 Hamming distances an owner as matrix products, cosines for the few pairs that are left.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

COPY_BITS, COPY_COSINE = 51, 0.6
VIEW_BITS, VIEW_COSINE = 92, 0.9
"""Of 256 bits, half of which differ between strangers, 82 in the nearest of 1.2 million pairs of other scenes. JPEG at
quality 40 to 80 and brightness by a third stay below 40 for 99 pictures in 100; a crop by a twentieth has 64, by a
tenth 100 (medians). Chosen on belt-defects and neu-steel (docs/datasets.md)."""
GOLD_BITS = 102
"""As `VIEW_BITS`, against gold: left out needlessly a picture costs little, learnt from it flatters the gate."""
BLOCK = 1024
"""Rows compared with as many at once: 4 MB of distances."""
PAIRS_MAX = 16_384
"""Pairs whose cosine is computed at once: 2 x 84 MB at 1,280 features."""

Groups = NDArray[np.int64]


def near_groups(
    hashes: NDArray[np.uint8], hashed: NDArray[np.bool_], embeddings: NDArray[np.floating], owners: Sequence[str]
) -> Groups:
    """The group (n,) of each picture, named by its first row; a picture that is like no other is a group of its own.

    Args:
        hashes: (n, 32); rows where `hashed` (n,) is false are like no other.
        embeddings: (n, d), of one backbone.
        owners: only pictures of the same owner are compared.
    """
    groups = np.arange(len(owners))
    rows_of: dict[str, list[int]] = {}
    for row in np.flatnonzero(hashed).tolist():
        rows_of.setdefault(owners[row], []).append(row)
    for own in rows_of.values():
        rows = np.array(own)
        groups[rows] = rows[_components(hashes[rows], embeddings[rows])]
    return groups


def nearest_among(
    hashes: NDArray[np.uint8],
    hashed: NDArray[np.bool_],
    embeddings: NDArray[np.floating],
    few: NDArray[np.integer],
    asked: NDArray[np.integer] | None = None,
) -> NDArray[np.int64]:
    """For each picture (n,) the first row of `few` that it is a near-duplicate of, whoever owns it; -1 where none is.
    A row of `few` is near itself.

    Args:
        asked: rows that are compared; by default all. The others get -1.
    """
    found = np.full(len(hashes), len(hashes))
    few = np.sort(few[hashed[few]])
    rows = np.flatnonzero(hashed) if asked is None else asked[hashed[asked]]
    for left, right in _close(hashes, rows, few, GOLD_BITS):
        for start in range(0, len(left), PAIRS_MAX):
            a, b = left[start : start + PAIRS_MAX], right[start : start + PAIRS_MAX]
            near = _alike(hashes, embeddings, a, b)
            np.minimum.at(found, a[near], b[near])
    found[found == len(hashes)] = -1
    return found


def _components(hashes: NDArray[np.uint8], embeddings: NDArray[np.floating]) -> Groups:
    """Connected components of near-duplicates, each row's named by its smallest row.

    Pairs that are connected already are not looked at again: a camera that has not moved all day is one matrix product.
    """
    root = np.arange(len(hashes))
    rows = np.arange(len(hashes))
    for block in _close(hashes, rows, rows, VIEW_BITS):
        left, right = block
        while len(left):
            apart = root[left] != root[right]
            left, right = left[apart], right[apart]
            a, b = left[:PAIRS_MAX], right[:PAIRS_MAX]
            near = _alike(hashes, embeddings, a, b)
            if near.any():
                root = _merge(root, root[a[near]], root[b[near]])
            left, right = left[PAIRS_MAX:], right[PAIRS_MAX:]
    return root


def _close(
    hashes: NDArray[np.uint8], first: NDArray[np.integer], second: NDArray[np.integer], bits_max: int
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Pairs of rows, one of each, whose hashes differ in at most `bits_max`, block by block; of the same list twice
    each pair comes once."""
    same = first is second
    for top in range(0, len(first), BLOCK):
        ours = first[top : top + BLOCK]
        signs = _signs(hashes[ours])
        for side in range(top if same else 0, len(second), BLOCK):
            theirs = second[side : side + BLOCK]
            agreement = signs @ _signs(hashes[theirs]).T  # bits less twice the distance: exact in float32
            close = agreement >= 8 * hashes.shape[1] - 2 * bits_max
            a, b = np.nonzero(np.triu(close, 1) if same and side == top else close)
            if len(a):
                yield ours[a].astype(np.int64), theirs[b].astype(np.int64)


def _signs(hashes: NDArray[np.uint8]) -> NDArray[np.float32]:
    return np.unpackbits(hashes, axis=1).astype(np.float32) * 2 - 1


def _alike(
    hashes: NDArray[np.uint8], embeddings: NDArray[np.floating], a: NDArray[np.int64], b: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether the pairs are near-duplicates; computed pair by pair, so that no pair's answer hangs on its block."""
    bits = np.bitwise_count(hashes[a] ^ hashes[b]).sum(axis=1)
    x, y = embeddings[a].astype(np.float32), embeddings[b].astype(np.float32)
    lengths = np.sqrt((x * x).sum(axis=1) * (y * y).sum(axis=1))
    cosines = (x * y).sum(axis=1) / np.maximum(lengths, np.float32(1e-12))
    alike: NDArray[np.bool_] = ((bits <= COPY_BITS) & (cosines >= COPY_COSINE)) | (cosines >= VIEW_COSINE)
    return alike


def _merge(root: Groups, a: Groups, b: Groups) -> Groups:
    """The roots after joining a[i] with b[i]; every row points at the smallest row of its group."""
    names, places = np.unique(np.concatenate([a, b]), return_inverse=True)
    ends = places.reshape(2, -1)
    edges = coo_array((np.ones(len(a), np.int8), (ends[0], ends[1])), shape=(len(names), len(names)))
    count, part = connected_components(edges, directed=False)
    smallest = np.full(count, len(root))
    np.minimum.at(smallest, part, names)
    table = np.arange(len(root))
    table[names] = smallest[part]
    return np.asarray(table[root], dtype=np.int64)
