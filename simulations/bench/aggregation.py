"""`headframe bench aggregation`: how fast and in how much memory the centre folds what thousands of sites send.

12,000 weight updates of 1.5 M float32 parameters go through `MqttGrid.on_frame` and `StreamingFedAvg`, the code that
runs at the centre, from the bytes of the wire to the mean. The comparator gets the same bytes through Flower's own
deserialisation and FedAvg; it holds all replies of a round, so it is fed in batches that fit in memory. Counted is CPU
time of both, not of whoever makes the bytes. Then 12,000 analytic contributions are summed and solved.
"""

import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from flwr.common.serde import message_from_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.serverapp.strategy import FedAvg
from rich.console import Console
from rich.progress import Progress

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
from simulations.bench._memory import Peak

UPDATES, QUICK_UPDATES = 12_000, 1_200
CONTRIBUTIONS, QUICK_CONTRIBUTIONS = 12_000, 1_200
SHAPES = ((1000, 1000), (400, 1000), (98_000,), (2_000,))
"""Together 1.5 M parameters; four arrays, as a small head on a large layer."""
DISTINCT = 48
"""Different updates, 288 MB: more than a processor's cache, so that nobody folds from it."""
FLOWER_BATCH = 48
FLOWER_BATCHES, QUICK_FLOWER_BATCHES = 10, 5
DIMENSION, CLASSES = 1280, tuple(f"class-{number}" for number in range(6))
DISTINCT_CONTRIBUTIONS = 16
GATEWAY = "gw-{:05d}"


@dataclass
class Spent:
    """CPU seconds of the threads that do the measured work."""

    seconds: float = 0.0
    _began: float = field(default=0.0, repr=False)

    def __enter__(self) -> None:
        self._began = time.thread_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.thread_time() - self._began


def bench_aggregation(*, quick: bool) -> dict[str, object]:
    """Measure Flower and us on the same bytes, then the analytic sums."""
    began = time.monotonic()
    torch.set_num_threads(1)  # CPU time is counted per thread
    bodies = [_update(seed) for seed in range(DISTINCT)]
    nbytes = 4 * sum(int(np.prod(shape)) for shape in SHAPES)
    updates = QUICK_UPDATES if quick else UPDATES
    with Progress(console=Console(file=sys.stderr), transient=True) as progress:
        ours = _stream(bodies, updates, nbytes, progress)
        flower = _flower(bodies, QUICK_FLOWER_BATCHES if quick else FLOWER_BATCHES, progress)
        analytic = _analytic(QUICK_CONTRIBUTIONS if quick else CONTRIBUTIONS, progress)
    theirs = float(np.median(flower))
    return {
        "ratio_to_fedavg": theirs / ours["seconds_each"],
        "ratio_to_fedavg_fastest": min(flower) / ours["seconds_each"],
        "peak_memory_in_models": ours["peak_bytes"] / nbytes,
        "gb_per_s": nbytes / ours["seconds_each"] / 1e9,
        "fedavg_gb_per_s": nbytes / theirs / 1e9,
        "fedavg_memory_in_models": FLOWER_BATCH,
        "updates": updates,
        "largest_difference": _difference(bodies),
        **analytic,
        "seconds": round(time.monotonic() - began, 1),
    }


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


def _stream(bodies: list[bytes], updates: int, nbytes: int, progress: Progress) -> dict[str, float]:
    """All updates through grid and strategy; a second thread plays the network."""
    bar = progress.add_task("streaming", total=updates)
    gateways = [GATEWAY.format(number) for number in range(updates)]
    asked: list[tuple[str, bytes]] = []
    ready = threading.Semaphore(0)

    def send(gateway_id: str, data: bytes) -> bool:
        asked.append((gateway_id, _envelope(data)))
        ready.release()
        return True

    grid = MqttGrid(send, lambda: gateways, waiting_bytes_max=2 * nbytes)
    strategy = StreamingFedAvg(fraction_evaluate=0.0, min_available_nodes=1, quorum=1.0)
    receiving, folding = Spent(), Spent()

    def network() -> None:
        for number in range(updates):
            ready.acquire()
            gateway_id, envelope = asked[number]
            data = envelope + bodies[number % DISTINCT]
            with receiving:
                grid.on_frame(gateway_id, data)
            asked[number] = "", b""
            progress.update(bar, completed=number + 1)

    model = ArrayRecord([np.zeros(1, np.float32)])  # asking is not measured, so the request need not be large
    messages = list(strategy.configure_train(1, model, ConfigRecord(), grid))
    strategy.expect(ArrayRecord([np.zeros(shape, np.float32) for shape in SHAPES]))
    thread = threading.Thread(target=network, name="network")
    with Peak() as peak:
        thread.start()
        with folding:
            arrays, _ = strategy.aggregate_train(1, _paced(grid, messages, folding))
        thread.join()
    if arrays is None or strategy.counters["folded"] != updates:
        raise RuntimeError(f"{dict(strategy.counters)} of {updates} updates, grid {dict(grid.counters)}")
    return {"seconds_each": (receiving.seconds + folding.seconds) / updates, "peak_bytes": float(peak.extra_bytes)}


def _paced(grid: MqttGrid, messages: list[Message], folding: Spent) -> Iterator[Message]:
    """The grid's replies; asking and waiting for the network are not the aggregation's time."""
    replies = iter(grid.send_and_receive(messages, timeout=3600))
    while True:
        folding.__exit__()
        reply = next(replies, None)
        folding.__enter__()
        if reply is None:
            return
        yield reply


def _flower(bodies: list[bytes], batches: int, progress: Progress) -> list[float]:
    """CPU seconds per update of Flower's deserialisation and FedAvg, batch by batch."""
    envelope = _envelope(message_to_bytes(_message(RecordDict())))
    seconds = []
    for _ in progress.track(range(batches), description="Flower's FedAvg"):
        wire = [envelope + bodies[number % DISTINCT] for number in range(FLOWER_BATCH)]
        spent = Spent()
        with spent:
            replies = [message_from_proto(ProtoMessage.FromString(data)) for data in wire]
            FedAvg().aggregate_train(1, replies)
        seconds.append(spent.seconds / FLOWER_BATCH)
    return seconds


def _difference(bodies: list[bytes]) -> float:
    """Largest difference between the two means of the same updates."""
    strategy = StreamingFedAvg(fraction_evaluate=0.0)
    strategy.expect(ArrayRecord([np.zeros(shape, np.float32) for shape in SHAPES]))
    envelope = _envelope(message_to_bytes(_message(RecordDict())))
    theirs, _ = FedAvg().aggregate_train(1, [message_from_bytes(envelope + body) for body in bodies])
    ours = strategy.mean_of(message_from_bytes(envelope + body) for body in bodies)
    return max(float(abs(ours[name].numpy() - theirs[name].numpy()).max()) for name in ours)


def _analytic(contributions: int, progress: Progress) -> dict[str, object]:
    """Contributions from bytes to a solved head."""
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
        "analytic_cpu_seconds": round(spent.seconds, 2),
        "analytic_gb": round(peak.extra_bytes / 1e9, 3),
        "analytic_contributions": contributions,
        "analytic_classes_solved": len(head.classes),
    }
