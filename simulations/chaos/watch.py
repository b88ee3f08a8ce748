"""Watches the machines of a run from a thread of its own: what gateways say of themselves, and what processes take."""

import threading
import time
from collections import Counter
from typing import Any, Final

import psutil

from simulations.chaos.boxes import Boxes

EVERY_S: Final = 0.5


class Watch:
    """`start`, ask, `stop`. Asking never waits for a gateway that does not answer."""

    def __init__(self, boxes: Boxes) -> None:
        self._boxes = boxes
        self._states: dict[str, tuple[float, dict[str, Any]]] = {}
        self.growth: list[tuple[float, int, int]] = []
        """(at, accepted, waiting) over all gateways, as they last said; `at` is on the monotonic clock."""
        self.memory: dict[str, list[tuple[float, float]]] = {}
        """MB of each process."""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """End."""
        self._stopping.set()
        self._thread.join(10)

    def said(self, gateway: str, since_s: float) -> dict[str, Any] | None:
        """What a gateway has said after `since_s`, or None."""
        at_s, state = self._states.get(gateway, (float("-inf"), None))
        return state if at_s > since_s else None

    @property
    def most_mb(self) -> dict[str, int]:
        """The largest that each process was."""
        return {name: round(max(mb for _, mb in rows)) for name, rows in self.memory.items()}

    def _run(self) -> None:
        while not self._stopping.wait(EVERY_S):
            for name, gateway in list(self._boxes.gateways.items()):
                asked_s = time.monotonic()
                if gateway.managed.alive and (state := gateway.state()):
                    self._states[name] = asked_s, state
            self._count()
            self._weigh()

    def _count(self) -> None:
        totals = Counter[str]()
        for _, state in self._states.values():
            totals += Counter({name: int(state[name]) for name in ("accepted", "spool_rows")})
        self.growth.append((time.monotonic(), totals["accepted"], totals["spool_rows"]))

    def _weigh(self) -> None:
        pids = {name: gateway.pid for name, gateway in self._boxes.gateways.items()}
        for name, pid in {**pids, "centre": self._boxes.centre_pid, "broker": self._boxes.server.pid}.items():
            if pid is None:
                continue
            try:
                mb = psutil.Process(pid).memory_info().rss / 1e6
            except psutil.Error:
                continue
            self.memory.setdefault(name, []).append((time.monotonic(), mb))
