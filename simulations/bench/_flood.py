"""A flood of samples over a broker, and the sinks it runs into: each a process of its own, told what to do over a pipe.

The publisher holds every packet ready before a run, so that what is measured is the broker and the sink behind it.
"""

import contextlib
import multiprocessing
import resource
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final, Protocol

import cv2
import numpy as np

from cloud.broker import EmbeddedBroker
from cloud.link import CentreLink
from cloud.settings import CloudSettings, IngestSettings
from cloud.store import Store
from cloud.worker import Worker
from common import codec, mqtt_packets, topics
from common.errors import EnvironmentFault
from common.ids import sample_id
from common.messages import Prediction, Receipt, Sample, Scores
from common.mqtt import Broker, MqttLink
from simulations.belts import SITES, still_frames

GATEWAYS: Final = 64
PICTURES: Final = 48
UNACKNOWLEDGED: Final = 256
"""Packets that the publisher sends ahead of the broker's PUBACK."""
WAIT_S: Final = 120.0
EMBEDDING_BYTES: Final = 2560  # 1,280 float16, as of the default backbone
_processes = multiprocessing.get_context("spawn")


def camera_pictures(bytes_each: int) -> list[tuple[bytes, int, int]]:
    """JPEGs of about this size, width and height: frames of the drawn belts at quality 90, scaled to fit."""
    found = []
    sites = list(SITES)
    for number in range(PICTURES):
        frame = still_frames(sites[number % len(sites)], number % 3, number, 1)[0][0]
        low, high = 0.1, 4.0
        for _ in range(7):  # bisection on the scale
            scale = (low + high) / 2
            picture = cv2.resize(frame, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
            jpeg = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 90])[1].tobytes()
            low, high = (scale, high) if len(jpeg) < bytes_each else (low, scale)
        found.append((jpeg, picture.shape[1], picture.shape[0]))
    return found


def make_samples(count: int, bytes_each: int) -> Iterator[Sample]:
    """Different samples of many gateways, with a few pictures between them."""
    pictures = camera_pictures(bytes_each - EMBEDDING_BYTES - 500)
    embedding = np.random.default_rng(0).normal(size=EMBEDDING_BYTES // 2).astype("<f2").tobytes()
    for number in range(count):
        jpeg, width, height = pictures[number % len(pictures)]
        gateway = f"bench-{number % GATEWAYS}"
        yield Sample(
            sample_id=sample_id(jpeg, gateway, "belt", number),
            gateway_id=gateway,
            site_id="bench",
            camera_id="belt",
            captured_at_ns=number,
            release_id="r1-00000000",
            backbone="b" * 64,
            width_px=width,
            height_px=height,
            jpeg=jpeg,
            embedding=embedding,
            predictions=(Prediction("belt", ("normal", "tear", "stone"), (0.25, 0.7, 0.05), 1.5),),
            scores=Scores(0.1, 0.2, 0.3, 0.4, number % 97 / 97),
            reason="novel",
            pixel_path="main-1280x720/whole",
        )


class Sink(Protocol):
    """What runs in the sink's process: made with the broker and how many are to come."""

    def wait(self) -> float:
        """Returns the time (monotonic, s) at which the last had come."""
        ...

    def close(self) -> dict[str, Any]: ...


class _Counting:
    """Counts what arrives, and keeps the time of the last."""

    def __init__(self, expected: int) -> None:
        self._left, self._done, self._at_s = expected, threading.Event(), 0.0

    def take(self, number: int = 1) -> None:
        self._left -= number
        if self._left <= 0 and not self._done.is_set():
            self._at_s = time.monotonic()
            self._done.set()

    def wait(self) -> float:
        if not self._done.wait(WAIT_S):
            raise EnvironmentFault(f"{self._left} messages did not arrive in {WAIT_S:g} s", "Is the machine busy?")
        return self._at_s


class LeanSink(_Counting):
    """Our own client, which throws everything away."""

    def __init__(self, broker: Broker, expected: int) -> None:
        super().__init__(expected)
        self._link = CentreLink(broker, "bench-sink", [topics.up_filter()], lambda _t, _p: self.take())
        self._link.start()
        self._link.wait_connected(20)

    def close(self) -> dict[str, Any]:
        self._link.stop()
        return {}


class PahoSink(_Counting):
    """paho, which throws everything away."""

    def __init__(self, broker: Broker, expected: int) -> None:
        super().__init__(expected)
        self._link = MqttLink(broker, "bench-sink", (topics.up_filter(),), lambda _t, _p: self.take())
        self._link.start()
        self._link.wait_connected(20)
        time.sleep(0.3)  # paho says connected before the broker has taken the subscription

    def close(self) -> dict[str, Any]:
        self._link.stop()
        return {}


class ClientSink:
    """mosquitto_sub: a client in C, which throws everything away."""

    def __init__(self, broker: Broker, expected: int) -> None:
        command = ["mosquitto_sub", "-h", broker.host, "-p", str(broker.port), "-q", "1", "-t", topics.up_filter()]
        self._process = subprocess.Popen([*command, "-C", str(expected), "-F", ""], stdout=subprocess.DEVNULL)
        time.sleep(0.5)  # it does not say when it has subscribed

    def wait(self) -> float:
        self._process.wait(WAIT_S)
        return time.monotonic()

    def close(self) -> dict[str, Any]:
        self._process.kill()
        self._process.wait()
        return {}


class StoreSink(_Counting):
    """Ingest workers by shard on one SQLite; what counts is a receipt, sent after the commit."""

    def __init__(self, broker: Broker, expected: int, folder: str, workers: int) -> None:
        super().__init__(expected)
        self._expected = expected
        self._settings = CloudSettings(data_dir=Path(folder), ingest=IngestSettings())
        Path(folder).mkdir(parents=True, exist_ok=True)
        self._open().close()
        step = topics.SHARDS // workers
        self._workers = [self._start(broker, range(n * step, (n + 1) * step)) for n in range(workers)]
        for _, pipe in self._workers:
            _expect(pipe, "an ingest worker")
        self._receipts = CentreLink(broker, "bench-receipts", ["headframe/down/+/receipt"], self._on_receipt)
        self._receipts.start()
        self._receipts.wait_connected(20)

    def _open(self) -> Store:
        return Store.open(self._settings.database_url, self._settings.data_dir / "blobs")

    def _start(self, broker: Broker, shards: range) -> tuple[Any, Connection]:
        ours, theirs = _processes.Pipe()
        process = _processes.Process(target=_ingest, args=(theirs, self._settings, broker, shards))
        process.start()
        theirs.close()
        return process, ours

    def _on_receipt(self, _topic: str, payload: bytes) -> None:
        receipt = codec.decode(payload)
        if isinstance(receipt, Receipt):
            self.take(len(receipt.stored))

    def close(self) -> dict[str, Any]:
        self._receipts.stop()
        found: list[dict[str, Any]] = []
        for process, pipe in self._workers:
            pipe.send("end")
            found.append(_expect(pipe, "an ingest worker"))
            process.join(20)
            process.kill()
        store = self._open()
        stored = len(store.sample_ids())
        store.close()
        return {
            "stored": stored,
            "cpu_us": 1e6 * sum(figures["cpu_s"] for figures in found) / self._expected,
            "peak_mb": sum(figures["peak_mb"] for figures in found),
            "refused": sum(figures["refused"] for figures in found),
        }


def _ingest(pipe: Connection, settings: CloudSettings, broker: Broker, shards: range) -> None:
    """The life of an ingest worker."""
    worker = Worker(settings, broker, shards)
    worker.start()
    worker.link.wait_connected(20)
    began_s = _cpu_s()
    pipe.send("ready")
    pipe.recv()
    figures: dict[str, Any] = dict(worker.ingest.figures())
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    pipe.send(figures | {"cpu_s": _cpu_s() - began_s, "peak_mb": peak_mb})
    worker.stop()


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one run."""

    per_s: float
    figures: dict[str, Any]


def run_into(sink: type[Any], publisher: "Publisher", *more: object) -> Outcome:
    """One flood into a fresh sink."""
    ours, theirs = _processes.Pipe()
    process = _processes.Process(target=_be_sink, args=(theirs, sink, publisher.broker, publisher.count, more))
    process.start()
    theirs.close()
    try:
        _expect(ours, "the sink")
        began_s = publisher.flood()
        ended_s = float(_expect(ours, "the sink"))
        ours.send("close")
        figures: dict[str, Any] = _expect(ours, "the sink")
    finally:
        process.join(20)
        process.kill()
        ours.close()
    return Outcome(publisher.count / (ended_s - began_s), figures)


def _be_sink(pipe: Connection, kind: Any, broker: Broker, expected: int, more: tuple[object, ...]) -> None:
    sink: Sink = kind(broker, expected, *more)
    pipe.send("ready")
    pipe.send(sink.wait())
    pipe.recv()
    pipe.send(sink.close())


class Publisher:
    """A process that holds a flood ready and lets it go when asked, as often as asked."""

    def __init__(self, broker: Broker, count: int, bytes_each: int) -> None:
        self.broker, self.count = broker, count
        self._pipe, theirs = _processes.Pipe()
        self._process = _processes.Process(target=_publish, args=(theirs, broker, count, bytes_each), daemon=True)
        self._process.start()
        theirs.close()
        self.bytes_each = int(_expect(self._pipe, "the publisher"))

    def flood(self) -> float:
        """Begin; returns when it began (monotonic, s), after all is with the broker."""
        self._pipe.send("flood")
        return float(_expect(self._pipe, "the publisher"))

    def close(self) -> None:
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _publish(pipe: Connection, broker: Broker, count: int, bytes_each: int) -> None:
    flood = [
        mqtt_packets.publish(topics.up(sample.gateway_id, "sample"), codec.encode(sample), number % 0xFFFF + 1)
        for number, sample in enumerate(make_samples(count, bytes_each))
    ]
    pipe.send(sum(map(len, flood)) // count)
    with contextlib.suppress(EOFError):
        while pipe.recv():
            pipe.send(_let_go(broker, flood))


def _let_go(broker: Broker, flood: list[bytes]) -> float:
    """On a connection of its own, never more than `UNACKNOWLEDGED` ahead."""
    with socket.create_connection((broker.host, broker.port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.sendall(mqtt_packets.connect("bench-flood", 0))
        connection.recv(4)
        began_s = time.monotonic()
        acknowledged_bytes = 0
        for sent in range(0, len(flood), UNACKNOWLEDGED // 4):
            while 4 * sent - acknowledged_bytes > 4 * UNACKNOWLEDGED * 3 // 4:
                acknowledged_bytes += len(connection.recv(4096))
            connection.sendall(b"".join(flood[sent : sent + UNACKNOWLEDGED // 4]))
        while acknowledged_bytes < 4 * len(flood):
            acknowledged_bytes += len(connection.recv(4096))
        connection.sendall(mqtt_packets.DISCONNECT)
        return began_s


def _expect(pipe: Connection, who: str) -> Any:
    if not pipe.poll(WAIT_S):
        raise EnvironmentFault(f"{who} is silent", "See the log above.")
    try:
        return pipe.recv()
    except EOFError as error:
        raise EnvironmentFault(f"{who} has died", "See the log above.") from error


def find_mosquitto() -> str | None:
    """Debian keeps it where only root looks."""
    return shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")


@contextmanager
def a_broker(folder: Path) -> Iterator[tuple[Broker, str]]:
    """mosquitto where it is installed, else the embedded broker; and its name."""
    found = find_mosquitto()
    if found is None:
        embedded = EmbeddedBroker(folder / "broker", "127.0.0.1", 0)
        embedded.start()
        try:
            yield embedded.broker, "nats-server"
        finally:
            embedded.stop()
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "mosquitto.conf"
    bounds = "max_queued_messages 0\nmax_queued_bytes 0\nmax_inflight_messages 256\nset_tcp_nodelay true\n"
    config.write_text(f"listener {port} 127.0.0.1\nallow_anonymous true\n{bounds}")
    process = subprocess.Popen([found, "-c", str(config)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.05)
        else:
            raise EnvironmentFault("mosquitto did not open its port in 10 s", f"Try `mosquitto -c {config}`.")
        yield Broker(port=port), "mosquitto"
    finally:
        process.kill()
        process.wait()
