"""Samples in: checked before they are stored, committed in batches, receipted only after the commit.

The queue is bounded; when it is full the link's thread waits, the broker holds messages back, and the edges' windows
stop them: nothing is dropped silently, and what is dropped all the same is sent again, since it has no receipt.
"""

import logging
import queue
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Sequence

import cv2
import numpy as np

from cloud.settings import IngestSettings
from cloud.store import Store
from common import codec, topics
from common.chunks import Joiner
from common.clock import Clock
from common.errors import EnvironmentFault, HeadframeError, WireError
from common.ids import SAMPLE_ID_BYTES, check_name, sample_id
from common.messages import Chunk, Message, Receipt, Refusal, Sample

log = logging.getLogger(__name__)

RECEIPT_IDS_MAX = 500
QUEUE_WAIT_S = 20.0
RETRY_S = 1.0
JOINERS_MAX = 256
JOINER_BYTES = 16 * 1024 * 1024
EMBEDDING_BYTES_MAX = 64 * 1024
_START_OF_FRAME = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}

Send = Callable[[str, Message], bool]


class Ingest:
    """Takes what gateways publish under `sample` and `chunk`."""

    def __init__(self, store: Store, settings: IngestSettings, clock: Clock, send: Send) -> None:
        self._store, self._settings, self._clock, self._send = store, settings, clock, send
        self._queue: queue.Queue[Sample] = queue.Queue(settings.queue)
        self._joiners: OrderedDict[str, Joiner] = OrderedDict()
        self._figures: Counter[str] = Counter()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ingest", daemon=True)

    def start(self) -> None:
        """Start the thread that commits."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """Commit what has arrived, then end."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def figures(self) -> dict[str, int]:
        """Counters: received, stored, duplicates, refused, waiting."""
        return {**self._figures, "waiting": self._queue.qsize()}

    def on_message(self, topic: str, payload: bytes) -> None:
        """One message, on the link's thread. Waits when the queue is full."""
        gateway_id, kind = topics.parse_up(topic)
        sample: Sample | None = None
        try:
            sample = self._join(gateway_id, kind, payload)
            if sample is None:
                return
            self._figures["received"] += 1
            check_sample(sample, gateway_id, self._settings)
        except HeadframeError as error:
            self._refuse(gateway_id, topic, payload, str(error), sample)
            return
        try:
            self._queue.put(sample, timeout=QUEUE_WAIT_S)
        except queue.Full:
            self._figures["overflowed"] += 1
            log.warning("ingest is stuck; a sample of %s will be sent again", gateway_id)

    def _join(self, gateway_id: str, kind: str, payload: bytes) -> Sample | None:
        message = codec.decode(payload)
        if kind == "chunk":
            if not isinstance(message, Chunk):
                raise WireError(f"a {type(message).__name__} came on the topic of chunks")
            whole = self._joiner(gateway_id).add(message)
            if whole is None:
                return None
            message = codec.decode(whole)
        if not isinstance(message, Sample):
            raise WireError(f"a {type(message).__name__} came on the topic of samples")
        return message

    def _joiner(self, gateway_id: str) -> Joiner:
        if gateway_id not in self._joiners and len(self._joiners) >= JOINERS_MAX:
            self._joiners.popitem(last=False)
        self._joiners.setdefault(gateway_id, Joiner(JOINER_BYTES))
        self._joiners.move_to_end(gateway_id)
        return self._joiners[gateway_id]

    def _refuse(self, gateway_id: str, topic: str, payload: bytes, reason: str, sample: Sample | None) -> None:
        """Into quarantine with the reason; and when we know which sample it is, tell the gateway to let it go."""
        self._figures["refused"] += 1
        log.warning("refused a message of %s: %s", gateway_id, reason)
        self._store.quarantine(gateway_id, topic, reason, payload, self._clock.wall_ns())
        if sample is not None and len(sample.sample_id) == SAMPLE_ID_BYTES:
            refusal = Refusal(sample.sample_id, reason[:200])
            self._send(topics.down(gateway_id, "receipt"), Receipt(refused=(refusal,)))

    def _run(self) -> None:
        while not (self._stopping.is_set() and self._queue.empty()):
            batch = self._gather()
            while batch:
                try:
                    new = self._store.add_samples(batch, self._clock.wall_ns())
                except EnvironmentFault as error:
                    log.error("%s", error)
                    if self._stopping.wait(RETRY_S):
                        return  # nothing of the batch is receipted: it is sent again
                    continue
                self._figures["stored"] += new
                self._figures["duplicates"] += len(batch) - new
                self._receipt(batch)
                break

    def _gather(self) -> list[Sample]:
        """Up to `batch` samples; waits for the first, then a little for the others."""
        try:
            batch = [self._queue.get(timeout=0.25)]
        except queue.Empty:
            return []
        deadline = time.monotonic() + self._settings.batch_wait_s
        while len(batch) < self._settings.batch and (left := deadline - time.monotonic()) > 0:
            try:
                batch.append(self._queue.get(timeout=left))
            except queue.Empty:
                break
        return batch

    def _receipt(self, batch: Sequence[Sample]) -> None:
        """After the commit, and for duplicates too; a receipt that is lost is asked for by the next re-sending."""
        by_gateway: dict[str, list[bytes]] = {}
        for sample in batch:
            by_gateway.setdefault(sample.gateway_id, []).append(sample.sample_id)
        for gateway_id, names in by_gateway.items():
            for start in range(0, len(names), RECEIPT_IDS_MAX):
                receipt = Receipt(stored=tuple(names[start : start + RECEIPT_IDS_MAX]))
                self._send(topics.down(gateway_id, "receipt"), receipt)


def check_sample(sample: Sample, gateway_id: str, settings: IngestSettings) -> None:
    """All that must hold before a sample is stored.

    Raises:
        WireError: says which rule was broken.
        OperatorError: an id has characters that are not allowed.
    """
    if sample.gateway_id != gateway_id:
        raise WireError(f"a sample that says it is of {sample.gateway_id!r} came on the topic of {gateway_id!r}")
    check_name("site", sample.site_id)
    check_name("camera", sample.camera_id)
    if len(sample.jpeg) > settings.jpeg_bytes_max:
        raise WireError(f"picture of {len(sample.jpeg)} bytes is over the bound of {settings.jpeg_bytes_max}")
    expected = sample_id(sample.jpeg, sample.gateway_id, sample.camera_id, sample.captured_at_ns)
    if sample.sample_id != expected:
        raise WireError("the sample id is not the hash of the content")
    if not 0 < len(sample.embedding) <= EMBEDDING_BYTES_MAX or len(sample.embedding) % 2:
        raise WireError(f"embedding of {len(sample.embedding)} bytes is no float16 vector")
    if not np.isfinite(np.frombuffer(sample.embedding, "<f2")).all():
        raise WireError("the embedding holds values that are not finite")
    width, height = read_jpeg_size(sample.jpeg)
    if width * height > settings.pixels_max:
        raise WireError(f"picture of {width} x {height} pixels is over the bound of {settings.pixels_max}")
    image = cv2.imdecode(np.frombuffer(sample.jpeg, np.uint8), cv2.IMREAD_COLOR)
    if image is None or image.shape[:2] != (height, width):
        raise WireError("the picture does not decode")


def read_jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Width and height from the header alone, before anything is decoded (ITU-T T.81, B.2.2).

    Raises:
        WireError: no JPEG, or no frame header.
    """
    if jpeg[:2] != b"\xff\xd8":
        raise WireError("the picture is no JPEG")
    at = 2
    while at + 9 <= len(jpeg) and jpeg[at] == 0xFF:
        marker, length = jpeg[at + 1], int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if marker in _START_OF_FRAME:
            return int.from_bytes(jpeg[at + 7 : at + 9], "big"), int.from_bytes(jpeg[at + 5 : at + 7], "big")
        at += 2 + length
    raise WireError("the picture has no JPEG frame header")
