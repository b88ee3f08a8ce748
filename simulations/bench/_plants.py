"""Real pictures with near-duplicates and wrong labels planted, of which the truth is known. Learns nothing."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.curation.rows import HASH_BYTES
from cloud.learning.datasets import read_folder
from cloud.learning.export import export_default_backbone
from cloud.pictures import perceptual_hash
from common.backbone import Backbone
from common.pictures import read_picture
from simulations.belts import SITES, still_frames
from simulations.bench._labels import SCENARIO

Image = NDArray[np.uint8]
Source = tuple[Image, str, str]
"""A picture, its label and its scene."""


@dataclass(frozen=True, slots=True)
class Shots:
    """Pictures as the centre keeps them: one row each."""

    embeddings: NDArray[np.float32]
    hashes: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.embeddings)


class Studio:
    """Embeds and hashes pictures with the product's own backbone and hash, on two threads."""

    def __init__(self) -> None:
        with TemporaryDirectory(prefix="headframe-bench-") as name:
            path = Path(name) / "backbone.onnx"
            path.write_bytes(export_default_backbone())
            self._backbones = [Backbone.open(path) for _ in range(2)]
        self.backbone = self._backbones[0].hash

    def shoot(self, files: Sequence[bytes], what: str) -> Shots:
        """All files, in order."""

        def one(job: tuple[int, bytes]) -> tuple[NDArray[np.float32], bytes]:
            number, data = job
            picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
            return self._backbones[number % 2].embed(np.asarray(picture, np.uint8)), perceptual_hash(data)

        with ThreadPoolExecutor(2) as pool:
            console = Console(stderr=True)
            done = list(track(pool.map(one, enumerate(files)), what, len(files), console=console, transient=True))
        hashes = np.frombuffer(b"".join(row[1] for row in done), np.uint8).reshape(-1, HASH_BYTES)
        return Shots(np.stack([row[0] for row in done]), hashes)


def jpeg(image: Image, rng: np.random.Generator) -> bytes:
    """Compressed once more, quality 40 to 80."""
    return encode(image, int(rng.integers(40, 81)))


def brightness(image: Image, rng: np.random.Generator) -> bytes:
    """A quarter to a third darker or brighter, or half of that."""
    factor = float(rng.choice([0.75, 0.87, 1.15, 1.3]))
    return encode(np.clip(image * factor, 0, 255).astype(np.uint8), 85)


def crop_20th(image: Image, rng: np.random.Generator) -> bytes:
    """A twentieth of each side is cut away, somewhere; scaled back."""
    return _crop(image, rng, 0.95)


def crop_10th(image: Image, rng: np.random.Generator) -> bytes:
    """A tenth of each side is cut away, somewhere; scaled back."""
    return _crop(image, rng, 0.9)


PLANTS: dict[str, Callable[[Image, np.random.Generator], bytes]] = {
    "jpeg": jpeg,
    "brightness": brightness,
    "crop_20th": crop_20th,
    "crop_10th": crop_10th,
}


def encode(image: Image, quality: int) -> bytes:
    """As a JPEG file."""
    data: bytes = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    return data


def folder_pictures(folder: Path, every: int = 1) -> list[Source]:
    """Pictures of a labelled folder, or every n-th of each scene."""
    return [(read_picture(item.path), item.label, item.site) for item in read_folder(folder)[::every]]


def belt_pictures(stills: int) -> list[Source]:
    """Generated belts seen by cameras that do not move: the same view again and again."""
    found: list[Source] = []
    for number, site in enumerate(SITES):
        pictures, truths = still_frames(site, 0, 500 + number, stills)
        found += [(image, str(truth[SCENARIO]), site) for image, truth in zip(pictures, truths, strict=True)]
    return found


def wrong_labels(labels: Sequence[str], share: float, rng: np.random.Generator) -> tuple[list[str], set[int]]:
    """The labels with a share of them replaced by another class, and which rows these are."""
    classes = sorted(set(labels))
    rows = rng.choice(len(labels), round(share * len(labels)), replace=False)
    found = list(labels)
    for row in rows:
        found[row] = str(rng.choice([name for name in classes if name != labels[row]]))
    return found, {int(row) for row in rows}


def _crop(image: Image, rng: np.random.Generator, kept: float) -> bytes:
    height, width = image.shape[:2]
    tall, wide = int(height * kept), int(width * kept)
    top, left = int(rng.integers(0, height - tall + 1)), int(rng.integers(0, width - wide + 1))
    scaled = cv2.resize(image[top : top + tall, left : left + wide], (width, height))
    return encode(np.asarray(scaled, np.uint8), 85)
