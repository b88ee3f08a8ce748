"""An ingest worker: admission, store and receipts for the gateways of some shards, in a process of its own.

Several share a fleet by topic against one PostgreSQL; the centre leaves them their shards (`ingest.shards`). What two
of them take up twice by mistake is stored once all the same.
"""

import logging
import signal
import threading
from collections.abc import Sequence

from cloud.ingest import Ingest
from cloud.link import CentreLink
from cloud.settings import CloudSettings
from cloud.store import Store
from common import codec, topics
from common.clock import Clock, SystemClock
from common.files import own_folder
from common.logs import configure_logs
from common.messages import Message
from common.mqtt import Broker

log = logging.getLogger(__name__)

SAMPLE_KINDS: Sequence[str] = ("sample", "chunk", "ledger")
BROKER_WAIT_S = 20.0
STEP_S = 0.5


class Worker:
    """`start`, then `stop`."""

    def __init__(self, settings: CloudSettings, broker: Broker, shards: range, clock: Clock | None = None) -> None:
        self.shards = shards
        self.store = Store.open(settings.database_url, settings.data_dir / "blobs")
        self.ingest = Ingest(self.store, settings.ingest, clock or SystemClock(), self._publish)
        self.link = CentreLink(
            broker,
            f"headframe-ingest-{name_of(shards)}",
            topics.up_filters(shards, SAMPLE_KINDS),
            self.ingest.on_message,
            has_room=self.ingest.has_room,
            on_oversize=self.ingest.on_oversize,
        )

    def start(self) -> None:
        """Start the threads; does not wait for the broker."""
        self.ingest.start()
        self.link.start()

    def stop(self, timeout_s: float = 15.0) -> None:
        """Commit what has arrived, then leave."""
        self.ingest.stop(timeout_s)
        self.link.stop()
        self.store.close()

    def _publish(self, topic: str, message: Message) -> bool:
        return self.link.publish(topic, codec.encode(message))


def name_of(shards: range) -> str:
    """`0-127`."""
    return f"{shards.start}-{shards.stop - 1}"


def run_worker(settings: CloudSettings, shards: range) -> None:
    """Run until a signal asks to stop.

    Raises:
        OperatorError: another worker works on the same shards in this data_dir.
        EnvironmentFault: the broker or the database cannot be reached.
    """
    configure_logs(settings.log_level)
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    with own_folder(settings.data_dir / "workers" / name_of(shards)):
        worker = Worker(settings, settings.broker.to_broker(), shards)
        try:
            worker.start()
            worker.link.wait_connected(BROKER_WAIT_S)
            log.info("ingest worker of shards %s runs", name_of(shards))
            while not stop.wait(STEP_S):
                if not worker.ingest.alive or not worker.link.alive:
                    raise RuntimeError("a thread of ingest has died; see the log above")
        finally:
            worker.stop()
