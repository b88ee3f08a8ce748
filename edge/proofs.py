"""What the centre wants here, put together: a small message for this gateway, and a proof that is the same for all.

Decides where the proof (manifest and metadata) comes from and when to do without: a gateway to which nothing comes that
is published for all says so in its state, and is told everything by itself, as one that knows no parcels. Decides
nothing about trust: the installer verifies all of it.
"""

import logging
import random
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

import msgspec

from common import codec
from common.clock import Clock
from common.compression import decompress
from common.errors import PeerError, WireError
from common.messages import Desired, Fetch, LayerPart, Shelved
from common.trust import BUNDLE_BYTES_MAX, MANIFEST_BYTES_MAX
from edge.intake import Intake

log = logging.getLogger(__name__)

KNOWN_MAX: Final = 2
"""Proofs kept in memory: the centre says the same again until it is reported."""
PROOF_BYTES_MAX: Final = 2 * MANIFEST_BYTES_MAX + 2 * BUNDLE_BYTES_MAX
BACK_S: Final = 3600.0
"""How long to do without what is published for all, when it did not come; doubled each time, up to `BACK_S_MAX`."""
BACK_S_MAX: Final = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class _Awaited:
    """A message whose proof is on its way."""

    desired: Desired
    root: str
    intake: Intake


class Proofs:
    """Between the link and the installer. Any thread may call it.

    Args:
        request: asks the centre; False when the link is down.
        tell: takes what is whole.
        running: the release that runs here.
    """

    def __init__(
        self,
        clock: Clock,
        request: Callable[[Fetch], bool],
        tell: Callable[[Desired], None],
        running: Callable[[], str],
        rng: random.Random | None = None,
    ) -> None:
        self._clock, self._request, self._tell, self._running = clock, request, tell, running
        self._rng = rng or random.Random()
        self._lock = threading.RLock()
        self._awaited: _Awaited | None = None
        self._known: dict[str, Desired] = {}
        self._data = b""
        self._back_at_s, self._back_s = float("-inf"), BACK_S

    @property
    def shared(self) -> bool:
        """Whether this gateway takes what is published for all: part of its state."""
        return self._clock.monotonic_s() >= self._back_at_s

    def on_desired(self, desired: Desired) -> None:
        """Take what the centre wants here; with a proof elsewhere it is told on when that has come."""
        with self._lock:
            awaited, proof = self._awaited, desired.proof
            if awaited and proof == awaited.desired.proof:  # said again, perhaps with another assignment
                self._awaited = replace(awaited, desired=desired)
                return
            self._awaited = None
            whole = desired if proof is None else self._join(desired, proof.root.hex())
            if whole is None:
                self._await(desired)
        if whole is not None:
            self._tell(whole)

    def on_piece(self, name: str, data: bytes) -> None:
        """Take a piece; one that is not needed is ignored."""
        with self._lock:
            awaited = self._awaited
            if awaited is None:
                return
            try:
                self._data += awaited.intake.take(name, data, self._clock.monotonic_s())
                if not awaited.intake.unpacking.done:
                    return
                self._known[awaited.root] = _open(self._data)
            except PeerError as error:
                self._give_up(str(error))
                return
            while len(self._known) > KNOWN_MAX:
                self._known.pop(next(iter(self._known)))
            self._awaited, self._data, self._back_s = None, b"", BACK_S
            whole = self._join(awaited.desired, awaited.root)
        if whole is not None:
            self._tell(whole)

    def on_shelved(self, shelved: Shelved) -> None:
        """The centre says that a proof lies there, or how long that may take."""
        with self._lock:
            if self._awaited and self._awaited.root == shelved.layer:
                self._awaited.intake.on_answer(self._clock.monotonic_s(), shelved.wait_s)

    def on_layer(self, part: LayerPart) -> None:
        """The centre says that it does not have a proof any more: it has another by now, and tells it."""
        with self._lock:
            if self._awaited and self._awaited.root == part.layer:
                self._awaited = None

    def pieces(self) -> frozenset[str]:
        """Pieces that are needed now."""
        with self._lock:
            return self._awaited.intake.wanted(self._clock.monotonic_s()) if self._awaited else frozenset()

    def step(self) -> None:
        """Say that nothing comes, or give up. Called about once a second."""
        now_s = self._clock.monotonic_s()
        with self._lock:
            awaited = self._awaited
            if awaited is None:
                return
            if awaited.intake.is_hopeless(now_s):
                self._give_up("nothing comes")
            elif awaited.intake.is_silent(now_s):
                offset = awaited.intake.unpacking.offset
                self._request(Fetch(layer=awaited.root, offset=offset, length=1, shared=True, silent=True))

    def _await(self, desired: Desired) -> None:
        if desired.proof is None or desired.proof.total_bytes > PROOF_BYTES_MAX:
            self._give_up("a proof over every bound")
            return
        self._data = b""
        try:
            intake = Intake(desired.proof, self._clock.monotonic_s(), 0.0, 0.0, self._rng)
        except WireError as error:
            self._give_up(str(error))
            return
        self._awaited = _Awaited(desired, desired.proof.root.hex(), intake)

    def _join(self, desired: Desired, root: str) -> Desired | None:
        proof = self._known.get(root)
        return msgspec.structs.replace(proof, assignment=desired.assignment) if proof else None

    def _give_up(self, why: str) -> None:
        """What runs already needs no proof; for anything else the centre is asked to tell it here alone."""
        awaited, self._awaited, self._data = self._awaited, None, b""
        if awaited and awaited.desired.release_id == self._running():
            log.info("what proves %s once more is not taken: %s", awaited.desired.release_id, why)
            return
        log.warning(
            "told by itself for %.0f s, since what is published for all does not come here: %s", self._back_s, why
        )
        self._back_at_s = self._clock.monotonic_s() + self._back_s
        self._back_s = min(2 * self._back_s, BACK_S_MAX)


def _open(data: bytes) -> Desired:
    """A proof: a `Desired` without an assignment, compressed.

    Raises:
        PeerError: it is none.
    """
    found = codec.decode(decompress(data, PROOF_BYTES_MAX))
    if not isinstance(found, Desired) or found.proof is not None:
        raise WireError("a proof holds something else")
    return found
