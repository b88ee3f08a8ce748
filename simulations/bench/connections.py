"""`headframe bench connections`: a fleet on one machine, with one mosquitto and one centre, all of it live.

The centre is `headframe cloud run` as its own process with an external broker, as in production. The gateways are light
(`simulations.load`), on the wire they are real: a connection, a will, a keep-alive and a state each ten seconds for
each, and samples with real JPEGs until every one has its receipt. Measured: how much the centre grows from no gateway
to all (anonymous memory, what it has allocated: shared libraries are not the fleet's), how old the oldest state in the
store ever is, and that each sample is stored once.
"""

import asyncio
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import psutil
from rich.console import Console

from common.mqtt import Broker
from simulations.load.check import Freshness, check_store, read_freshness
from simulations.load.run import Load, LoadPlan, run_load
from simulations.mosquitto import raise_open_files, running_mosquitto
from simulations.processes import Centre

PLANS: Final = {
    True: LoadPlan(gateways=1_000, samples=3_000, samples_per_s=300.0, connects_per_s=1000.0, drain_s=15.0),
    False: LoadPlan(gateways=12_000, samples=60_000, samples_per_s=200.0, connects_per_s=500.0, drain_s=300.0),
}
"""By `quick`."""
WARM: Final = LoadPlan(gateways=4, samples=80, samples_per_s=80.0, prefix="warm")
"""Before the first measurement: what a centre takes that has ever stored a sample is not the fleet's."""
SETTLE_S: Final = 2.0
LOOK_S: Final = 3.0

console = Console(stderr=True)


def bench_connections(*, quick: bool) -> dict[str, Any]:
    """Gateways connected, the centre's KB for each, and samples lost.

    Raises:
        EnvironmentFault: mosquitto is missing, or the limit of open files is too low.
    """
    plan = PLANS[quick]
    raise_open_files(plan.gateways)
    with (
        tempfile.TemporaryDirectory(prefix="headframe-connections-") as name,
        console.status("connections: mosquitto and the centre") as status,
        running_mosquitto(Path(name) / "mosquitto") as server,
    ):
        port = server.broker.port
        centre = Centre(Path(name) / "centre", {"broker": {"embedded": False, "port": port}, "log_level": "WARNING"})
        centre.start()
        try:
            measure = Measure(centre, server.pid or 0, plan, lambda text: status.update(f"connections: {text}"))
            return asyncio.run(measure.run(server.broker))
        finally:
            centre.managed.stop()


class Measure:
    """One run."""

    def __init__(self, centre: Centre, broker_pid: int, plan: LoadPlan, note: Callable[[str], None]) -> None:
        self._plan, self._note = plan, note
        self._database = centre.folder / "data" / "headframe.db"
        self._centre, self._broker = psutil.Process(centre.where["pid"]), psutil.Process(broker_pid)
        self._looks: list[Freshness] = []

    async def run(self, broker: Broker) -> dict[str, Any]:
        """From no gateway to the last receipt."""
        plan = self._plan
        await run_load(WARM, broker)
        await asyncio.sleep(SETTLE_S)
        bare_kb, bare_broker_kb = self._sizes()
        async with Load(plan, broker) as load:
            began_s = time.monotonic()
            self._note(f"connecting {plan.gateways} gateways")
            await load.up()
            connect_s = time.monotonic() - began_s
            self._note("all are connected; their states come in")
            await asyncio.sleep(plan.heartbeat_s + SETTLE_S)
            idle = await self._look()
            idle_kb, idle_broker_kb = self._sizes()
            cpu_s, began_s = self._cpu_s(), time.monotonic()
            await self._watched(load.feed(self._note))
            await self._watched(load.drain(self._note))
            loaded_s = time.monotonic() - began_s
            cpu_s = self._cpu_s() - cpu_s
            await self._look()
            loaded_kb, _ = self._sizes()
            figures = load.figures()
        return {
            **figures,
            **check_store(self._database, load.ledger),
            "kb_per_gateway": round((idle_kb - bare_kb) / plan.gateways, 2),
            "kb_per_gateway_loaded": round((loaded_kb - bare_kb) / plan.gateways, 2),
            "kb_per_gateway_broker": round((idle_broker_kb - bare_broker_kb) / plan.gateways, 2),
            "centre_mb": round(loaded_kb / 1024, 1),
            "fresh": min(look.fresh for look in self._looks),
            "fresh_idle": idle.fresh,
            "state_age_s_max": max(look.age_s_max for look in self._looks),
            "connect_s": round(connect_s, 1),
            "samples_per_s": round(len(load.ledger) / loaded_s, 1),
            "centre_cpu": round(cpu_s / loaded_s, 2),
        }

    async def _watched(self, work: Awaitable[None]) -> None:
        """Look at the states of the fleet now and then while the work goes on."""
        task = asyncio.ensure_future(work)
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_S)
            await self._look()
        await task

    async def _look(self) -> Freshness:
        found = await asyncio.to_thread(read_freshness, self._database, self._plan.prefix)
        self._looks.append(found)
        return found

    def _sizes(self) -> tuple[float, float]:
        """Anonymous memory of centre and broker, KB."""
        return _anonymous_kb(self._centre.pid), _anonymous_kb(self._broker.pid)

    def _cpu_s(self) -> float:
        times = self._centre.cpu_times()
        return float(times.user + times.system)


def _anonymous_kb(process: int) -> float:
    """What a process has allocated and holds in memory (proc(5), RssAnon). The proportional set size would shrink
    whenever somebody else on the machine starts and shares a library."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return float(next(line.split()[1] for line in lines if line.startswith("RssAnon")))
