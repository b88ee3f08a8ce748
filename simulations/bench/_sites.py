"""Real pictures as a fleet of sites: frozen embeddings, splits that do not leak, partitions that hurt. Learns nothing.

Embeddings are computed in the run by the product's own backbone. A data set whose pictures come in scenes is split by
scene, never by picture: two pictures of one scene on both sides measure memory.
"""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.learning.datasets import Item, read_folder
from cloud.learning.export import export_default_backbone
from common.backbone import Backbone
from common.errors import OperatorError
from common.pictures import read_picture
from simulations.data import find_data

DATA_SETS = ("neu-steel", "belt-defects")
EXTRA = "HEADFRAME_BENCH_DATA"
TEST_SHARE = 1 / 3
DIRICHLET = 0.1
Rows = NDArray[np.integer]


@dataclass(frozen=True, slots=True)
class Pictures:
    """A data set: raw embeddings float32 (n, d), and a label, scene and file size for each row."""

    name: str
    classes: tuple[str, ...]
    embeddings: NDArray[np.float32]
    labels: NDArray[np.str_]
    scenes: NDArray[np.str_]
    file_bytes: NDArray[np.integer]

    @property
    def has_scenes(self) -> bool:
        """Whether pictures are grouped by more than their class."""
        return len(np.unique(self.scenes)) > len(self.classes)

    def pick(self, rows: Rows) -> "Pictures":
        """Some of the pictures, in this order; the classes stay those of the data set."""
        return Pictures(
            self.name,
            self.classes,
            self.embeddings[rows],
            self.labels[rows],
            self.scenes[rows],
            self.file_bytes[rows],
        )


def find_folders() -> list[Path]:
    """The data sets of the benchmark, then any folder named by `HEADFRAME_BENCH_DATA` (separated like PATH).

    Raises:
        OperatorError: one of them is not there.
    """
    extra = [Path(part) for part in os.environ.get(EXTRA, "").split(os.pathsep) if part]
    for folder in extra:
        if not folder.is_dir():
            raise OperatorError(f"there is no folder {folder}", f"{EXTRA} names folders, separated like PATH.")
    return [*map(find_data, DATA_SETS), *extra]


def embed_folder(folder: Path, workers: int = 2) -> Pictures:
    """Embed every picture of a folder with the default backbone."""
    return embed_items(folder.name, read_folder(folder), export_default_backbone(), workers)


def embed_items(title: str, items: Sequence[Item], layer: bytes, workers: int = 2) -> Pictures:
    """Embed pictures with a backbone, each thread with a session of its own."""
    with tempfile.TemporaryDirectory(prefix="headframe-bench-") as name:
        path = Path(name) / "backbone.onnx"
        path.write_bytes(layer)
        backbones = [Backbone.open(path) for _ in range(workers)]

        def embed(job: tuple[int, Item]) -> NDArray[np.float32]:
            number, item = job
            return backbones[number % workers].embed(read_picture(item.path))

        with ThreadPoolExecutor(workers) as pool:
            done = track(
                pool.map(embed, enumerate(items)), title, len(items), console=Console(stderr=True), transient=True
            )
            embeddings = np.stack(list(done))
    return Pictures(
        title,
        tuple(sorted({item.label for item in items})),
        embeddings,
        np.array([item.label for item in items]),
        np.array([item.site for item in items]),
        np.array([item.path.stat().st_size for item in items]),
    )


def split(pictures: Pictures, seed: int) -> tuple[Rows, Rows]:
    """Rows to learn from and rows to measure on: about a third of each class, whole scenes where there are scenes.

    A scene counts for the rarest class in it, so that a class of two scenes has one on each side.
    """
    rng = np.random.default_rng(seed)
    labels, scenes = pictures.labels, pictures.scenes
    is_test = np.zeros(len(labels), dtype=bool)
    sizes = {name: int((labels == name).sum()) for name in pictures.classes}
    if not pictures.has_scenes:
        for name in pictures.classes:
            rows = rng.permutation(np.flatnonzero(labels == name))
            is_test[rows[: round(len(rows) * TEST_SHARE)]] = True
        return np.flatnonzero(~is_test), np.flatnonzero(is_test)
    by_class: dict[str, list[str]] = {}
    for scene in np.unique(scenes):
        by_class.setdefault(min(np.unique(labels[scenes == scene]), key=sizes.__getitem__), []).append(scene)
    for own in by_class.values():
        chosen = rng.permutation(own)[: max(1, round(len(own) * TEST_SHARE))]
        is_test |= np.isin(scenes, chosen)
    return np.flatnonzero(~is_test), np.flatnonzero(is_test)


def partition(labels: NDArray[np.str_], rows: Rows, sites: int, how: str, seed: int) -> dict[str, Rows]:
    """Share rows out over sites: `dirichlet` (0.1, most sites see one or two classes) or `one-class`.

    Returns:
        site -> its rows; a site that got none is left out.
    """
    rng = np.random.default_rng(seed)
    found: dict[str, list[int]] = {}
    classes = np.unique(labels[rows])
    for position, name in enumerate(classes):
        own = rng.permutation(rows[labels[rows] == name])
        if how == "one-class":
            homes = np.arange(position, sites, len(classes))
            owners = homes[np.arange(len(own)) % len(homes)]
        else:
            owners = rng.choice(sites, len(own), p=rng.dirichlet(np.full(sites, DIRICHLET)))
        for row, owner in zip(own, owners, strict=True):
            found.setdefault(f"site-{owner:03d}", []).append(int(row))
    return {site: np.array(own) for site, own in sorted(found.items())}


def phases_of(classes: Sequence[str], seed: int, phases: int = 3) -> list[tuple[str, ...]]:
    """In which phase each class arrives."""
    order = np.random.default_rng(seed).permutation(np.array(classes))
    return [tuple(str(name) for name in part) for part in np.array_split(order, phases)]


def mean_and_error(values: Sequence[float]) -> str:
    """`mean ± standard error`, for a table; of one seed there is no error."""
    if len(values) == 1:
        return f"{values[0]:.2f} (one seed)"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"
