"""A file of labelled embeddings of one node: what a gateway's exemplars are, for a node that is no gateway.

`headframe cloud partition` writes one from a folder of pictures, `edge.fleet_client` answers rounds from it. An .npz
with `ids` (n, 16) uint8, `embeddings` float (n, d), `labels` (n,) text, and `scenario` and `backbone`.
"""

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from common.errors import OperatorError
from common.files import READABLE, write_atomically


@dataclass(frozen=True)
class Partition:
    """Labelled embeddings of a scenario on a backbone; read-only."""

    ids: tuple[bytes, ...]
    embeddings: NDArray[np.floating]
    labels: tuple[str, ...]
    scenario: str
    backbone: str

    @classmethod
    def open(cls, path: Path) -> "Partition":
        """Raises:
        OperatorError: there is no such file, or it is no partition.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                ids = tuple(bytes(row) for row in file["ids"])
                labels = tuple(str(label) for label in file["labels"])
                found = cls(ids, file["embeddings"], labels, str(file["scenario"]), str(file["backbone"]))
        except (OSError, ValueError, KeyError) as error:
            raise OperatorError(
                f"{path} is no file of labelled embeddings: {error}", "`headframe cloud partition` writes one."
            ) from error
        if not len(found.ids) == len(found.embeddings) == len(found.labels):
            raise OperatorError(f"{path} has ids, embeddings and labels of different numbers", "Write it again.")
        return found

    def save(self, path: Path) -> None:
        """Write it, whole or not at all."""
        ids = np.frombuffer(b"".join(self.ids), np.uint8).reshape(len(self.ids), -1)
        buffer = io.BytesIO()
        np.savez(
            buffer,
            ids=ids,
            embeddings=self.embeddings,
            labels=np.array(self.labels),
            scenario=np.array(self.scenario),
            backbone=np.array(self.backbone),
        )
        write_atomically(path, buffer.getvalue(), READABLE)

    def label(self, labels: Mapping[bytes, Mapping[str, str]]) -> int:
        """The file's labels are what they are: none is taken."""
        del labels
        return 0

    def labelled(self, scenario: str, backbone: str) -> tuple[list[bytes], NDArray[np.float32], list[str]]:
        """Ids, embeddings and labels, when they are of this scenario and backbone."""
        if (scenario, backbone) != (self.scenario, self.backbone):
            return [], np.zeros((0, 0), np.float32), []
        return list(self.ids), self.embeddings.astype(np.float32), list(self.labels)
