"""Which gateway is told what, and when again: the release that it is to run, under its own signed assignment.

Decides who has news coming. A gateway that takes what is published for all gets a few hundred bytes and the hash of the
proof (manifest and metadata), which is the same for every gateway and is published once; any other gets all of it. Who
runs what it should is told again only when keys have changed or a day has passed, and never all in one second.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from cloud.registry import Registry
from cloud.reported import Reported
from cloud.rollout.service import Rollouts
from cloud.shelf import Shelf
from common.clock import Clock
from common.messages import Desired

AGAIN_S: Final = (10.0, 160.0)
"""Told again while it is not reported: first, then after twice as long, at most."""
TELLINGS_A_STEP: Final = 2000
"""The rest waits a second: 12,000 signed assignments take a core seconds, and receipts wait behind them."""

Send = Callable[[str, Desired], bool]
"""Publishes to a gateway, retained; False: the link is down."""


@dataclass(slots=True)
class _Told:
    """What a gateway was told last."""

    release: str
    epoch: int
    shared: bool
    at_s: float
    wait_s: float


class Telling:
    """`step` about once a second, `tell` when a gateway has reported."""

    def __init__(
        self,
        registry: Registry,
        rollouts: Rollouts,
        reported: Reported,
        shelf: Shelf,
        clock: Clock,
        send: Send,
    ) -> None:
        self._registry, self._rollouts, self._reported, self._shelf = registry, rollouts, reported, shelf
        self._clock, self._send = clock, send
        self._told: dict[str, _Told] = {}
        self._settled: dict[str, tuple[str, bool]] = {}
        """Gateways that run what they should: what they reported then. Nothing is due while that and `_generation`
        stay."""
        self._generation: tuple[object, ...] = ()

    def step(self, online: Iterable[str]) -> None:
        """Tell whoever has news coming."""
        self._look()
        left = TELLINGS_A_STEP
        for gateway_id in online:
            if gateway_id not in self._settled:
                left -= self._tell(gateway_id)
                if left <= 0:
                    return

    def tell(self, gateway_id: str) -> None:
        """It has reported: tell it what it does not know."""
        if self._settled.get(gateway_id) == self._reported.runs(gateway_id):
            return
        self._settled.pop(gateway_id, None)
        self._tell(gateway_id)

    def _look(self) -> None:
        """Whether anything has changed that many gateways follow from."""
        generation = (self._registry.epoch(), *self._rollouts.generation)
        if generation != self._generation:
            self._generation = generation
            self._settled.clear()

    def _tell(self, gateway_id: str) -> bool:
        wanted = self._rollouts.wanted(gateway_id)
        if wanted is None:
            return False
        reported = self._reported.runs(gateway_id)
        running, shared = reported
        if shared and self._shelf.carried is None:
            return False  # how to say it is known in a moment
        epoch, now_s = self._registry.epoch(), self._clock.monotonic_s()
        told = self._told.get(gateway_id)
        wait_s = AGAIN_S[0]
        if told and (told.release, told.epoch, told.shared) == (wanted, epoch, shared):
            if running == wanted:
                self._settled[gateway_id] = reported
                return False
            if now_s - told.at_s < told.wait_s:
                return False
            wait_s = min(2 * told.wait_s, AGAIN_S[1])
        desired = self._message(gateway_id, wanted, shared=shared)
        if desired is None or not self._send(gateway_id, desired):
            return False
        self._told[gateway_id] = _Told(wanted, epoch, shared, now_s, wait_s)
        return True

    def _message(self, gateway_id: str, release: str, *, shared: bool) -> Desired | None:
        if shared:
            proof = self._registry.proof(release)
            if proof is None:
                return None
            if self._shelf.lay_out(proof.packed, proof.data, first=True):
                return self._registry.pointer(gateway_id, release)
        return self._registry.desired(gateway_id, release)
