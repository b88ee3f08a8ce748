"""`headframe bench ingest`: what the centre stores durably, beside what the same broker moves to a sink that discards.

The same flood of samples, over the same broker, by turns into a sink that acknowledges everything and keeps nothing
(mosquitto_sub, in C, where it is installed; our own client; and paho) and into a whole ingest worker, until the last
receipt: decoded, checked, on disk, committed. Comparator is the fastest of the sinks. Both at 20 KB and at 200 KB.
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
COUNT: Final = {True: (8_000, 600), False: (20_000, 2_000)}
"""Samples of a run at 20 KB and at 200 KB, by `quick`."""
ROUNDS: Final = {True: 3, False: 7}

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
    stored: list[Outcome] = []
    for number in range(rounds):
        for name, sink in sinks.items():
            status.update(f"ingest: round {number + 1} of {rounds}, {name} sink")
            raw[name].append(run_into(sink, publisher).per_s)
        status.update(f"ingest: round {number + 1} of {rounds}, store")
        data = folder / f"centre{suffix}-{number}"
        stored.append(run_into(StoreSink, publisher, str(data)))
        shutil.rmtree(data)
    raw["paho"] = [run_into(PahoSink, publisher).per_s]
    medians = {name: statistics.median(found) for name, found in raw.items()}
    fastest = max(medians, key=lambda name: medians[name])
    per_s = statistics.median(outcome.per_s for outcome in stored)
    of_each = [outcome.per_s / max(raw[name][number] for name in sinks) for number, outcome in enumerate(stored)]
    return {
        f"fraction_of_raw{suffix}": per_s / medians[fastest],
        f"fraction_of_raw{suffix}_worst_round": min(of_each),
        f"samples_per_s{suffix}": per_s,
        f"raw_per_s{suffix}": medians[fastest],
        f"raw_sink{suffix}": fastest,
        f"raw_per_s_by_sink{suffix}": medians,
        f"cpu_us_per_sample{suffix}": statistics.median(float(o.figures["cpu_us"]) for o in stored),
        f"peak_mb{suffix}": max(float(o.figures["peak_mb"]) for o in stored),
        f"lost{suffix}": sum(publisher.count - o.figures["stored"] for o in stored),
        f"refused{suffix}": sum(o.figures["refused"] for o in stored),
    }
