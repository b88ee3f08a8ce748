"""Virtual gateways: many in one process, each with its own connection, answering rounds by the edge's own code.

`python -m simulations.virtual --port 1883 --scenario belt --classes normal,tear --backbone HASH --names a,b,c`. They
have no cameras and no spool; they report their state and answer with the statistics of made-up labelled embeddings. For
tests and trials of rounds with hundreds of nodes, and for killing some of them.
"""

import argparse
import hashlib
import signal
import threading
import time
from collections.abc import Sequence

import numpy as np

from common import codec, topics
from common.flower import node_id_of, take_identity
from common.frames import Frame
from common.ids import sample_id
from common.messages import Chunk, FlowerFrame, State
from common.mqtt import Broker, MqttLink
from common.partition import Partition
from common.statistics import Statistics
from edge.contributor import Policy, make_client_app
from edge.learner import Learner

HEARTBEAT_S = 1.0
SAMPLES = 12
POLICY = Policy(shares_updates=True)


def made_up(name: str, scenario: str, classes: Sequence[str], backbone: str, dimension: int) -> Partition:
    """A gateway's labelled embeddings; the same for the same name, on a grid so that sums are exact."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
    rng = np.random.default_rng(seed)
    labels = tuple(classes[row % len(classes)] for row in range(SAMPLES))
    means = np.array([[2.0 * classes.index(label)] for label in labels])
    rows = np.round(64 * (rng.normal(size=(SAMPLES, dimension)) + means)) / 64
    ids = tuple(sample_id(b"", name, "virtual", row) for row in range(SAMPLES))
    return Partition(ids, rows.astype(np.float32), labels, scenario, backbone)


def statistics_of(partition: Partition, classes: Sequence[str]) -> Statistics:
    """What it will contribute."""
    return Statistics.of(tuple(classes), partition.embeddings, list(partition.labels))


class VirtualGateway:
    """One of them."""

    def __init__(self, name: str, broker: Broker, partition: Partition, slow_s: float) -> None:
        self.name, self._slow_s = name, slow_s
        self.link = MqttLink(broker, name, (topics.down_filter(name),), self._on_message)
        self.learner = Learner(name, make_client_app(partition, POLICY, node_id_of(name)), self._send)

    def start(self) -> None:
        """Connect."""
        self.link.start()
        self.learner.start()

    def report(self) -> None:
        """A heartbeat."""
        state = State(
            gateway_id=self.name,
            site_id=self.name,
            at_ns=time.time_ns(),
            agent_version="virtual",
            release_id="",
            share="updates",
        )
        self.link.publish(topics.up(self.name, "state"), codec.encode(state))

    def _send(self, frame: Frame) -> bool:
        time.sleep(self._slow_s)
        return self.link.publish(topics.up(self.name, "flower"), codec.encode(frame))

    def _on_message(self, topic: str, payload: bytes) -> None:
        if topic.endswith("/flower"):
            message = codec.decode(payload)
            if isinstance(message, FlowerFrame | Chunk):
                self.learner.on_frame(message)


def main() -> None:
    """Run until SIGTERM."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    for name in ("scenario", "classes", "backbone", "names"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--dimension", type=int, default=12)
    parser.add_argument("--slow-s", type=float, default=0.0, help="the n-th gateway answers after n times this")
    given = parser.parse_args()
    stopping = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stopping.set())
    take_identity(node_id_of("virtual"))
    classes = tuple(given.classes.split(","))
    gateways = [
        VirtualGateway(
            name,
            Broker(port=given.port),
            made_up(name, given.scenario, classes, given.backbone, given.dimension),
            number * given.slow_s,
        )
        for number, name in enumerate(given.names.split(","))
    ]
    for gateway in gateways:
        gateway.start()
    while not stopping.wait(HEARTBEAT_S):
        for gateway in gateways:
            gateway.report()


if __name__ == "__main__":
    main()
