"""Offer before pixels: what is in the spool is offered first, and only what the centre asks for is sent.

Decides what of the spool may leave (`ready`) and when an offer nobody asked for has waited long enough: then it is
declined, which is how its story ends in the ledger. The random trickle is sent without asking, or what is evaluated
with it would be biased by what the centre likes. What was offered and asked for is remembered in a small file: losing
it costs the offers once more, never a sample.
"""

import logging
import sqlite3
import threading
from collections.abc import Collection
from pathlib import Path

import cv2
import numpy as np

from common import codec, topics
from common.clock import Clock
from common.coverage import to_int8
from common.errors import EnvironmentFault, WireError
from common.messages import Offer, Sample, Want
from common.mqtt import Link
from edge.settings import OfferSettings
from edge.spool import Queued, Spool

log = logging.getLogger(__name__)

OFFER_BYTES_MAX = 4096
"""With 1,280 values and a thumbnail it is about 2,400; a longer embedding goes without the picture."""
AT_ONCE = 32
"""Offers per step: a spool that was filled offline is offered within minutes, not in one burst."""
UNHEARD_S = 60.0
AGAIN_S = 3600.0
"""The centre keeps offers in memory: after its restart it hears of them again within the hour."""
THUMBNAILS = ((64, 50), (64, 30), (48, 30), (32, 30))
"""Longer side in pixels and JPEG quality, tried until the offer fits: enough to tell a belt from a wall."""
TRICKLE = "trickle"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS offers (
    sample_id BLOB PRIMARY KEY, first_ns INTEGER NOT NULL, wanted INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
"""


class Offers:
    """All methods may be called from any thread."""

    def __init__(self, connection: sqlite3.Connection, spool: Spool, settings: OfferSettings, clock: Clock) -> None:
        self._db, self._spool, self._settings, self._clock = connection, spool, settings, clock
        self._lock = threading.Lock()
        rows = self._db.execute("SELECT sample_id, first_ns, wanted FROM offers").fetchall()
        self._first_ns: dict[bytes, int] = {name: first_ns for name, first_ns, _ in rows}
        self._wanted: set[bytes] = {name for name, _, wanted in rows if wanted}
        self._again_s: dict[bytes, float] = {}
        """When an offer that is not asked for is due to be made (again)."""

    @classmethod
    def open(cls, path: Path, spool: Spool, settings: OfferSettings, clock: Clock) -> "Offers":
        """Open or make the file; one that is damaged is made anew.

        Raises:
            EnvironmentFault: the folder cannot be written.
        """
        try:
            try:
                return cls(_connect(path), spool, settings, clock)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise
                log.error("%s was damaged (%s); everything is offered again", path, error)
                path.unlink()
                return cls(_connect(path), spool, settings, clock)
        except (OSError, sqlite3.OperationalError) as error:
            raise EnvironmentFault(f"cannot open {path}: {error}", "Check data_dir and its disk.") from error

    def step(self, link: Link, gateway_id: str, bytes_max: int) -> int:
        """Decline what has waited too long, and offer what is new or was not heard.

        Args:
            bytes_max: what the day's budget has left.

        Returns:
            Bytes sent.
        """
        self._decline()
        now_s, sent = self._clock.monotonic_s(), 0
        for queued in self._due(now_s):
            sample = codec.decode(queued.payload)
            if not isinstance(sample, Sample):
                raise WireError("the spool holds a message that is no sample")
            if sample.reason == TRICKLE:
                self._note(queued.sample_id, wanted=True)
                continue
            payload = codec.encode(make_offer(sample, len(queued.payload)))
            if sent + len(payload) > bytes_max or not link.publish(topics.up(gateway_id, "offer"), payload):
                break
            sent += len(payload)
            self._note(queued.sample_id, wanted=False)
            with self._lock:
                self._again_s[queued.sample_id] = now_s + UNHEARD_S
        return sent

    def ready(self, limit: int, exclude: Collection[bytes]) -> list[Queued]:
        """What may be sent now: asked for and still here, most valuable first, without those in `exclude`."""
        with self._lock:
            names = self._wanted - set(exclude)
        return self._spool.held(names, limit)

    def on_want(self, want: Want) -> None:
        """The centre has answered; ids that are not here any more are ignored."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            known = [name for name in want.wanted if name in self._first_ns]
            for name in want.heard:
                if name in self._first_ns:
                    self._again_s[name] = now_s + AGAIN_S
        for name in known:
            self._note(name, wanted=True)

    def forget(self, names: Collection[bytes]) -> None:
        """These have left the spool."""
        with self._lock:
            for name in names:
                self._first_ns.pop(name, None)
                self._again_s.pop(name, None)
                self._wanted.discard(name)
            self._db.executemany("DELETE FROM offers WHERE sample_id = ?", [(name,) for name in names])

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _due(self, now_s: float) -> list[Queued]:
        """What was never offered, most valuable first; then what was not heard, or long ago."""
        with self._lock:
            known = set(self._first_ns)
            again = [n for n in known - self._wanted if self._again_s.get(n, float("-inf")) <= now_s]
        fresh = self._spool.pending(AT_ONCE, exclude=known)
        repeated = self._spool.held(again, AT_ONCE - len(fresh)) if len(fresh) < AT_ONCE else []
        return [*fresh, *repeated]

    def _decline(self) -> None:
        """What nobody asked for in time ends here; what was evicted meanwhile is forgotten with it."""
        before_ns = self._clock.wall_ns() - int(self._settings.keep_hours * 3600e9)
        with self._lock:
            old = [n for n, first_ns in self._first_ns.items() if first_ns < before_ns and n not in self._wanted]
        if old:
            self._spool.decline(old)
            self.forget(old)

    def _note(self, name: bytes, *, wanted: bool) -> None:
        with self._lock:
            first_ns = self._first_ns.setdefault(name, self._clock.wall_ns())
            if wanted:
                self._wanted.add(name)
                self._again_s.pop(name, None)
            self._db.execute(
                "INSERT INTO offers VALUES (?, ?, ?) ON CONFLICT (sample_id) DO UPDATE SET wanted = excluded.wanted",
                (name, first_ns, int(name in self._wanted)),
            )


def make_offer(sample: Sample, payload_bytes: int) -> Offer:
    """The offer of a sample, with the largest thumbnail that fits into `OFFER_BYTES_MAX`."""
    embedding, step = to_int8(np.frombuffer(sample.embedding, "<f2").astype(np.float64))
    image = cv2.imdecode(np.frombuffer(sample.jpeg, np.uint8), cv2.IMREAD_REDUCED_COLOR_4)

    def offer(thumbnail: bytes) -> Offer:
        return Offer(
            sample_id=sample.sample_id,
            gateway_id=sample.gateway_id,
            site_id=sample.site_id,
            camera_id=sample.camera_id,
            captured_at_ns=sample.captured_at_ns,
            backbone=sample.backbone,
            embedding=embedding,
            step=step,
            scores=sample.scores,
            reason=sample.reason,
            payload_bytes=payload_bytes,
            thumbnail=thumbnail,
        )

    if image is None:
        return offer(b"")
    for side, quality in THUMBNAILS:
        scale = side / max(image.shape[:2])
        small = cv2.resize(image, None, fx=min(1.0, scale), fy=min(1.0, scale), interpolation=cv2.INTER_AREA)
        made = offer(cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes())
        if len(codec.encode(made)) <= OFFER_BYTES_MAX:
            return made
    return offer(b"")


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=NORMAL")  # what a power cut takes is offered again
        connection.executescript(_SCHEMA)
    except sqlite3.Error:
        connection.close()
        raise
    return connection
