"""Lookouts in processes of their own: one per core, each with its cameras and its own session of the running release.

The parent keeps what must be one: spool, uplink, installer, learner. A chosen sample crosses a pipe one at a time and
the worker's look loop waits until the parent has it in the spool: nothing chosen is lost with the parent, and nothing
queues up. A worker that dies is started anew with back-off, and its cameras are reported as failed until then.
`Workers` has the face of one `Lookout`.
"""

import contextlib
import logging
import multiprocessing
import signal
import threading
import time
from collections import Counter
from concurrent.futures import Future
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Final

import msgspec
from pydantic import TypeAdapter

from common import codec
from common.clock import Clock, SystemClock
from common.errors import HeadframeError
from common.logs import configure_logs
from common.manifest import Manifest
from common.messages import CameraState, Event, Sample
from edge.events import Phase
from edge.lookout import Accept, Lookout, OnEvent
from edge.perception import Model, load_model
from edge.providers import COMPILED, Compute
from edge.roster import Roster, deal_again, share_out
from edge.settings import CameraSettings, EdgeSettings
from edge.threads import one_thread_each

log = logging.getLogger(__name__)

REPORT_S: Final = 0.5
SILENT_S: Final = 60.0
"""A worker that has not reported for so long hangs: it is ended and started anew."""
BACK_OFF_S: Final = (1.0, 60.0)
CALM_S: Final = 60.0
"""A worker that has lived for so long begins again with the shortest back-off."""


class Load(msgspec.Struct, tag="load", frozen=True):
    """To a worker: run this release."""

    release_id: str
    manifest: Manifest
    backbone: str = ""
    """The layer that the parent has chosen among the variants: all workers run the same."""


class Watch(msgspec.Struct, tag="watch", frozen=True):
    """To a worker: watch these cameras from now on."""

    roster: bytes
    """JSON of a `Roster`: its cameras are pydantic's, not msgspec's."""


class Durable(msgspec.Struct, tag="durable", frozen=True):
    """To a worker: the sample it sent is in the spool."""


class Stop(msgspec.Struct, tag="stop", frozen=True):
    """To a worker: end, and judge what is still held."""


class Show(msgspec.Struct, tag="show", frozen=True):
    """To a worker: somebody wants to see what was looked at last of a camera."""

    camera_id: str


class Shown(msgspec.Struct, frozen=True):
    """From a worker, in answer: a JPEG, empty when there is none."""

    camera_id: str
    jpeg: bytes


class Report(msgspec.Struct, tag="report", frozen=True):
    """From a worker, twice a second."""

    release_id: str
    looks_by_release: dict[str, int]
    cameras: tuple[CameraState, ...]
    ended: bool
    pictures_lost: int


Order = Load | Watch | Durable | Stop | Show
_roster = TypeAdapter(Roster)
_order = msgspec.msgpack.Decoder(Order)
_shown = msgspec.msgpack.Decoder(Shown)
_report = msgspec.msgpack.Decoder(Report)
_encode = msgspec.msgpack.encode
SAMPLE, REPORT, EVENT, PICTURE = b"s", b"r", b"e", b"p"
"""First byte of what a worker sends: a sample as on the wire, a report, an event as on the wire, or a `Shown`."""
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
        """Reported state of each camera."""
        return tuple(state for worker in self._workers for state in worker.states)

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

    def hand_over(self, model: Model) -> None:
        """A release to run, to every worker and to those that are started later."""
        self._model = model
        for worker in self._workers:
            worker.load(model)

    def watch(self, roster: Roster) -> None:
        """From now on these cameras, as `Lookout.watch`: who was in a worker stays there; new ones go where there are
        fewest. The number of processes stays."""
        rows = deal_again([worker.cameras for worker in self._workers], roster.cameras)
        for worker, cameras in zip(self._workers, rows, strict=True):
            worker.watch(roster.part(cameras, len(rows)))

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

    def load(self, model: Model) -> None:
        self._order = Load(model.release_id, model.manifest, model.backbone.hash)
        self._send(self._order)

    def watch(self, roster: Roster) -> None:
        self._roster = roster
        self._send(self._watch())

    def _watch(self) -> Watch:
        return Watch(_roster.dump_json(self._roster))

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
                self._pipe.send_bytes(_encode(order))
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
            self.looks_before.update(self.report.looks_by_release)
            self.report = msgspec.structs.replace(self.report, looks_by_release={}, release_id="", ended=False)
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
                self.report, self._fault = _report.decode(data[1:]), ""
                continue
            if data[:1] == PICTURE:
                shown = _shown.decode(data[1:])
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


def work(pipe: Connection, settings: EdgeSettings, layers: Path) -> None:
    """The life of a worker process; ends when told to, or with its parent, whose pipe then breaks."""
    for number in (
        signal.SIGTERM,
        signal.SIGINT,
        signal.SIGHUP,
    ):  # a service manager signals the whole group; the parent decides
        signal.signal(number, signal.SIG_IGN)
    configure_logs(settings.log_level)
    with one_thread_each():
        _Inside(pipe, settings, layers).run()


class _Inside:
    """What runs in the worker: a lookout, and this thread that talks to the parent. The first order names cameras."""

    def __init__(self, pipe: Connection, settings: EdgeSettings, layers: Path) -> None:
        self._pipe, self._settings, self._layers = pipe, settings, layers
        self._compute = Compute(settings.compute.provider, settings.data_dir / COMPILED)
        self._sending = threading.Lock()
        self._durable = threading.Event()
        self._gone = threading.Event()
        self._lookout = Lookout(settings, (), SystemClock(), self._accept, on_event=self._tell)
        self._told = threading.Event()
        """Which cameras to watch: before that nothing is reported, or it would seem that all have ended."""

    def run(self) -> None:
        """Until told to stop, the parent is gone, or the look loop has died (then the process ends with an error)."""
        self._lookout.start()
        listener = threading.Thread(target=self._listen, name="orders", daemon=True)
        listener.start()
        try:
            while not self._gone.wait(REPORT_S):
                if self._told.is_set():
                    self._report()
                if not self._lookout.alive:
                    raise RuntimeError("the look loop has died; see the log above")
            stopper = threading.Thread(target=self._lookout.stop, name="stop", daemon=True)
            stopper.start()
            stopper.join(10)
            self._report()
        except OSError:  # the parent is gone
            self._gone.set()

    def _listen(self) -> None:
        while True:
            try:
                order = _order.decode(self._pipe.recv_bytes(codec.PAYLOAD_BYTES_MAX))
            except (EOFError, OSError):
                self._gone.set()
                self._durable.set()
                return
            match order:
                case Load():
                    self._load(order)
                case Watch():
                    self._lookout.watch(_roster.validate_json(order.roster))
                    self._told.set()
                case Durable():
                    self._durable.set()
                case Stop():
                    self._gone.set()
                case Show():
                    self._show(order.camera_id)

    def _load(self, order: Load) -> None:
        """The installer has verified and tried the release already, so that a failure here is the environment's."""
        running = self._lookout.model
        try:
            model = load_model(
                order.release_id,
                order.manifest,
                lambda name: self._layers / name,
                self._settings.site_id,
                running.backbone if running else None,
                opener=self._compute.open,
                variant=order.backbone,
            )
        except HeadframeError as error:
            log.error("a worker cannot load release %s: %s", order.release_id, error)
            return
        self._lookout.hand_over(model)

    def _accept(self, sample: Sample) -> None:
        """Send a sample and wait until the parent has made it durable."""
        self._durable.clear()
        with self._sending:
            self._pipe.send_bytes(SAMPLE + codec.encode(sample))
        self._durable.wait()

    def _tell(self, event: Event) -> None:
        with self._sending:
            self._pipe.send_bytes(EVENT + codec.encode(event))

    def _show(self, camera_id: str) -> None:
        jpeg = self._lookout.last_look(camera_id) or b""
        with self._sending, contextlib.suppress(OSError):  # the parent is gone: the next receipt of an order sees it
            self._pipe.send_bytes(PICTURE + _encode(Shown(camera_id, jpeg)))

    def _report(self) -> None:
        model = self._lookout.model
        report = Report(
            model.release_id if model else "",
            dict(self._lookout.looks_by_release),
            self._lookout.states,
            self._lookout.ended,
            self._lookout.pictures_lost,
        )
        with self._sending:
            self._pipe.send_bytes(REPORT + _encode(report))
