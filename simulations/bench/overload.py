"""`headframe bench overload`: a centre that is ten times too slow for what its gateways send.

Real processes: a mosquitto, a centre whose store takes less than a tenth of what is offered, four agents that are fed
with made pictures (`simulations.chaos.feeder`). While it lasts the spools must hold what the centre cannot take, and no
process may grow; then the centre is fast again and must catch up. At the end the ledgers are compared with the store.
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from common.errors import EnvironmentFault
from common.files import write_atomically
from simulations.chaos.boxes import Boxes, make_fed_gateway
from simulations.chaos.check import judge
from simulations.chaos.watch import Watch
from simulations.load.check import read_stored
from simulations.mosquitto import Mosquitto
from simulations.processes import START_S, Centre, free_port, wait_for

SECONDS: Final = {True: 12.0, False: 180.0}
"""Of overload, by `quick`."""
GATEWAYS: Final = 4
PER_S: Final = 25.0
"""Samples that each gateway is fed in a second, about as many as its disk can make durable with the others beside."""
TAKES_PER_S: Final = 6.0
"""Of all of them together, by the centre."""
DRAIN_S: Final = 300.0
LOOK_S: Final = 0.2

console = Console(stderr=True)


def bench_overload(*, quick: bool) -> dict[str, Any]:
    """Samples lost, and by how much each process has grown while the spools held what the centre could not take.

    Raises:
        EnvironmentFault: mosquitto is not installed, or something does not start.
    """
    with tempfile.TemporaryDirectory(prefix="headframe-overload-") as name, console.status("overload") as status:
        run = Overload(Path(name), SECONDS[quick])
        try:
            status.update("overload: starting broker, centre and gateways")
            run.start()
            status.update(f"overload: {SECONDS[quick]:.0f} s with a centre that is too slow")
            during = run.endure()
            status.update("overload: the centre is fast again; waiting for the spools to be empty")
            drained_s = run.catch_up()
            return {**during, "drained_s": drained_s, **run.judge()}
        finally:
            run.stop()


class Overload:
    """One run."""

    def __init__(self, folder: Path, seconds: float) -> None:
        self._seconds = seconds
        self._pace = folder / "pace"
        server = Mosquitto(folder / "broker", persistent=False)
        port = server.broker.port
        settings = {
            "broker": {"embedded": False, "port": port},
            "console": {"port": free_port()},
            "ingest": {"batch": 4},  # else a slow commit of many hides the pace
        }
        centre = Centre(folder / "centre", settings)
        names = [f"gw-{number}" for number in range(1, GATEWAYS + 1)]
        gateways = [make_fed_gateway(folder / name, name, port, per_s=PER_S) for name in names]
        self._boxes = Boxes(server, centre, gateways)
        self._boxes.centre.managed.module = ("simulations.chaos.slowed", str(self._pace), "simulations")
        self._database = centre.folder / "data" / "headframe.db"
        self._watch = Watch(self._boxes)

    def start(self) -> None:
        """Everything runs, and the centre is too slow from the first sample on."""
        write_atomically(self._pace, str(1 / TAKES_PER_S).encode())
        self._boxes.server.start()
        self._boxes.centre.start()
        for gateway in self._boxes.gateways.values():
            self._boxes.begin(gateway)
        for gateway in self._boxes.gateways.values():
            wait_for(lambda gateway=gateway: gateway.state() is not None, START_S, gateway.name, gateway.managed)  # type: ignore[misc]
        self._watch.start()

    def endure(self) -> dict[str, Any]:
        """The overload, and what it does to rates and memory."""
        time.sleep(self._seconds / 5)  # windows and queues fill
        began_s, accepted, stored = time.monotonic(), self._accepted(), len(read_stored(self._database).ids)
        time.sleep(self._seconds * 4 / 5)
        ended_s = time.monotonic()
        offered_per_s = (self._accepted() - accepted) / (ended_s - began_s)
        taken_per_s = (len(read_stored(self._database).ids) - stored) / (ended_s - began_s)
        growth = {name: self._growth_mb(name, began_s, ended_s) for name in self._watch.memory}
        return {
            "offered_per_s": offered_per_s,
            "taken_per_s": taken_per_s,
            "times_too_slow": offered_per_s / taken_per_s if taken_per_s else None,
            "spooled_most": max(waiting for _, _, waiting in self._watch.growth),
            "centre_mb_growth": growth["centre"],
            "broker_mb_growth": growth["broker"],
            "edge_mb_growth": max(mb for name, mb in growth.items() if name.startswith("gw")),
            "centre_mb_most": self._watch.most_mb["centre"],
        }

    def catch_up(self) -> float:
        """How long until all spools are empty.

        Raises:
            EnvironmentFault: they are not in time, or a process has died.
        """
        for gateway in self._boxes.gateways.values():
            self._boxes.blind(gateway)
        write_atomically(self._pace, b"0")
        began_s = time.monotonic()
        while any((gateway.state() or {"spool_rows": 1})["spool_rows"] for gateway in self._boxes.gateways.values()):
            if time.monotonic() - began_s > DRAIN_S:
                raise EnvironmentFault(f"the spools are not empty after {DRAIN_S:g} s", "Is the machine busy?")
            time.sleep(LOOK_S)
        return time.monotonic() - began_s

    def judge(self) -> dict[str, Any]:
        """End everything and compare the ledgers with the store."""
        self.stop()
        verdict = judge(list(self._boxes.gateways.values()), self._database)
        names = ("accepted", "stored", "lost", "duplicates", "evicted", "refused", "waiting")
        return {name: getattr(verdict, name) for name in names}

    def stop(self) -> None:
        """End all processes; may be called again."""
        self._watch.stop()
        self._boxes.stop()

    def _accepted(self) -> int:
        return sum(int((gateway.state() or {"accepted": 0})["accepted"]) for gateway in self._boxes.gateways.values())

    def _growth_mb(self, name: str, began_s: float, ended_s: float) -> float:
        """Median size in the last third of the overload over that in its first."""
        third_s = (ended_s - began_s) / 3
        first = [mb for at_s, mb in self._watch.memory[name] if began_s <= at_s < began_s + third_s]
        last = [mb for at_s, mb in self._watch.memory[name] if ended_s - third_s <= at_s <= ended_s]
        return statistics.median(last) - statistics.median(first)
