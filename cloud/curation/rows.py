"""The labelled pictures of a scenario as columns, in one order that does not depend on how they came in."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HASH_BYTES = 32
"""Of a perceptual hash (`cloud.pictures.perceptual_hash`)."""
UPLOADED = ""
"""Source of samples that gateways uploaded; pictures of a dataset have its name."""


@dataclass(frozen=True, slots=True)
class Rows:
    """One labelled picture a row; arrays have one row each."""

    ids: tuple[bytes, ...]
    labels: tuple[str, ...]
    owners: tuple[str, ...]
    """The site that took it, or the scene that a dataset names."""
    sources: tuple[str, ...]
    """`UPLOADED`, or the name of a dataset."""
    embeddings: NDArray[np.float32]
    """(n, d)"""
    hashes: NDArray[np.uint8]
    """(n, 32)"""
    hashed: NDArray[np.bool_]
    """Whether the hash is known; a picture without one is like no other."""
    flagged: NDArray[np.bool_]
    """Proposed as gold by its dataset."""
    by_scene: NDArray[np.bool_]
    """Whether its dataset gives whole scenes to gold."""

    def __len__(self) -> int:
        return len(self.ids)

    def pick(self, rows: NDArray[np.integer]) -> "Rows":
        """Some of the rows, in this order."""
        return Rows(
            tuple(self.ids[row] for row in rows),
            tuple(self.labels[row] for row in rows),
            tuple(self.owners[row] for row in rows),
            tuple(self.sources[row] for row in rows),
            self.embeddings[rows],
            self.hashes[rows],
            self.hashed[rows],
            self.flagged[rows],
            self.by_scene[rows],
        )

    def order(self) -> NDArray[np.int64]:
        """The order of the rows: by id, and for one id by where it comes from."""
        keys = list(zip(self.ids, self.sources, self.labels, self.owners, strict=True))
        return np.array(sorted(range(len(keys)), key=keys.__getitem__), dtype=np.int64)


def join_rows(parts: Sequence[Rows]) -> Rows:
    """All rows of all parts, which have embeddings of one dimension.

    Args:
        parts: at least one.
    """
    return Rows(
        tuple(name for part in parts for name in part.ids),
        tuple(label for part in parts for label in part.labels),
        tuple(owner for part in parts for owner in part.owners),
        tuple(source for part in parts for source in part.sources),
        np.concatenate([part.embeddings for part in parts]),
        np.concatenate([part.hashes for part in parts]),
        np.concatenate([part.hashed for part in parts]),
        np.concatenate([part.flagged for part in parts]),
        np.concatenate([part.by_scene for part in parts]),
    )
