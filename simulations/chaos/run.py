"""Conducts a run: starts the machines, does to them what the plan says, mends everything, waits, and judges."""

import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from common.errors import OperatorError
from simulations.chaos.acts import TWIN, Acts
from simulations.chaos.boxes import Boxes, Gateway, make_fed_gateway
from simulations.chaos.check import Verdict, judge
from simulations.chaos.link import Links
from simulations.chaos.plan import Act, make_plan
from simulations.chaos.video import make_first_release, make_video_gateway
from simulations.chaos.watch import Watch
from simulations.mosquitto import Mosquitto
from simulations.processes import START_S, Centre, free_port, wait_for

SECONDS_MIN: Final = 10.0
VIDEO: Final = "gw-video"
VIDEO_FROM_S: Final = 120.0
RELEASE_S: Final = 120.0
"""A backbone of 14 MB crosses the link on a busy machine."""
TICK_S: Final = 0.05
PAUSE_S: Final = 1.0
"""A fed gateway that is told to pause may accept one more within this time."""
GATEWAYS: Final = 4
SMALL_SPOOL_BYTES: Final = 1_000_000
"""Of the last gateway: long silence must make it evict."""
DRAIN_S: Final = 180.0
MARKER: Final = ".headframe-chaos"

Note = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Span:
    """A fault as it was done, seconds since the beginning; a kill has no length."""

    began_s: float
    ended_s: float
    target: str
    name: str


@dataclass(frozen=True, slots=True)
class ChaosResult:
    """A run and its verdict."""

    verdict: Verdict
    seed: int
    seconds: float
    kills: int
    crashes: dict[str, int]
    faults: dict[str, int]
    """How often each fault was done, and each message lost, doubled or swapped."""
    full_disk_by: str
    """How disks were made full: tmpfs, or limit of file size where we may not mount."""
    drained_s: float | None
    """From the end of the faults until all spools were empty; None when they were not in time."""
    most_mb: dict[str, int]

    @property
    def holds(self) -> bool:
        """Nothing lost, nothing twice, nothing unknown, all spools empty."""
        verdict = self.verdict
        wrong = (verdict.lost, verdict.duplicates, verdict.unknown, verdict.waiting, verdict.refused)
        return not any(wrong) and self.drained_s is not None and verdict.accepted > 0

    def figures(self) -> dict[str, Any]:
        """For JSON."""
        return {
            **asdict(self.verdict),
            "kills": self.kills,
            "faults": self.faults,
            "full_disk_by": self.full_disk_by,
            "crashes": self.crashes,
            "seconds": round(self.seconds, 1),
            "seed": self.seed,
            "drained_s": self.drained_s,
            "centre_mb_most": self.most_mb.get("centre", 0),
            "edge_mb_most": max((mb for name, mb in self.most_mb.items() if name.startswith("gw")), default=0),
            "broker_mb_most": self.most_mb.get("broker", 0),
        }


class Chaos:
    """One run in a folder of its own.

    Args:
        seconds: of faults; set-up and draining come on top.
        per_s: samples per second of each fed gateway.
        video: add a gateway with a camera and a release; by default where the run is long enough for its start.
    """

    def __init__(
        self,
        out: Path,
        seconds: float,
        seed: int,
        per_s: float = 2.0,
        note: Note = lambda _: None,
        *,
        video: bool | None = None,
    ) -> None:
        if seconds < SECONDS_MIN:
            raise OperatorError(f"{seconds:g} s are too short for all faults", f"Give {SECONDS_MIN:g} s or more.")
        self._out, self._seconds, self._seed, self._per_s, self._note = out, seconds, seed, per_s, note
        self._video = seconds >= VIDEO_FROM_S if video is None else video
        _clear(out)
        self._links = Links(seed)
        self._boxes = self._build()
        self._acts = Acts(self._boxes, self._links, out)
        self.watch = Watch(self._boxes)
        self.spans: list[Span] = []
        self.began_s = 0.0
        """On the monotonic clock: when the faults begin."""

    def run(self) -> ChaosResult:
        """From nothing to the verdict; every process and disk is given back on the way out.

        Raises:
            EnvironmentFault: the broker or the centre does not start.
        """
        boxes = self._boxes
        try:
            self._start()
            self.began_s = time.monotonic()
            self._play(make_plan(self._seed, self._seconds, [gateway.name for gateway in self._singles()]))
            drained_s = self._settle()
            self.watch.stop()
            self._note("stopping all, and judging")
            boxes.stop()
            verdict = judge(list(boxes.gateways.values()), boxes.centre.folder / "data" / "headframe.db")
            return self._result(verdict, drained_s)
        finally:
            boxes.stop()
            self._links.stop()
            boxes.unmount()

    def _result(self, verdict: Verdict, drained_s: float | None) -> ChaosResult:
        done = Counter(span.name for span in self.spans) + self._links.counts
        return ChaosResult(
            verdict=verdict,
            seed=self._seed,
            seconds=self._seconds,
            kills=self._boxes.kills,
            crashes=dict(self._boxes.crashes),
            faults=dict(sorted(done.items())),
            full_disk_by=self._boxes.centre_disk.kind,
            drained_s=drained_s,
            most_mb=self.watch.most_mb,
        )

    def _build(self) -> Boxes:
        """The machines, not yet running; links and broker are there first, they give the ports."""
        self._links.start()
        server = Mosquitto(self._out / "broker", persistent=True)
        port = server.broker.port
        settings = {"broker": {"embedded": False, "port": port}, "console": {"port": free_port()}}
        centre = Centre(self._out / "centre", settings)
        gateways = []
        for number in range(1, GATEWAYS + 1):
            name = f"gw-{number}"
            small = SMALL_SPOOL_BYTES if number == GATEWAYS else 0
            link = self._links.add(name, port)
            gateways.append(make_fed_gateway(self._out / name, name, link, per_s=self._per_s, spool_bytes_max=small))
        link = self._links.add(TWIN, port)
        gateways.append(make_fed_gateway(self._out / TWIN, "gw-2", link, per_s=self._per_s, camera="belt-twin"))
        return Boxes(server, centre, gateways)

    def _start(self) -> None:
        boxes = self._boxes
        boxes.mount()
        if self._video:
            self._note("a first release, and a clip for the gateway that sees")
            key = make_first_release(boxes.centre)
            link = self._links.add(VIDEO, boxes.server.broker.port)
            boxes.gateways[VIDEO] = make_video_gateway(self._out / VIDEO, VIDEO, link, key)
            boxes.gateways[VIDEO].disk.mount()
        self._note("starting broker, centre and gateways")
        boxes.server.start()
        for gateway in self._singles():
            boxes.begin(gateway)
        boxes.centre_wanted = True
        boxes.centre.start()
        for gateway in self._singles():
            wait_for(lambda gateway=gateway: gateway.state() is not None, START_S, gateway.name, gateway.managed)  # type: ignore[misc]
        if self._video:
            self._note("waiting for the first release on the gateway that sees")
            eyes = boxes.gateways[VIDEO]
            wait_for(lambda: (eyes.state() or {}).get("release_id", "") != "", RELEASE_S, "its release", eyes.managed)
        self.watch.start()

    def _singles(self) -> list[Gateway]:
        """All gateways that are alone with their identity, or were it first."""
        return [gateway for name, gateway in self._boxes.gateways.items() if name != TWIN]

    def _play(self, plan: list[Act]) -> None:
        """Begin and end every act in its time, and keep the fallen coming back."""
        waiting, running = list(plan), list[Act]()
        while (now_s := time.monotonic() - self.began_s) < self._seconds or running:
            while waiting and waiting[0].at_s <= now_s:
                act = waiting.pop(0)
                self._acts.begin(act)
                self.spans.append(Span(now_s, max(now_s, act.at_s + act.seconds), act.target, act.name))
                if act.seconds:
                    running.append(act)
            for act in [act for act in running if act.at_s + act.seconds <= now_s]:
                running.remove(act)
                self._acts.end(act)
            self._tend()

    def _tend(self) -> None:
        self._boxes.supervise()
        if self.watch.growth:
            _, accepted, waiting = self.watch.growth[-1]
            passed_s = time.monotonic() - self.began_s
            self._note(f"{passed_s:.0f} s, {self._boxes.kills} kills, {accepted} accepted, {waiting} waiting")
        time.sleep(TICK_S)

    def _settle(self) -> float | None:
        """Mend everything, feed nothing more, wait until all spools are empty: the twin alone, after the others.

        Returns:
            How long it took; None when it took too long.
        """
        self._links.clear()
        self._boxes.mend()
        for gateway in self._boxes.gateways.values():
            self._boxes.blind(gateway)
        began_s = time.monotonic()
        drained = self._drain(self._singles())
        first, twin = self._boxes.gateways["gw-2"], self._boxes.gateways[TWIN]
        self._boxes.retire(first)
        self._boxes.begin(twin)
        drained = self._drain([twin]) and drained
        return round(time.monotonic() - began_s, 1) if drained else None

    def _drain(self, gateways: list[Gateway]) -> bool:
        began_s = time.monotonic()
        full = {gateway.name for gateway in gateways}
        while full:
            if time.monotonic() - began_s > DRAIN_S:
                return False
            self._tend()
            for name in list(full):
                state = self.watch.said(name, began_s + PAUSE_S)
                if state and state["spool_rows"] == 0:
                    full.remove(name)
        return True


def _clear(out: Path) -> None:
    """Empty the folder of an earlier run.

    Raises:
        OperatorError: the folder holds something else.
    """
    marker = out / MARKER
    if out.exists() and not marker.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise OperatorError(f"{out} is not empty and not of an earlier run", "Give another folder with --out.")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    marker.touch()
