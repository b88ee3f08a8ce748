"""`headframe bench aggregation`: how fast and in how much memory the centre folds what thousands of sites send.

12,000 weight updates of 1.5 M float32 parameters go through `MqttGrid.on_frame` and `StreamingFedAvg`, the code that
runs at the centre, from the bytes of the wire to the mean. The comparator gets the same bytes through Flower's own
deserialisation and FedAvg; it holds all replies of a round, so its rounds are as long as memory allows. Each side has a
process of its own and reads the bytes from the same files, as it would from a socket: in one process the second would
find the memory that the first has made. Counted is the time of both, not of whoever reads the bytes: as a clock on the
wall shows it, each side with all the cores it can use (`ratio_to_fedavg`), and as CPU time (`cpu_ratio_to_fedavg`).
Then 12,000 analytic contributions are summed and solved.
"""

import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.progress import Progress, TaskID

from cloud.federation.averaging import StreamingFedAvg
from cloud.federation.grid import MqttGrid
from cloud.federation.summing import StatisticsSum
from cloud.learning.heads import lift, principal_basis, solve_lda
from common.contribution import pack_reply
from common.flower import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    take_identity,
)
from common.statistics import Statistics
from simulations.bench._process import Peak, alone

UPDATES, QUICK_UPDATES = 12_000, 1_200
CONTRIBUTIONS, QUICK_CONTRIBUTIONS = 12_000, 1_200
SHAPES = ((1000, 1000), (400, 1000), (98_000,), (2_000,))
"""Together 1.5 M parameters; four arrays, as a small head on a large layer."""
DISTINCT = 48
"""Different updates, 288 MB: more than a processor's cache, so that nobody folds from it."""
FLOWER_REPLIES, QUICK_FLOWER_REPLIES = 400, 150
"""In one of Flower's rounds: it keeps them all, 2.4 GB."""
FLOWER_ROUNDS = 5
DIMENSION, CLASSES = 1280, tuple(f"class-{number}" for number in range(6))
DISTINCT_CONTRIBUTIONS = 16
GATEWAY = "gw-{:05d}"


class Spent:
    """A stop-watch, on the wall and of the process's CPU time, that can be entered while it is paused."""

    def __init__(self) -> None:
        self.seconds = self.cpu_seconds = 0.0
        self._began, self._began_cpu = 0.0, 0.0

    def __enter__(self) -> None:
        self._began, self._began_cpu = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began
        self.cpu_seconds += time.process_time() - self._began_cpu


def bench_aggregation(*, quick: bool) -> dict[str, object]:
    """Measure Flower and us on the same bytes, then the analytic sums."""
    began = time.monotonic()
    nbytes = 4 * sum(int(np.prod(shape)) for shape in SHAPES)
    updates, replies = (QUICK_UPDATES, QUICK_FLOWER_REPLIES) if quick else (UPDATES, FLOWER_REPLIES)
    with tempfile.TemporaryDirectory(prefix="headframe-bench-") as name:
        for number in range(DISTINCT):
            (Path(name) / str(number)).write_bytes(_update(number))
        ours = alone(_stream, Path(name), updates, nbytes)
        flower = alone(_flower, Path(name), replies)
        difference = alone(_difference, Path(name))
    theirs, theirs_cpu = (float(np.median(column)) for column in zip(*flower, strict=True))
    return {
        "ratio_to_fedavg": theirs / ours["seconds_each"],
        "ratio_to_fedavg_fastest": min(seconds for seconds, _ in flower) / ours["seconds_each"],
        "cpu_ratio_to_fedavg": theirs_cpu / ours["cpu_seconds_each"],
        "threads": torch.get_num_threads(),
        "peak_memory_in_models": ours["peak_bytes"] / nbytes,
        "gb_per_s": nbytes / ours["seconds_each"] / 1e9,
        "fedavg_gb_per_s": nbytes / theirs / 1e9,
        "fedavg_replies_held": replies,
        "updates": updates,
        "largest_difference": difference,
        **alone(_analytic, QUICK_CONTRIBUTIONS if quick else CONTRIBUTIONS),
        "seconds": round(time.monotonic() - began, 1),
    }


def _progress() -> Progress:
    return Progress(console=Console(file=sys.stderr), transient=True)


def _wire(folder: Path, envelope: bytes, number: int) -> bytes:
    """A reply as it comes from the network: in memory that was not there before."""
    with (folder / str(number % DISTINCT)).open("rb", buffering=0) as file:
        return envelope + file.read()


def _update(seed: int) -> bytes:
    """The content of a reply, as protobuf; in front of it goes the metadata of the message it answers."""
    rng = np.random.default_rng(seed)
    arrays = [rng.standard_normal(shape, np.float32) for shape in SHAPES]
    content = RecordDict({"arrays": ArrayRecord(arrays), "metrics": MetricRecord({"num-examples": 20 + seed})})
    proto = ProtoMessage.FromString(message_to_bytes(_message(content)))
    proto.ClearField("metadata")
    data: bytes = proto.SerializeToString()
    return data


def _message(content: RecordDict) -> Message:
    take_identity(1)
    return Message(content, 2, "train")


def _envelope(request: bytes) -> bytes:
    """The metadata of a reply to a request; protobuf messages that are put together merge."""
    reply = Message(RecordDict(), reply_to=message_from_bytes(request))
    proto = ProtoMessage.FromString(message_to_bytes(reply))
    proto.ClearField("content")
    data: bytes = proto.SerializeToString()
    return data


def _stream(folder: Path, updates: int, nbytes: int) -> dict[str, float]:
    """All updates through grid and strategy; what is asked is answered at once."""
    with _progress() as progress:
        return _streamed(folder, updates, nbytes, progress, progress.add_task("streaming", total=updates))


def _streamed(folder: Path, updates: int, nbytes: int, progress: Progress, bar: TaskID) -> dict[str, float]:
    gateways = [GATEWAY.format(number) for number in range(updates)]
    spent = Spent()
    answered = 0
    on_its_way = b""  # the network's buffer, which the network and not the aggregation frees

    def send(gateway_id: str, request: bytes) -> bool:
        nonlocal answered, on_its_way
        on_its_way = _wire(folder, _envelope(request), answered)
        with spent:
            grid.on_frame(gateway_id, on_its_way)
        answered += 1
        progress.update(bar, completed=answered)
        return True

    grid = MqttGrid(send, lambda: gateways, waiting_bytes_max=2 * nbytes)
    strategy = StreamingFedAvg(fraction_evaluate=0.0, min_available_nodes=1, quorum=1.0)
    model = ArrayRecord([np.zeros(1, np.float32)])  # asking is not measured, so the request need not be large
    messages = strategy.configure_train(1, model, ConfigRecord(), grid)
    strategy.expect(ArrayRecord([np.zeros(shape, np.float32) for shape in SHAPES]))
    with Peak() as peak, spent:
        arrays, _ = strategy.aggregate_train(1, _paused(grid.send_and_receive(messages, timeout=3600), spent))
    if arrays is None or strategy.counters["folded"] != updates:
        raise RuntimeError(f"{dict(strategy.counters)} of {updates} updates, grid {dict(grid.counters)}")
    return {
        "seconds_each": spent.seconds / updates,
        "cpu_seconds_each": spent.cpu_seconds / updates,
        "peak_bytes": float(peak.extra_bytes),
    }


def _paused(replies: Iterable[Message], spent: Spent) -> Iterator[Message]:
    """Asking, and making what comes back, is not the aggregation's time."""
    arriving = iter(replies)
    while True:
        spent.__exit__()
        reply = next(arriving, None)
        spent.__enter__()
        if reply is None:
            return
        yield reply


def _flower(folder: Path, replies: int) -> list[tuple[float, float]]:
    """Seconds and CPU seconds per update of Flower's deserialisation and FedAvg, round by round."""
    envelope = _envelope(message_to_bytes(_message(RecordDict())))
    seconds = []
    with _progress() as progress:
        for _ in progress.track(range(FLOWER_ROUNDS), description="Flower's FedAvg"):
            spent, held = Spent(), []
            for number in range(replies):
                data = _wire(folder, envelope, number)
                with spent:
                    held.append(message_from_proto(ProtoMessage.FromString(data)))
            with spent:
                FedAvg().aggregate_train(1, held)
                held.clear()
            seconds.append((spent.seconds / replies, spent.cpu_seconds / replies))
    return seconds


def _difference(folder: Path) -> float:
    """Largest difference between the two means of the same updates."""
    strategy = StreamingFedAvg(fraction_evaluate=0.0)
    strategy.expect(ArrayRecord([np.zeros(shape, np.float32) for shape in SHAPES]))
    envelope = _envelope(message_to_bytes(_message(RecordDict())))
    wire = [_wire(folder, envelope, number) for number in range(DISTINCT)]
    theirs, _ = FedAvg().aggregate_train(1, [message_from_bytes(data) for data in wire])
    ours = strategy.mean_of(message_from_bytes(data) for data in wire)
    return max(float(abs(ours[name].numpy() - theirs[name].numpy()).max()) for name in ours)


def _analytic(contributions: int) -> dict[str, object]:
    """Contributions from bytes to a solved head."""
    with _progress() as progress:
        return _summed(contributions, progress)


def _summed(contributions: int, progress: Progress) -> dict[str, object]:
    rng = np.random.default_rng(0)
    envelope = _envelope(message_to_bytes(_message(RecordDict())))
    bodies = []
    for _ in range(DISTINCT_CONTRIBUTIONS):
        labels = [CLASSES[row % len(CLASSES)] for row in range(40)]
        rows = rng.normal(size=(40, DIMENSION)) + rng.normal(size=DIMENSION)
        statistics = Statistics.of(CLASSES, rows, labels)
        proto = ProtoMessage.FromString(message_to_bytes(_message(pack_reply({"belt": (statistics, [])}))))
        proto.ClearField("metadata")
        bodies.append(proto.SerializeToString())
    began, spent = time.monotonic(), Spent()
    with Peak() as peak:
        total = StatisticsSum(CLASSES, DIMENSION)
        for number in progress.track(range(contributions), description="analytic contributions"):
            data = envelope + bodies[number % DISTINCT_CONTRIBUTIONS]
            with spent:
                total.add(message_from_bytes(data).content, "belt")
        with spent:
            summed = total.statistics()
            basis = principal_basis(summed, 512)
            head = lift(solve_lda(summed.project(basis), 0.3), basis)
    return {
        "analytic_seconds": round(time.monotonic() - began, 2),
        "analytic_cpu_seconds": round(spent.cpu_seconds, 2),
        "analytic_gb": round(peak.extra_bytes / 1e9, 3),
        "analytic_contributions": contributions,
        "analytic_classes_solved": len(head.classes),
    }
