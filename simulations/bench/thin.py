"""`headframe bench thin`: what do statistics cost on the wire, and what do fewer bytes cost in points?

Sites share the training pictures out by Dirichlet 0.1. Each site's statistics travel as in production (packed, in
Flower messages, unpacked, added, solved): without a bound, with the two bounds of docs/learning.md, and mixed, a third
of the sites each. Bytes are those of the whole message; the bar is on the largest of a site. `few sites` is the hard
case for a bound: the same pictures at three sites, over a hundred samples a site and class.
"""

import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
from rich.console import Console
from rich.progress import track

from cloud.learning.gates import balanced_accuracy
from simulations.bench._learners import Uploaded, add_up, contribute, solve
from simulations.bench._sites import Pictures, Rows, embed_folder, find_folders, mean_and_error, partition, split

SEEDS, QUICK_SEEDS = 10, 5
SITES, QUICK_SITES = (50, 200, 3), (50,)
FEW: Final = 3
EXACT, FINE, THIN, MIXED = "exact", "fine", "thin", "mixed"
BOUNDS: Final = {EXACT: 0, FINE: 600_000, THIN: 55_000}
"""Of the arrays; ids, names and Flower's envelope come on top of it."""
Point = tuple[float, float, float, float]
"""accuracy, balanced accuracy (points), mean and largest bytes of a site"""


def bench_thin(*, quick: bool) -> dict[str, object]:
    """Every bound on every data set and number of sites."""
    began_s = time.monotonic()
    found: dict[tuple[str, int, str], list[Point]] = defaultdict(list)
    for folder in find_folders():
        pictures = embed_folder(folder)
        jobs = [(n, seed) for n in (QUICK_SITES if quick else SITES) for seed in range(QUICK_SEEDS if quick else SEEDS)]
        for sites, seed in track(jobs, pictures.name, console=Console(stderr=True), transient=True):
            for form, point in _measure(pictures, sites, seed).items():
                found[pictures.name, sites, form].append(point)
    many = {key: points for key, points in found.items() if key[1] != FEW}
    few = {key: points for key, points in found.items() if key[1] == FEW}
    figures: dict[str, object] = {}
    for form in (EXACT, FINE, THIN):
        figures[f"bytes_{form}"] = _largest(many, form)
        figures[f"bytes_mean_{form}"] = _mean_bytes(many, form)
    for form in (FINE, THIN, MIXED):
        figures[f"points_lost_{form}"] = _lost(many, form)
        if few:
            figures[f"points_lost_{form}_few_sites"] = _lost(few, form)
    return figures | {
        "seeds": QUICK_SEEDS if quick else SEEDS,
        "table": [_row(key, points, found[(*key[:2], EXACT)]) for key, points in found.items()],
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _measure(pictures: Pictures, sites: int, seed: int) -> dict[str, Point]:
    """All forms on the same sites."""
    train, test = split(pictures, seed)
    homes = partition(pictures.labels, train, sites, "dirichlet", seed)
    uploads = {
        form: contribute(pictures.classes, pictures.embeddings, pictures.labels, homes, bound)
        for form, bound in BOUNDS.items()
    }
    mixed = {site: uploads[tuple(BOUNDS)[number % len(BOUNDS)]].parts[site] for number, site in enumerate(homes)}
    found = {form: _point(pictures, test, upload) for form, upload in uploads.items()}
    size = float(np.mean([upload.bytes_per_site for upload in uploads.values()]))
    return found | {
        MIXED: _point(
            pictures, test, Uploaded(mixed, size, max(upload.bytes_largest for upload in uploads.values()), 0.0)
        )
    }


def _point(pictures: Pictures, test: Rows, upload: Uploaded) -> Point:
    said = solve(add_up(upload.parts.values())).predict(pictures.embeddings[test])
    truth = [str(name) for name in pictures.labels[test]]
    right = 100 * float(np.mean([a == b for a, b in zip(truth, said, strict=True)]))
    return right, 100 * balanced_accuracy(truth, said), upload.bytes_per_site, float(upload.bytes_largest)


def _lost(found: Mapping[tuple[str, int, str], Sequence[Point]], form: str) -> float:
    """Points of accuracy below the exact form, mean over seeds, of the worst setting."""
    settings = {key[:2] for key in found}
    return max(float(np.mean(_losses(found[(*key, form)], found[(*key, EXACT)]))) for key in settings)


def _losses(points: Sequence[Point], exact: Sequence[Point]) -> list[float]:
    return [whole[0] - point[0] for point, whole in zip(points, exact, strict=True)]


def _largest(found: Mapping[tuple[str, int, str], Sequence[Point]], form: str) -> int:
    return int(max(point[3] for key, points in found.items() if key[2] == form for point in points))


def _mean_bytes(found: Mapping[tuple[str, int, str], Sequence[Point]], form: str) -> int:
    return int(np.mean([point[2] for key, points in found.items() if key[2] == form for point in points]))


def _row(key: tuple[str, int, str], points: Sequence[Point], exact: Sequence[Point]) -> dict[str, object]:
    return {
        "data": key[0],
        "sites": key[1],
        "form": key[2],
        "accuracy": mean_and_error([point[0] for point in points]),
        "points_lost": mean_and_error(_losses(points, exact)),
        "balanced_lost": mean_and_error([whole[1] - point[1] for point, whole in zip(points, exact, strict=True)]),
        "kb_mean": round(float(np.mean([point[2] for point in points])) / 1e3, 1),
        "kb_largest": round(max(point[3] for point in points) / 1e3, 1),
    }
