"""Runs a load: connects the gateways at a pace, keeps them reporting, feeds them samples, waits for every receipt."""

import asyncio
import heapq
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from common.errors import OperatorError
from common.mqtt import Broker
from simulations.lightclient import Crowd
from simulations.load.gateway import VirtualGateway
from simulations.load.pictures import Pictures

TICK_S: Final = 0.02
STORED_S: Final = 1.0
"""From a state's arrival to its place in the store."""
LATENCIES_MAX: Final = 200_000
GATEWAYS_MAX: Final = 25_000
"""One address of the loopback has about 28,000 ports for connections to one broker."""

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to load a centre with."""

    gateways: int = 1000
    samples: int = 3000
    bytes: int = 20_000
    samples_per_s: float = 200.0
    heartbeat_s: float = 10.0
    """As edge.toml has it by default."""
    resend_s: float = 20.0
    connects_per_s: float = 500.0
    drain_s: float = 120.0
    """How long to wait for the last receipts."""
    prefix: str = "load"
    seed: int = 1

    def check(self) -> None:
        """Raises:
        OperatorError: a number is out of bounds.
        """
        if not 1 <= self.gateways <= GATEWAYS_MAX or self.samples < 0 or self.samples_per_s <= 0:
            raise OperatorError(
                f"{self.gateways} gateways with {self.samples} samples at {self.samples_per_s:g}/s",
                f"At most {GATEWAYS_MAX} gateways from one machine, and a rate above zero.",
            )


class Load:
    """A fleet of virtual gateways on a broker. `run` it, or enter it phase by phase: `up`, `feed`, `drain`."""

    def __init__(self, plan: LoadPlan, broker: Broker) -> None:
        plan.check()
        self.plan = plan
        self.pictures = Pictures(plan.bytes, plan.seed)
        self.ledger: set[bytes] = set()
        """Every sample that a gateway has accepted."""
        self.latencies_s: list[float] = []
        self.gateways = [
            VirtualGateway(f"{plan.prefix}-{n:05d}", self.pictures, self._on_receipt, resend_s=plan.resend_s)
            for n in range(plan.gateways)
        ]
        self.crowd = Crowd(
            broker, [g.client for g in self.gateways], connects_per_s=plan.connects_per_s, seed=plan.seed
        )
        self.reports = 0
        self._busy: set[int] = set()
        """Gateways with something unreceipted."""
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> "Load":
        self._tasks = [asyncio.create_task(self.crowd.run()), asyncio.create_task(self._beat())]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _on_receipt(self, first_s: float) -> None:
        if len(self.latencies_s) < LATENCIES_MAX:
            self.latencies_s.append(time.monotonic() - first_s)

    async def up(self, timeout_s: float | None = None) -> None:
        """Until all are connected."""
        pace_s = self.plan.gateways / self.plan.connects_per_s
        await self.crowd.wait_up(timeout_s or 60 + 4 * pace_s)

    async def feed(self, note: Note = lambda _: None) -> None:
        """Give out the samples at their pace, to the gateways in turn."""
        began_s = time.monotonic()
        given = 0
        while given < self.plan.samples:
            due = min(self.plan.samples, int((time.monotonic() - began_s) * self.plan.samples_per_s) + 1)
            for number in range(given, due):
                place = number % len(self.gateways)
                self.ledger.add(self.gateways[place].accept(number))
                self._busy.add(place)
            given = due
            self._send()
            note(f"{given} samples given out, {self.receipted} receipted, {self.crowd.up} gateways up")
            await asyncio.sleep(TICK_S)

    async def drain(self, note: Note = lambda _: None) -> None:
        """Until every sample has its receipt, or `drain_s` has passed."""
        deadline_s = time.monotonic() + self.plan.drain_s
        while self._busy and time.monotonic() < deadline_s:
            self._send()
            note(f"{len(self.ledger)} samples given out, {self.receipted} receipted, {self.crowd.up} gateways up")
            await asyncio.sleep(TICK_S)

    @property
    def receipted(self) -> int:
        """Samples that the centre has committed."""
        return sum(gateway.receipted for gateway in self.gateways)

    def _send(self) -> None:
        now_s = time.monotonic()
        for place in list(self._busy):
            gateway = self.gateways[place]
            gateway.send(now_s)
            if not gateway.unreceipted:
                self._busy.discard(place)

    async def _beat(self) -> None:
        """Every gateway's heartbeat, spread over the period."""
        period_s = self.plan.heartbeat_s
        now_s = time.monotonic()
        due = [(now_s + period_s * n / len(self.gateways), n) for n in range(len(self.gateways))]
        while True:
            now_s = time.monotonic()
            while due[0][0] <= now_s:
                at_s, place = due[0]
                gateway = self.gateways[place]
                sent = gateway.client.up and gateway.report(time.time_ns())
                self.reports += sent
                heapq.heapreplace(due, (max(at_s + period_s, now_s) if sent else now_s + 0.5, place))
            await asyncio.sleep(TICK_S)

    def figures(self) -> dict[str, Any]:
        """What the gateways know."""
        latencies = np.array(self.latencies_s or [float("nan")]) * 1000
        return {
            "gateways": len(self.gateways),
            "connected": self.crowd.up,
            "accepted": len(self.ledger),
            "receipted": self.receipted,
            "refused": sum(g.refused for g in self.gateways),
            "waiting": sum(g.unreceipted for g in self.gateways),
            "resent": sum(g.resent for g in self.gateways),
            "reconnects": sum(max(0, g.client.connects - 1) for g in self.gateways),
            "states_sent": self.reports,
            "receipt_ms_p50": round(float(np.percentile(latencies, 50)), 1) if self.latencies_s else None,
            "receipt_ms_p99": round(float(np.percentile(latencies, 99)), 1) if self.latencies_s else None,
            "sample_bytes": round(self.pictures.bytes_mean),
        }


async def run_load(plan: LoadPlan, broker: Broker, note: Note = lambda _: None) -> tuple[dict[str, Any], set[bytes]]:
    """Connect, feed, drain; returns the figures and the ids of all samples that were accepted.

    Raises:
        EnvironmentFault: not all gateways can connect.
    """
    async with Load(plan, broker) as load:
        note(f"connecting {plan.gateways} gateways")
        await load.up()
        reported_s = time.monotonic() + plan.heartbeat_s + STORED_S
        await load.feed(note)
        await load.drain(note)
        await asyncio.sleep(reported_s - time.monotonic())  # every gateway has reported, however few the samples
        return load.figures(), load.ledger
