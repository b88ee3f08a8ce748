"""What is published once for the whole fleet: parcels on the broker's retained topics, laid out when somebody asks.

Decides which pieces lie there, how fast they are published, and when they are cleared again; leaves to `cloud.giving`
and `cloud.telling` what is worth laying out. Nothing is assumed of the broker: a piece that did not arrive, or that it
forgot, is published again when a gateway says that nothing comes; and before the first piece the centre looks whether
the broker carries its own word on such a topic. One with an access list of before does not, and mosquitto ends the
connection of who tries: there every gateway is served by itself.
"""

import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from cloud.settings import SharingSettings
from common import topics
from common.clock import Clock
from common.errors import EnvironmentFault
from common.files import write_atomically
from common.ids import layer_hash
from common.parcels import PIECE_BYTES, WINDOW, Packed, cut, pack
from common.rate import Rate

log = logging.getLogger(__name__)

REPEAT_S: Final = 4.0
"""A piece is not published again sooner, however many gateways say that it does not come; each does after 5 s."""
REPEATED: Final = 2 * WINDOW
"""Pieces published again at once, of those that went out on an earlier connection: a broker that was started anew may
have kept nothing. On the same connection it is the one piece only, for whoever listens gets it once more."""
IN_USE_S: Final = 60.0
"""A parcel asked for within so long is not cleared to make room for another."""
PROBE: Final = b"headframe: is this carried?"
PROBE_NAME: Final = layer_hash(PROBE)
PROBE_S: Final = 5.0
"""The centre's own word has not come back after so long: the broker does not carry it."""
PROBE_AGAIN_S: Final = 3600.0
PACKED_MAX: Final = 4096
"""Files whose pieces are known by name."""

Source = Path | bytes
Publish = Callable[[str, bytes, bool], bool]
"""Topic, payload, retained; False: later."""


@dataclass(slots=True)
class _Entry:
    """A parcel that lies there, or is on its way."""

    packed: Packed
    source: Source
    asked_s: float


class Shelf:
    """Any thread may call it; `step` about once a second.

    Args:
        record: a file that remembers, over a crash, which pieces the broker may hold.
        connection: the number of the connection to the broker.
    """

    def __init__(
        self, record: Path, settings: SharingSettings, clock: Clock, publish: Publish, connection: Callable[[], int]
    ) -> None:
        self._record, self._settings, self._clock, self._publish = record, settings, clock, publish
        self._connection = connection
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        """By root, the one asked for last at the end."""
        self._packed: OrderedDict[Path, Packed] = OrderedDict()
        self._published: dict[str, tuple[float, int]] = {}
        """Piece -> when, and on which connection; those of parcels that lie there."""
        self._queue: deque[tuple[str, str]] = deque()
        """(root, piece) to be published."""
        self._waiting: set[str] = set()
        """Pieces in the queue."""
        self._clearing: dict[str, None] = {}
        """Pieces that the broker may hold and nobody needs."""
        self._loaded = False
        self._carried: bool | None = None if settings.enabled else False
        self._probed_s: float | None = None
        self._rate = Rate(settings.bytes_per_s, clock.monotonic_s())
        self._lock = threading.RLock()
        self.published_bytes = 0

    @property
    def carried(self) -> bool | None:
        """Whether the broker carries what is published for all; None: that is not known yet."""
        return self._carried

    def on_message(self, payload: bytes) -> None:
        """The centre's own word came back."""
        if payload == PROBE and self._settings.enabled:
            self._carried = True

    def pack(self, source: Source) -> Packed:
        """The pieces of a file, by name; a file named by its hash is read once for that."""
        if isinstance(source, bytes):
            return pack(cut(source))
        with self._lock:
            found = self._packed.get(source)
        if found is None:
            found = pack(_pieces_of(source))
            with self._lock:
                self._packed[source] = found
                while len(self._packed) > PACKED_MAX:
                    self._packed.popitem(last=False)
        return found

    def find(self, root: str) -> tuple[Packed, Source] | None:
        """A parcel that lies there, by its root: how a gateway asks for a proof that it was told of."""
        with self._lock:
            entry = self._entries.get(root)
            return (entry.packed, entry.source) if entry else None

    def lay_out(
        self, packed: Packed, source: Source, offset: int = 0, *, silent: bool = False, first: bool = False
    ) -> bool:
        """Have a parcel published from `offset` on, unless it is already; False: there is no room for it, or the broker
        does not carry it.

        Args:
            silent: what follows on `offset` did not arrive.
            first: before what waits: it is small, and much depends on it.
        """
        now_s, root = self._clock.monotonic_s(), packed.parcel.root.hex()
        if not self._carried:
            return False
        with self._lock:
            entry = self._entries.get(root)
            if entry is None:
                if not self._make_room(packed.parcel.total_bytes, now_s):
                    return False
                entry = self._entries[root] = _Entry(packed, source, now_s)
                self._write()
            entry.asked_s = now_s
            self._entries.move_to_end(root)
            begin = min(max(offset, 0) // PIECE_BYTES, len(packed.names) - 1)
            names = list(dict.fromkeys([*([root] if packed.index else []), *packed.names[begin:]]))
            wanted = [name for name in names if name not in self._published]
            if silent:
                wanted = self._lost(names, packed.names[begin], now_s) + wanted
            new = [name for name in wanted if name not in self._waiting]
            self._waiting.update(new)
            if first:
                self._queue.extendleft((root, name) for name in reversed(new))
            else:
                self._queue.extend((root, name) for name in new)
            self._pump()
        return True

    def wait_s(self) -> float:
        """How long it takes until everything that waits is published; 0 where there is no bound."""
        with self._lock:
            rate = self._settings.bytes_per_s
            return self._rate.wait_s(self._clock.monotonic_s()) + len(self._queue) * PIECE_BYTES / rate if rate else 0.0

    def spare(self, size: int) -> bool:
        """Whether so many bytes may go to one gateway now, within the same bound."""
        with self._lock:
            if self._rate.wait_s(self._clock.monotonic_s()) > 0:
                return False
            self._rate.spend(size)
            return True

    def figures(self) -> dict[str, int]:
        """For the operations team."""
        with self._lock:
            return {
                "parcels": len(self._entries),
                "bytes": sum(entry.packed.parcel.total_bytes for entry in self._entries.values()),
                "waiting_pieces": len(self._queue),
                "published_bytes": self.published_bytes,
            }

    def step(self) -> None:
        """Publish what waits, clear what nobody has asked for lately."""
        now_s = self._clock.monotonic_s()
        if not self._carried:
            self._probe(now_s)
            return
        with self._lock:
            self._load()
            for root, entry in list(self._entries.items()):
                if now_s - entry.asked_s < self._settings.keep_s:
                    break
                self._drop(root)
            self._clear()
            self._pump()

    def _probe(self, now_s: float) -> None:
        """Say something to itself; a broker that does not carry it is asked again an hour later."""
        due = self._probed_s is None or now_s - self._probed_s >= PROBE_AGAIN_S
        if self._settings.enabled and due and self._publish(topics.release(PROBE_NAME), PROBE, False):
            self._probed_s = now_s
        if self._carried is None and self._probed_s is not None and now_s - self._probed_s >= PROBE_S:
            self._carried = False
            log.warning(
                "the broker does not carry %s…: every gateway is served by itself. Install the access list of this "
                "version (deploy/mosquitto/headframe.acl), or set [sharing] enabled = false",
                topics.RELEASE,
            )

    def _lost(self, names: Sequence[str], needed: str, now_s: float) -> list[str]:
        """Of these pieces, those that are to be published once more when somebody misses the one that it needs."""
        found, connection = [], self._connection()
        for name in names[: REPEATED + 1]:
            at_s, before = self._published.get(name, (now_s, connection))
            if now_s - at_s >= REPEAT_S and (before != connection or name in (names[0], needed)):
                found.append(name)
        return found

    def _pump(self) -> None:
        while self._queue and self._rate.wait_s(self._clock.monotonic_s()) <= 0:
            root, name = self._queue[0]
            entry = self._entries.get(root)
            data = _piece(entry, name) if entry else b""
            if data and not self._publish(topics.release(name), data, True):
                return
            self._queue.popleft()
            self._waiting.discard(name)
            if data:
                self._published[name] = self._clock.monotonic_s(), self._connection()
                self._rate.spend(len(data))
                self.published_bytes += len(data)
                self._clearing.pop(name, None)

    def _make_room(self, size: int, now_s: float) -> bool:
        held = sum(entry.packed.parcel.total_bytes for entry in self._entries.values())
        for root, entry in list(self._entries.items()):
            if held + size <= self._settings.bytes_max or now_s - entry.asked_s < IN_USE_S:
                break
            held -= entry.packed.parcel.total_bytes
            self._drop(root)
        return held + size <= self._settings.bytes_max

    def _drop(self, root: str) -> None:
        entry = self._entries.pop(root)
        for name in _names_of(entry) - self._names():
            self._clearing[name] = None
            self._published.pop(name, None)

    def _clear(self) -> None:
        before = len(self._clearing)
        for name in list(self._clearing):
            if not self._publish(topics.release(name), b"", True):
                break
            del self._clearing[name]
        if len(self._clearing) != before:
            self._write()

    def _names(self) -> set[str]:
        """Pieces of all parcels that lie there."""
        return {name for entry in self._entries.values() for name in _names_of(entry)}

    # --- over a crash ---------------------------------------------------------------------------

    def _load(self) -> None:
        """What the broker may hold of a life before this one is cleared, unless it is laid out again."""
        if self._loaded:
            return
        self._loaded = True
        try:
            names = msgspec.json.decode(self._record.read_bytes(), type=list[str])
        except FileNotFoundError:
            return
        except (OSError, msgspec.DecodeError) as error:
            log.warning("what an earlier run has published is not known, and stays at the broker: %s", error)
            return
        kept = self._names()
        self._clearing |= dict.fromkeys(name for name in names if name not in kept)

    def _write(self) -> None:
        self._load()
        try:
            write_atomically(self._record, msgspec.json.encode(sorted(self._names() | self._clearing.keys())))
        except EnvironmentFault as error:
            log.error("a crash would leave what is published now at the broker: %s", error)


def _names_of(entry: _Entry) -> set[str]:
    return {entry.packed.parcel.root.hex(), *entry.packed.names}


def _piece(entry: _Entry, name: str) -> bytes:
    """The bytes of a piece; none when its file is gone."""
    if name not in entry.packed.names:
        return entry.packed.index
    begin = entry.packed.names.index(name) * PIECE_BYTES
    if isinstance(entry.source, bytes):
        return entry.source[begin : begin + PIECE_BYTES]
    try:
        with entry.source.open("rb") as file:
            file.seek(begin)
            return file.read(PIECE_BYTES)
    except OSError as error:
        log.warning("a piece of %s is not published: %s", entry.source.name, error)
        return b""


def _pieces_of(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while piece := file.read(PIECE_BYTES):
            yield piece
