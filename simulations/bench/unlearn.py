"""`headframe bench unlearn`: a site leaves a group of 12,000. How long does it take, and is it as if it had never been?

Every site brings packed statistics of 1,280 features over its own samples. Timed is what `headframe cloud unlearn` does
with the learnt part: read the kept sum, subtract the site, keep the sum, solve the head. The comparators are the sum
made anew without the site (the head must be the same), and naive storage: every site's second moment unpacked.
"""

import tempfile
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track

from cloud.learning.heads import HeadWeights, solve_shared
from cloud.learning.ledger import Ledger, Part
from cloud.settings import LearningSettings
from common.packing import Packed, pack
from common.statistics import Statistics
from simulations.bench._learners import add_up
from simulations.bench.learning import difference

SITES = 12_000
DIMENSION, CLASSES = 1280, tuple(f"class-{number}" for number in range(6))
SAMPLES, QUICK_SAMPLES = 24, 8
"""Labelled samples of a site; the subtraction costs the same."""
DISTINCT = 64
LEAVING = 8
BACKBONE, SCENARIO = "0" * 64, "bench"


def bench_unlearn(*, quick: bool) -> dict[str, object]:
    """Sum 12,000 sites, let some leave one by one, and compare with never having had them."""
    began_s = time.monotonic()
    rng = np.random.default_rng(0)
    packed = [_site(rng, QUICK_SAMPLES if quick else SAMPLES) for _ in range(DISTINCT)]
    parts = {f"gateway/{number}": Part("1", packed[number % DISTINCT]) for number in range(SITES)}
    seconds, cpu_seconds = [], []
    with tempfile.TemporaryDirectory(prefix="headframe-bench-") as name:
        ledger = Ledger(Path(name))
        summed_s = time.perf_counter()
        ledger.total(SCENARIO, BACKBONE, CLASSES, DIMENSION, parts)
        summed_s = time.perf_counter() - summed_s
        head: HeadWeights | None = None
        for number in track(range(LEAVING), "leaving", console=Console(stderr=True), transient=True):
            key = f"gateway/{number * 997}"
            began, cpu_began = time.perf_counter(), time.process_time()
            rest = ledger.without(SCENARIO, BACKBONE, {key: parts.pop(key)})
            if rest is None:
                raise RuntimeError("the kept sum does not know its own parts")
            head = _solve_rest(rest)
            seconds.append(time.perf_counter() - began)
            cpu_seconds.append(time.process_time() - cpu_began)
        kept_bytes = sum(file.stat().st_size for file in Path(name).iterdir())
        never = Ledger(Path(name) / "never").total(SCENARIO, BACKBONE, CLASSES, DIMENSION, parts)
    if head is None:
        raise RuntimeError("nobody left")
    other = _solve_rest(never)
    probes = rng.normal(size=(2000, DIMENSION))
    naive_s = _naive(packed)
    return {
        "seconds": max(seconds),
        "cpu_seconds": max(cpu_seconds),
        "difference": difference(head, other),
        "predictions_that_differ": sum(
            a != b for a, b in zip(head.predict(probes), other.predict(probes), strict=True)
        ),
        "sites": SITES,
        "left": LEAVING,
        "summing_seconds": summed_s,
        "ratio_to_summing_anew": summed_s / float(np.mean(seconds)),
        "ratio_of_summing_to_unpacked": naive_s * SITES / summed_s,
        "kept_mb": kept_bytes / 1e6,
        "site_kb": sum(array.nbytes for array in packed[0].arrays().values()) / 1e3,
        "bench_seconds": round(time.monotonic() - began_s, 1),
    }


def _solve_rest(rest: Statistics) -> HeadWeights:
    settings = LearningSettings()
    return solve_shared(rest, settings.shrinkage, settings.dimensions)


def _site(rng: np.random.Generator, samples: int) -> Packed:
    labels = [CLASSES[row % len(CLASSES)] for row in range(samples)]
    means = np.random.default_rng(1).normal(size=(len(CLASSES), DIMENSION))
    rows = rng.normal(size=(samples, DIMENSION)) + means[np.arange(samples) % len(CLASSES)]
    return pack(CLASSES, rows, labels)[0]


def _naive(packed: list[Packed]) -> float:
    """Seconds a site when its statistics are opened before they are added."""
    began_s = time.perf_counter()
    add_up(part.statistics() for part in packed)
    return (time.perf_counter() - began_s) / len(packed)
