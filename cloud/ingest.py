"""Samples in: checked before they are stored, committed in batches, receipted only after the commit.

The backlog is bounded in samples and bytes; when it is full the centre stops reading (`has_room`), the broker holds
messages back, and the edges' windows stop them: nothing is dropped silently, and what is dropped all the same is sent
again, since it has no receipt.
"""

import contextlib
import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Sequence

from cloud.admission import check_sample
from cloud.backlog import Backlog
from cloud.guard import Guard
from cloud.settings import IngestSettings
from cloud.store import Store
from common import codec, topics
from common.chunks import Joiner
from common.clock import Clock
from common.errors import EnvironmentFault, HeadframeError, OperatorError, WireError
from common.ids import SAMPLE_ID_BYTES
from common.messages import Chunk, Ended, Ledger, Message, Partial, Receipt, Refusal, Sample

log = logging.getLogger(__name__)

RECEIPT_IDS_MAX = 500
PATIENCE_S = 10.0
"""Without room for so long, samples are let go so that what comes after them on the link, the state of every gateway
among it, is heard; their gateways keep them and are asked to wait."""
RETRY_S = 1.0
GATHER_S = 0.25
LEDGER_MAX = 1000  # entries of one message
BEHIND = 0.5  # share of the backlog from which gateways are asked to wait
PAUSE_S_MAX = 60.0
BATCH_BYTES = 32 << 20
TURN_S_MAX = 1.0  # the link waits so long for its turn at most: its keep-alive goes on
JOINERS_BYTES = 256 * 1024 * 1024  # unfinished transfers of all gateways
FIGURES = ("received", "stored", "duplicates", "refused", "ended", "overflowed", "faults")

Send = Callable[[str, Message], bool]


class Ingest:
    """Takes what gateways publish under `sample` and `chunk`."""

    def __init__(
        self,
        store: Store,
        settings: IngestSettings,
        clock: Clock,
        send: Send,
        guard: Guard | None = None,
        on_stored: Callable[[Sequence[Sample]], None] | None = None,
    ) -> None:
        self._on_stored = on_stored
        self._store, self._settings, self._clock, self._send = store, settings, clock, send
        self._guard = guard
        self._backlog = Backlog(settings.queue, settings.queue_bytes)
        self._joiners: OrderedDict[str, Joiner] = OrderedDict()
        self._joining_bytes = 0
        self._per_s = 0.0
        """Samples a second of the last commit."""
        self._lag_s = 0.0
        """From the link to the commit, of the last batch."""
        self._figures = Counter(dict.fromkeys(FIGURES, 0))
        self._figures_lock = threading.Lock()
        self._full_since_s: float | None = None
        self._may_read = threading.Event()
        self._may_read.set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Start the thread that commits."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Commit what has arrived, then end."""
        self._stopping.set()
        if self.alive:
            self._thread.join(timeout_s)

    @property
    def alive(self) -> bool:
        """Whether the thread that commits runs."""
        return self._thread.is_alive()

    def figures(self) -> dict[str, int]:
        """Counters (`FIGURES`) since the start, how many samples wait for their commit, and how long the last took."""
        with self._figures_lock:
            return {
                **self._figures,
                "waiting": len(self._backlog),
                "lag_ms": round(1000 * self._lag_s),
                "waiting_percent": round(100 * self._backlog.fullness),
            }

    def on_message(self, topic: str, payload: bytes) -> None:
        """One message, on the link's thread. Waits when the queue is full, but not for ever."""
        gateway_id, kind = topics.parse_up(topic)
        if kind != "ledger" and not self._backlog.has_room() and self._is_out_of_patience():
            self._let_go(gateway_id)
            return
        sample: Sample | None = None
        try:
            if kind == "ledger":
                self._take_ledger(gateway_id, payload)
                return
            sample = self._join(gateway_id, kind, payload)
            if sample is None:
                return
            self._count("received")
            check_sample(sample, gateway_id, self._settings)
        except HeadframeError as error:
            if self._guard:
                self._guard.refused(gateway_id, error)
            self._refuse(gateway_id, topic, payload, str(error), sample)
            return
        if not self._backlog.put(sample, PATIENCE_S):
            self._let_go(gateway_id)

    def has_room(self) -> bool:
        """Whether the next message would be taken, or let go because there has been no room for too long; waits while a
        batch is handed to the database, some milliseconds."""
        if not self._may_read.is_set():
            self._may_read.wait(TURN_S_MAX)
        if self._backlog.has_room():
            self._full_since_s = None
            return True
        return self._is_out_of_patience()

    def _is_out_of_patience(self) -> bool:
        now_s = self._clock.monotonic_s()
        if self._full_since_s is None:
            self._full_since_s = now_s
        return now_s - self._full_since_s >= PATIENCE_S

    def _let_go(self, gateway_id: str) -> None:
        """Of a sample that is not receipted: it comes again, later when the gateway hears us."""
        self._count("overflowed")
        self._send(topics.down(gateway_id, "receipt"), Receipt(pause_s=max(PATIENCE_S, self._pause_s())))

    def on_oversize(self, topic: str, size: int) -> None:
        """A message that was too large to be read at all."""
        with contextlib.suppress(WireError, OperatorError):  # a topic that is nobody's is nobody's fault
            gateway_id, _ = topics.parse_up(topic)
            self._refuse(gateway_id, topic, b"", f"a message of {size} bytes is over the bound", None)

    def _take_ledger(self, gateway_id: str, payload: bytes) -> None:
        """What a spool let go: kept, then receipted like a sample."""
        message = codec.decode(payload)
        if not isinstance(message, Ledger):
            raise WireError(f"a {type(message).__name__} came on the topic of ledgers")
        if message.gateway_id != gateway_id or len(message.ended) > LEDGER_MAX:
            raise WireError(f"a ledger of {message.gateway_id!r} with {len(message.ended)} entries is out of bounds")
        try:
            self._store.add_ended(gateway_id, message.ended, self._clock.wall_ns())
        except EnvironmentFault as error:  # without a receipt it comes again
            self._count("faults")
            log.error("%s", error)
            return
        self._count("ended", len(message.ended))
        entries = tuple((entry.epoch, entry.sequence) for entry in message.ended)
        self._send(topics.down(gateway_id, "receipt"), Receipt(ledger=entries))

    def _join(self, gateway_id: str, kind: str, payload: bytes) -> Sample | None:
        message = codec.decode(payload)
        if kind == "chunk":
            if not isinstance(message, Chunk):
                raise WireError(f"a {type(message).__name__} came on the topic of chunks")
            whole = self._join_chunk(gateway_id, message)
            if whole is None:
                return None
            message = codec.decode(whole)
        if not isinstance(message, Sample):
            raise WireError(f"a {type(message).__name__} came on the topic of samples")
        return message

    def _join_chunk(self, gateway_id: str, chunk: Chunk) -> bytes | None:
        """Each gateway fills a joiner of its own; beyond the bound of all, the one idle for longest is let go."""
        bound = 2 * self._settings.jpeg_bytes_max  # so that a picture over its bound is refused by name
        joiner = self._joiners.pop(gateway_id, None) or Joiner(bound)
        self._joining_bytes -= joiner.pending_bytes
        if joiner.has(chunk):  # it begins again after a lost connection: say what is still needed
            partial = Partial(chunk.transfer_id, joiner.missing(chunk))
            self._send(topics.down(gateway_id, "receipt"), Receipt(partial=(partial,)))
        try:
            return joiner.add(chunk)
        finally:
            if joiner.pending_bytes:
                self._joiners[gateway_id] = joiner
                self._joining_bytes += joiner.pending_bytes
            while self._joining_bytes > JOINERS_BYTES:
                _, idle = self._joiners.popitem(last=False)
                self._joining_bytes -= idle.pending_bytes

    def _refuse(self, gateway_id: str, topic: str, payload: bytes, reason: str, sample: Sample | None) -> None:
        """Into quarantine with the reason; and when we know which sample it is, tell the gateway to let it go."""
        log.warning("refused a message of %s: %s", gateway_id, reason)
        try:
            self._store.quarantine(gateway_id, topic, reason, payload, self._clock.wall_ns())
        except EnvironmentFault as error:  # the gateway keeps it and sends it again, when we can write it down
            self._count("faults")
            log.error("%s", error)
            return
        self._count("refused")
        if sample is not None and len(sample.sample_id) == SAMPLE_ID_BYTES:
            self._account(gateway_id, sample)
            refusal = Refusal(sample.sample_id, reason[:200])
            self._send(topics.down(gateway_id, "receipt"), Receipt(refused=(refusal,)))

    def _account(self, gateway_id: str, sample: Sample) -> None:
        """A refused sample will never come: its number is no gap."""
        if not sample.epoch or sample.gateway_id != gateway_id:
            return
        entry = Ended(sample.epoch, sample.sequence, sample.sample_id, 0.0, "refused")
        try:
            self._store.add_ended(gateway_id, [entry], self._clock.wall_ns())
        except HeadframeError as error:
            log.warning("a refused sample of %s is not accounted for: %s", gateway_id, error)

    def _run(self) -> None:
        settings = self._settings
        while not (self._stopping.is_set() and not len(self._backlog)):
            batch = self._backlog.take(settings.batch, BATCH_BYTES, GATHER_S, settings.batch_wait_s)
            if batch and not self._commit(batch):
                return

    def _commit(self, batch: Sequence[Sample]) -> bool:
        """Store and receipt a batch, however long the disk makes us wait; False when asked to stop before that."""
        while True:
            began_s = self._clock.monotonic_s()
            try:
                new = self._store.add_samples(batch, self._clock.wall_ns(), self._alone)
            except EnvironmentFault as error:
                self._count("faults")
                log.error("%s", error)
                if self._stopping.wait(RETRY_S):
                    return False  # nothing of the batch is receipted: it is sent again
            except WireError as error:
                if len(batch) > 1:  # one of them is to blame: the others must not wait for it
                    return all(self._commit([sample]) for sample in batch)
                (sample,) = batch
                topic = topics.up(sample.gateway_id, "sample")
                self._refuse(sample.gateway_id, topic, codec.encode(sample), str(error), sample)
                return True
            else:
                self._lag_s = self._backlog.waited_s + self._clock.monotonic_s() - began_s
                self._per_s = len(batch) / max(1e-6, self._clock.monotonic_s() - began_s)
                self._count("stored", new)
                self._count("duplicates", len(batch) - new)
                self._receipt(batch)
                return True

    def _receipt(self, batch: Sequence[Sample]) -> None:
        """After the commit, and for duplicates too; a receipt that is lost is asked for by the next re-sending."""
        if self._guard:
            self._guard.receipted(batch)
        if self._on_stored:
            self._on_stored(batch)
        by_gateway: dict[str, list[bytes]] = {}
        pause_s = self._pause_s()
        for sample in batch:
            by_gateway.setdefault(sample.gateway_id, []).append(sample.sample_id)
        for gateway_id, names in by_gateway.items():
            for start in range(0, len(names), RECEIPT_IDS_MAX):
                receipt = Receipt(stored=tuple(names[start : start + RECEIPT_IDS_MAX]), pause_s=pause_s)
                self._send(topics.down(gateway_id, "receipt"), receipt)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """The link takes up nothing meanwhile: the database's driver lets go of Python's lock at every row, and two
        threads that pass it to and fro cost a quarter more than one after the other (measured)."""
        self._may_read.clear()
        try:
            yield
        finally:
            self._may_read.set()

    def _pause_s(self) -> float:
        """What the gateways are asked to wait: as long as the backlog needs, once it is more than half full."""
        if self._backlog.fullness < BEHIND or not self._per_s:
            return 0.0
        return min(PAUSE_S_MAX, len(self._backlog) / self._per_s)

    def _count(self, figure: str, number: int = 1) -> None:
        with self._figures_lock:
            self._figures[figure] += number
