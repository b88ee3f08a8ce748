"""How far each gateway's spool is, as it says with every heartbeat: in memory, written to the store in batches.

Decides what is news and who went back; the report of what is missing is `cloud.store.delivery`'s, from the store. As
with the states (`cloud.reported`), a commit for each heartbeat of a fleet would take all of the centre's time, and what
a crash takes is told again.
"""

import logging
import threading
from collections.abc import Sequence

import msgspec

from cloud.store import Store
from cloud.store.delivery import SpoolLife, check_number
from common.errors import EnvironmentFault, WireError
from common.messages import SpoolEpoch

log = logging.getLogger(__name__)

EPOCHS_MAX = 64
"""Of one gateway; one that invents more than this loses its oldest, and is seen to."""
FLUSH_MAX = 2_000
"""Rows of one transaction, so that ingest does not wait long for the database."""


class Epochs:
    """Any thread may call it."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._lives: dict[str, dict[str, SpoolLife]] = {}
        for life in store.spool_lives():
            self._lives.setdefault(life.gateway_id, {})[life.epoch] = life
        self._unwritten: dict[tuple[str, str], None] = {}
        self._lock = threading.Lock()

    def take(self, gateway_id: str, epochs: Sequence[SpoolEpoch], at_ns: int) -> list[str]:
        """Remember what a gateway says of its spool; returns the epochs of which it was further before.

        Raises:
            WireError: a number that no spool gives.
        """
        for said in epochs:
            check_number(said.epoch, said.head, least=0)
            if not 0 < said.tail <= said.head + 1 or not 0 <= said.waiting <= said.head:
                raise WireError(f"epoch {said.epoch} of {gateway_id} contradicts itself")
        with self._lock:
            return [said.epoch for said in epochs if self._take(gateway_id, said, at_ns)]

    def _take(self, gateway_id: str, said: SpoolEpoch, at_ns: int) -> bool:
        """One epoch; whether it went back."""
        lives = self._lives.setdefault(gateway_id, {})
        known = lives.get(said.epoch)
        went_back = known is not None and said.head < known.head
        life = SpoolLife(
            gateway_id=gateway_id,
            epoch=said.epoch,
            head=max(said.head, known.head if known else 0),
            tail=said.tail,
            waiting=said.waiting,
            went_back=(known.went_back if known else 0) + went_back,
            at_ns=at_ns,
        )
        lives[said.epoch] = life
        if known is None or msgspec.structs.replace(known, at_ns=at_ns) != life:
            self._unwritten[gateway_id, said.epoch] = None
        if len(lives) > EPOCHS_MAX:
            oldest = min(lives, key=lambda epoch: lives[epoch].at_ns)
            del lives[oldest]
            self._unwritten[gateway_id, oldest] = None
        return went_back

    def flush(self) -> None:
        """Write what is new. When the disk fails it is kept and written with the next call."""
        while True:
            with self._lock:
                names = list(self._unwritten)[:FLUSH_MAX]
                found = {name: self._lives.get(name[0], {}).get(name[1]) for name in names}
                for name in names:
                    del self._unwritten[name]
            if not names:
                return
            try:
                self._store.put_spool_lives(
                    [life for life in found.values() if life], [name for name, life in found.items() if not life]
                )
            except EnvironmentFault as error:
                log.error("how far the spools are is not written: %s", error)
                with self._lock:
                    self._unwritten.update(dict.fromkeys(names))
                return
