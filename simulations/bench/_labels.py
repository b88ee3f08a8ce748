"""The data sets of benches on labels and statistics; the third is generated belts, embedded in the run."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from cloud.learning.export import export_default_backbone
from common.backbone import Backbone
from simulations.belts import SITES, still_frames
from simulations.bench._sites import Pictures, embed_folder, find_folders

CAMERAS, QUICK_CAMERAS = 3, 2
"""Of each site; each has a look of its own, and is a scene."""
STILLS = 70
SCENARIO = "foreign-object"


def every_set(*, quick: bool) -> Iterator[Pictures]:
    """All of them, embedded one after the other."""
    yield from map(embed_folder, find_folders())
    yield generated_belts(quick=quick)


def generated_belts(*, quick: bool) -> Pictures:
    """Stills of many cameras in the looks of each, labelled with the foreign object that lies on the belt."""
    views = list(product(SITES, range(QUICK_CAMERAS if quick else CAMERAS)))
    with TemporaryDirectory(prefix="headframe-bench-") as name:
        path = Path(name) / "backbone.onnx"
        path.write_bytes(export_default_backbone())
        backbones = [Backbone.open(path) for _ in range(2)]

        def embed(job: tuple[int, tuple[str, int]]) -> tuple[NDArray[np.float32], list[str]]:
            number, (site, camera) = job
            pictures, truths = still_frames(site, camera, number, STILLS)
            rows = np.stack([backbones[number % 2].embed(picture) for picture in pictures])
            return rows, [str(truth[SCENARIO]) for truth in truths]

        with ThreadPoolExecutor(2) as pool:
            done = list(pool.map(embed, enumerate(views)))
    labels = np.array([label for _, own in done for label in own])
    scenes = np.repeat(np.array([f"{site}/{camera}" for site, camera in views]), STILLS)
    size = np.zeros(len(labels), dtype=np.int64)  # they are never files
    return Pictures(
        "generated-belts",
        tuple(sorted(set(labels.tolist()))),
        np.concatenate([rows for rows, _ in done]),
        labels,
        scenes,
        size,
    )
