"""Lookouts in processes of their own: one per core, each with its cameras and its own session of the running release.

The parent keeps what must be one: spool, uplink, installer, learner. A chosen sample crosses a pipe one at a time and
the worker's look loop waits until the parent has it in the spool: nothing chosen is lost with the parent, and nothing
queues up. A worker that dies is started anew with back-off, and its cameras are reported as failed until then.
`Workers` has the face of one `Lookout`.
"""

import logging
import multiprocessing
import threading
import time
from collections import Counter
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec

from common import codec
from common.clock import Clock
from common.messages import CameraState, Event, Sample
from edge.events import Phase
from edge.lookout import Accept, OnEvent
from edge.perception import Model
from edge.piping import (
    PICTURE,
    REPORT,
    Durable,
    Load,
    Order,
    Release,
    Report,
    Show,
    Stop,
    Watch,
    as_json,
    decode_report,
    decode_shown,
    encode,
)
from edge.roster import Roster, deal_again, share_out
from edge.settings import CameraSettings, EdgeSettings
from edge.tally import Observation, add_up
from edge.worker import work

log = logging.getLogger(__name__)

SILENT_S: Final = 60.0
"""A worker that has not reported for so long hangs: it is ended and started anew."""
BACK_OFF_S: Final = (1.0, 60.0)
CALM_S: Final = 60.0
"""A worker that has lived for so long begins again with the shortest back-off."""
SHOW_S: Final = 2.0
"""Somebody who wants to see a camera waits so long for its worker."""


class Workers:
    """Runs the cameras of a gateway in worker processes.

    Args:
        settings: of the gateway.
        roster: its cameras, and what they may take.
        clock: of the parent.
        accept: makes a sample durable; called by one thread per worker.
        layers: the folder of the releases' layers.
        count: how many processes, at most one per camera.
        on_event: is told every event, by one thread per worker.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        roster: Roster,
        clock: Clock,
        accept: Accept,
        layers: Path,
        count: int,
        on_event: OnEvent | None = None,
    ) -> None:
        self._model: Model | None = None
        self._running: Model | None = None
        self._orders = 0
        self._cameras = roster.cameras
        rows = share_out(roster.cameras, count)
        self._workers = [
            _Worker(number, settings, roster.part(cameras, len(rows)), clock, accept, layers, on_event)
            for number, cameras in enumerate(rows)
        ]

    @property
    def count(self) -> int:
        """Processes."""
        return len(self._workers)

    @property
    def model(self) -> Model | None:
        """What runs in all workers: the release before, while only some have swapped."""
        wanted = self._model
        if wanted is not None and all(worker.report.release_id == wanted.release_id for worker in self._workers):
            self._running = wanted
        return self._running

    @property
    def alive(self) -> bool:
        """False when a thread that looks after a worker has died; a dead worker itself is started anew."""
        return all(worker.alive for worker in self._workers)

    @property
    def ended(self) -> bool:
        """All cameras of all workers were played to their end and judged."""
        return all(worker.ended for worker in self._workers)

    @property
    def states(self) -> tuple[CameraState, ...]:
        """Reported state of each camera, in the order of the file."""
        states = {state.camera_id: state for worker in self._workers for state in worker.states}
        return tuple(states[camera.id] for camera in self._cameras if camera.id in states)

    @property
    def looks_by_release(self) -> Counter[str]:
        """How many frames each release has looked at."""
        total: Counter[str] = Counter()
        for worker in self._workers:
            total.update(worker.looks_before)
            total.update(worker.report.looks_by_release)
        return total

    @property
    def pictures_lost(self) -> int:
        """Chosen frames of which no picture could be made."""
        return sum(worker.report.pictures_lost for worker in self._workers)

    @property
    def pids(self) -> list[int]:
        """Process ids of the workers that live."""
        return [worker.pid for worker in self._workers if worker.pid]

    def last_look(self, camera_id: str) -> bytes | None:
        """A small JPEG of what was looked at last; None where there is nothing, or its worker does not answer."""
        worker = next((worker for worker in self._workers if worker.has(camera_id)), None)
        return worker.last_look(camera_id) if worker else None

    def start(self) -> None:
        """Start all processes; does not wait for them."""
        for worker in self._workers:
            worker.start()

    def hand_over(
        self, model: Model | None, beside: Model | None = None, *, on_trial: bool = False, rescue: bool = False
    ) -> None:
        """As `Lookout.hand_over`, to every worker and to those that are started later: each compares on its cameras."""
        self._model, self._orders = model, self._orders + 1
        if model is None:
            self._running = None
        order = Load(self._orders, Release.of(model), Release.of(beside), on_trial, rescue)
        for worker in self._workers:
            worker.load(order)

    def observe(self) -> Observation:
        """What all workers have counted, added up; what they say of an order before the last is left out."""
        return add_up(worker.observation for worker in self._workers)

    def watch(self, roster: Roster) -> None:
        """From now on these cameras, as `Lookout.watch`: who was in a worker stays there; new ones go where there are
        fewest. The number of processes stays."""
        rows = deal_again([worker.cameras for worker in self._workers], roster.cameras)
        for worker, cameras in zip(self._workers, rows, strict=True):
            worker.watch(roster.part(cameras, len(rows)))
        self._cameras = roster.cameras

    def stop(self, timeout_s: float = 10.0) -> None:
        """Ask all, then wait for all: what they still choose is accepted meanwhile."""
        for worker in self._workers:
            worker.ask_to_stop()
        deadline_s = time.monotonic() + timeout_s
        for worker in self._workers:
            worker.join(max(0.1, deadline_s - time.monotonic()))


class _Worker:
    """One process and the thread of the parent that listens to it."""

    def __init__(
        self,
        number: int,
        settings: EdgeSettings,
        roster: Roster,
        clock: Clock,
        accept: Accept,
        layers: Path,
        on_event: OnEvent | None,
    ) -> None:
        self._number, self._settings, self._roster = number, settings, roster
        self._clock, self._accept, self._layers = clock, accept, layers
        self._on_event = on_event
        self._open: dict[str, Event] = {}
        """Events of this worker's cameras that are open: a process that dies closes none by itself."""
        self._stopping = threading.Event()
        self._sending = threading.Lock()
        self._order: Load | None = None
        self._deaths = 0
        """Since the order."""
        self._pipe: Connection | None = None
        self._process: Any = None
        self._fault = ""
        self.looks_before: Counter[str] = Counter()
        """Of the processes that died."""
        self.report = self._blank()
        self._asked: dict[str, Future[bytes]] = {}
        """What somebody wants to see, by camera; who asks for the same meanwhile gets the same."""
        self._asking = threading.Lock()
        self._thread = threading.Thread(target=self._look_after, name=f"worker-{number}", daemon=True)

    def _blank(self) -> Report:
        return Report("", {}, (), False, 0)

    @property
    def cameras(self) -> tuple[CameraSettings, ...]:
        return self._roster.cameras

    @property
    def ended(self) -> bool:
        reported = {state.camera_id for state in self.report.cameras}
        return self.report.ended and all(camera.id in reported for camera in self.cameras)

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    @property
    def pid(self) -> int | None:
        process = self._process
        return process.pid if process is not None and process.is_alive() else None

    @property
    def states(self) -> tuple[CameraState, ...]:
        """As reported last; of a dead worker, why there is nothing."""
        reported = {state.camera_id: state for state in self.report.cameras}
        states = tuple(reported.get(c.id) or CameraState(camera_id=c.id, state="starting") for c in self.cameras)
        if not self._fault:
            return states
        return tuple(msgspec.structs.replace(c, state="failed", detail=self._fault, gear="") for c in states)

    def start(self) -> None:
        self._thread.start()

    @property
    def observation(self) -> Observation:
        """Of the last order; of one that is not carried out yet, what runs and what was counted before."""
        report, order = self.report, self._order
        seen = report.observation
        if order is None or report.order != order.number:
            seen = Observation(running=report.release_id, tallies=seen.tallies)
        return msgspec.structs.replace(seen, deaths=self._deaths)

    def load(self, order: Load) -> None:
        self._order, self._deaths = order, 0
        self._send(order)

    def watch(self, roster: Roster) -> None:
        self._roster = roster
        self._send(self._watch())

    def _watch(self) -> Watch:
        return Watch(as_json.dump_json(self._roster))

    def has(self, camera_id: str) -> bool:
        return any(camera.id == camera_id for camera in self.cameras)

    def last_look(self, camera_id: str) -> bytes | None:
        with self._asking:
            asked = self._asked.get(camera_id)
            if asked is None:
                asked = self._asked[camera_id] = Future()
                self._send(Show(camera_id))
        try:
            return asked.result(SHOW_S) or None
        except TimeoutError:
            with self._asking:
                self._asked.pop(camera_id, None)
            return None

    def ask_to_stop(self) -> None:
        self._stopping.set()
        self._send(Stop())

    def join(self, timeout_s: float) -> None:
        self._thread.join(timeout_s)
        if self._process is not None and self._process.is_alive():
            log.error("worker %d does not end and is killed", self._number)
            self._process.kill()
            self._process.join(1)

    def _send(self, order: Order) -> None:
        with self._sending:
            if self._pipe is None:
                return
            try:
                self._pipe.send_bytes(encode(order))
            except OSError:  # it has just died; `_look_after` sees it
                return

    def _look_after(self) -> None:
        delay_s = BACK_OFF_S[0]
        while not self._stopping.is_set():
            began_s = self._clock.monotonic_s()
            self._spawn()
            why = self._listen()
            with self._sending:
                if self._pipe:
                    self._pipe.close()
                self._pipe = None
            self._process.join(1)
            if self._process.is_alive():
                self._process.kill()
                self._process.join()
            if self._stopping.is_set():
                return
            self._deaths += 1
            self.looks_before.update(self.report.looks_by_release)
            self.report = msgspec.structs.replace(
                self.report, looks_by_release={}, release_id="", ended=False, order=0, observation=Observation()
            )
            self._fault = f"its worker process {why} (exit code {self._process.exitcode}); it is started again"
            log.error("worker %d %s: exit code %s", self._number, why, self._process.exitcode)
            for event in list(self._open.values()):
                self._tell(msgspec.structs.replace(event, phase=Phase.CLEAR.value, cause="its worker process died"))
            delay_s = BACK_OFF_S[0] if self._clock.monotonic_s() - began_s > CALM_S else min(2 * delay_s, BACK_OFF_S[1])
            self._stopping.wait(delay_s)

    def _spawn(self) -> None:
        context = multiprocessing.get_context("spawn")  # fork would copy threads' locks in whatever state they are
        ours, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs, self._settings, self._layers), daemon=True)
        self._process.start()
        theirs.close()
        with self._sending:
            self._pipe = ours
        self._send(self._watch())
        if self._order:
            self._send(self._order)
        if self._stopping.is_set():
            self._send(Stop())

    def _listen(self) -> str:
        """Take what the worker sends until it ends; returns how it ended."""
        pipe = self._pipe
        while pipe is not None:
            try:
                if not pipe.poll(SILENT_S):
                    self._process.kill()
                    return f"has been silent for {SILENT_S:.0f} s"
                data = pipe.recv_bytes(codec.PAYLOAD_BYTES_MAX)
            except (EOFError, OSError):
                return "has died"
            if data[:1] == REPORT:
                self.report, self._fault = decode_report(data[1:]), ""
                continue
            if data[:1] == PICTURE:
                shown = decode_shown(data[1:])
                with self._asking:
                    asked = self._asked.pop(shown.camera_id, None)
                if asked:
                    asked.set_result(shown.jpeg)
                continue
            message = codec.decode(data[1:])
            if isinstance(message, Event):
                self._tell(message)
            elif isinstance(message, Sample):
                self._accept(message)
                self._send(Durable())
        return "has no pipe"

    def _tell(self, event: Event) -> None:
        if event.phase == Phase.CLEAR.value:
            self._open.pop(event.event_id, None)
        else:
            self._open[event.event_id] = msgspec.structs.replace(event, jpeg=b"")
        if self._on_event:
            self._on_event(event)
