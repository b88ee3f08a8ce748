"""`headframe bench drift`: after how many looks does a camera notice that its picture changed, and how often wrongly?

A camera learns its usual from 512 real pictures with the gateway's own code (`edge.drift`). Then streams of a hundred
are drawn from pictures that were not among them: clean ones, and all of a stream hazy, dim, out of focus, or noisy,
changed as pixels and embedded anew. An alarm is a level of 1. The comparator is the usual one: a Kolmogorov-Smirnov
test of the last hundred confidences of a head against the reference's, at the same rate of false alarms.

`belt-defects` is the hard case: its pictures are of dozens of scenes, a camera that shows another belt in every look.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import cv2
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from cloud.learning.datasets import read_folder
from cloud.learning.export import export_default_backbone
from common.backbone import Backbone
from common.pictures import read_picture
from common.statistics import Statistics
from edge.drift import REFERENCE, STREAM, CameraDrift, Usual
from simulations.bench._learners import solve
from simulations.bench._sites import Pictures, embed_folder, find_folders

SEEDS, QUICK_SEEDS = 5, 3
CHANGED, QUICK_CHANGED = 400, 150
"""Pictures that are changed and embedded anew, for each corruption."""
CLEAN_STREAMS, QUICK_CLEAN_STREAMS = 2_000, 350
STREAMS: Final = 60
Floats = NDArray[np.floating]
Picture = NDArray[np.uint8]


def haze(picture: Picture, rng: np.random.Generator) -> Picture:
    """A third of grey light before the lens: contrast falls to two thirds."""
    del rng
    return np.asarray(picture * 0.65 + 0.35 * 210, np.uint8)


def dim(picture: Picture, rng: np.random.Generator) -> Picture:
    """A lamp at three fifths of its light."""
    del rng
    return np.asarray(picture * 0.6, np.uint8)


def blur(picture: Picture, rng: np.random.Generator) -> Picture:
    """Out of focus: a Gaussian of 1.5 pixels in 128."""
    del rng
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), 1.5 * min(picture.shape[:2]) / 128), np.uint8)


def noise(picture: Picture, rng: np.random.Generator) -> Picture:
    """A sensor at high gain: a standard deviation of 12 of 255."""
    return np.asarray(np.clip(picture + rng.normal(0, 12, picture.shape), 0, 255), np.uint8)


CORRUPTIONS: Final[tuple[Callable[[Picture, np.random.Generator], Picture], ...]] = (haze, dim, blur, noise)


def bench_drift(*, quick: bool) -> dict[str, Any]:
    """Both data sets, every corruption."""
    began_s = time.monotonic()
    table: dict[str, dict[str, Any]] = {}
    for folder in find_folders():
        pictures = embed_folder(folder)
        rows, changed = _corrupt(folder, quick=quick)
        table[folder.name] = _measure(pictures, rows, changed, quick=quick)
    delays = [found[c.__name__]["median"] for found in table.values() for c in CORRUPTIONS]
    return {
        "samples_to_alarm": max(delays),
        "samples_to_alarm_by_corruption": {
            c.__name__: max(found[c.__name__]["median"] for found in table.values()) for c in CORRUPTIONS
        },
        "detected": min(found[c.__name__]["detected"] for found in table.values() for c in CORRUPTIONS),
        "detected_by_confidence": {
            c.__name__: min(found[c.__name__]["by_confidence"] for found in table.values()) for c in CORRUPTIONS
        },
        "false_alarms": float(np.mean([found["false_alarms"] for found in table.values()])),
        "seeds": QUICK_SEEDS if quick else SEEDS,
        "table": table,
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _corrupt(folder: Path, *, quick: bool) -> tuple[NDArray[np.integer], dict[str, Floats]]:
    """Which pictures were changed, and their embeddings by corruption."""
    items = read_folder(folder)
    rows = np.random.default_rng(0).permutation(len(items))[: QUICK_CHANGED if quick else CHANGED]
    with TemporaryDirectory(prefix="headframe-bench-") as name:
        path = Path(name) / "backbone.onnx"
        path.write_bytes(export_default_backbone())
        backbones = [Backbone.open(path) for _ in range(2)]

        def embed(job: tuple[int, int]) -> list[Floats]:
            number, row = job
            picture, rng = read_picture(items[row].path), np.random.default_rng(row)
            return [backbones[number % 2].embed(change(picture, rng)) for change in CORRUPTIONS]

        with ThreadPoolExecutor(2) as pool:
            jobs = pool.map(embed, enumerate(rows.tolist()))
            found = list(
                track(jobs, f"{folder.name}, changed", len(rows), console=Console(stderr=True), transient=True)
            )
    return rows, {change.__name__: np.stack([row[n] for row in found]) for n, change in enumerate(CORRUPTIONS)}


def _measure(
    pictures: Pictures, held: NDArray[np.integer], changed: dict[str, Floats], *, quick: bool
) -> dict[str, Any]:
    x, rest = pictures.embeddings, np.setdiff1d(np.arange(len(pictures.labels)), held)
    seeds, streams = (QUICK_SEEDS, QUICK_CLEAN_STREAMS) if quick else (SEEDS, CLEAN_STREAMS)
    alarms = 0
    delays: dict[str, list[int]] = {name: [] for name in changed}
    seen_by_confidence: dict[str, list[bool]] = {name: [] for name in changed}
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        order = rng.permutation(rest)
        camera = CameraDrift(Usual.of(x[order[:REFERENCE]].astype(np.float16)))
        unseen = np.concatenate([order[REFERENCE:], held])
        for _ in range(streams):
            alarms += _delay(camera, x[rng.choice(unseen, STREAM)]) <= STREAM
        for name, rows in changed.items():
            delays[name] += [_delay(camera, rows[rng.integers(0, len(rows), STREAM)]) for _ in range(STREAMS)]
        sees = _by_confidence(pictures, order, held, rng)
        for name, rows in changed.items():
            seen_by_confidence[name] += [sees(rows[rng.integers(0, len(rows), STREAM)]) for _ in range(STREAMS)]
    found: dict[str, Any] = {"false_alarms": alarms / (seeds * streams)}
    for name, own in delays.items():
        found[name] = {
            "median": float(np.median(own)),
            "p95": float(np.quantile(own, 0.95)),
            "detected": float(np.mean(np.array(own) <= STREAM)),
            "by_confidence": float(np.mean(seen_by_confidence[name])),
        }
    return found


def _delay(camera: CameraDrift, stream: Floats) -> int:
    """Looks until the alarm; one more than the stream has when there is none."""
    camera.restart()
    for number, embedding in enumerate(stream, start=1):
        if camera.observe(embedding) >= 1.0:
            return number
    return len(stream) + 1


def _by_confidence(
    pictures: Pictures, order: NDArray[np.integer], held: NDArray[np.integer], rng: np.random.Generator
) -> Callable[[Floats], bool]:
    """Whether a Kolmogorov-Smirnov test on the head's confidence sees a stream, at the same rate of false alarms."""
    train, reference = order[REFERENCE:], order[:REFERENCE]
    labels = [str(name) for name in pictures.labels[train]]
    head = solve(Statistics.of(pictures.classes, pictures.embeddings[train], labels))

    def confidence(rows: Floats) -> Floats:
        return np.sort(head.probabilities(rows).max(axis=1))

    usual = confidence(pictures.embeddings[reference])

    def distance(rows: Floats) -> float:
        own = confidence(rows)
        points = np.concatenate([usual, own])
        below = [np.searchsorted(part, points, side="right") / len(part) for part in (usual, own)]
        return float(np.abs(below[0] - below[1]).max())

    clean = [distance(pictures.embeddings[rng.choice(held, STREAM)]) for _ in range(300)]
    limit = float(np.mean(clean) + 4.94 * np.std(clean))
    return lambda rows: distance(rows) > limit
