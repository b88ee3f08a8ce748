"""`headframe bench ingest`: what the centre stores durably, beside what the same broker moves to a sink that discards.

The same flood of samples, over the same broker, by turns into a sink that acknowledges everything and keeps nothing
(mosquitto_sub, in C, where it is installed; our own client; and paho) and into whole ingest workers, one and two, until
the last receipt: decoded, checked, on disk, committed. Comparator is the fastest of the sinks. At 20 KB and at 200 KB.
"""

import shutil
import statistics
import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from simulations.bench._flood import (
    ClientSink,
    LeanSink,
    Outcome,
    PahoSink,
    Publisher,
    StoreSink,
    a_broker,
    run_into,
)

BYTES: Final = 20_000
BYTES_LARGE: Final = 200_000
COUNT: Final = {True: (10_000, 600), False: (20_000, 2_000)}
"""Samples of a run at 20 KB and at 200 KB, by `quick`."""
ROUNDS: Final = {True: 2, False: 7}
WORKERS: Final = (1, 2)
"""Ingest workers by shard, on one database; the better of them counts."""

console = Console(stderr=True)


def bench_ingest(*, quick: bool) -> dict[str, Any]:
    """Samples a second into the store, and as a share of what the bare broker moves.

    Raises:
        EnvironmentFault: the broker does not start, or messages do not arrive.
    """
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="headframe-ingest-") as name:
        for suffix, bytes_each, count in zip(("", "_large"), (BYTES, BYTES_LARGE), COUNT[quick], strict=True):
            with a_broker(Path(name)) as (broker, kind), console.status(f"ingest: {bytes_each // 1000} KB") as status:
                publisher = Publisher(broker, count, bytes_each)
                try:
                    figures |= _compare(publisher, Path(name), suffix, ROUNDS[quick], status)
                finally:
                    publisher.close()
                figures |= {"broker": kind, f"bytes_each{suffix}": publisher.bytes_each, f"count{suffix}": count}
    return figures


def _compare(publisher: Publisher, folder: Path, suffix: str, rounds: int, status: Any) -> dict[str, Any]:
    """All by turns, so that a busy minute of the machine meets each of them."""
    sinks: dict[str, type[Any]] = {"client": ClientSink} if shutil.which("mosquitto_sub") else {}
    sinks |= {"lean": LeanSink}
    raw: dict[str, list[float]] = {name: [] for name in sinks}
    stored: dict[int, list[Outcome]] = {workers: [] for workers in WORKERS}
    for number in range(rounds):
        for name, sink in sinks.items():
            status.update(f"ingest: round {number + 1} of {rounds}, {name} sink")
            raw[name].append(run_into(sink, publisher).per_s)
        for workers, outcomes in stored.items():
            status.update(f"ingest: round {number + 1} of {rounds}, {workers} ingest workers")
            data = folder / f"centre{suffix}-{number}-{workers}"
            outcomes.append(run_into(StoreSink, publisher, str(data), workers))
            shutil.rmtree(data)
    raw["paho"] = [run_into(PahoSink, publisher).per_s]
    medians = {name: statistics.median(found) for name, found in raw.items()}
    fastest = max(medians, key=lambda name: medians[name])
    per_s = {workers: statistics.median(o.per_s for o in outcomes) for workers, outcomes in stored.items()}
    best = max(per_s, key=lambda workers: per_s[workers])
    every = [outcome for outcomes in stored.values() for outcome in outcomes]
    figures = {
        "fraction_of_raw": per_s[best] / medians[fastest],
        "samples_per_s": per_s[best],
        "workers": best,
        "fraction_of_raw_one_worker": per_s[1] / medians[fastest],
        "fraction_of_raw_by_sink": {name: per_s[best] / raw_per_s for name, raw_per_s in medians.items()},
        "raw_per_s": medians[fastest],
        "raw_sink": fastest,
        "raw_per_s_by_sink": medians,
        "cpu_us_per_sample": statistics.median(float(o.figures["cpu_us"]) for o in stored[best]),
        "peak_mb": max(float(o.figures["peak_mb"]) for o in every),
        "lost": sum(publisher.count - o.figures["stored"] for o in every),
        "refused": sum(o.figures["refused"] for o in every),
    }
    return {_named(name, suffix): value for name, value in figures.items()}


def _named(name: str, suffix: str) -> str:
    """`fraction_of_raw_large`."""
    return name.replace("fraction_of_raw", f"fraction_of_raw{suffix}") if "fraction" in name else name + suffix
