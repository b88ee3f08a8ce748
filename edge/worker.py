"""A worker process from within: one lookout, and the pipe to the agent.

Decides nothing: which cameras, which release and when to end are orders (`edge.piping`); what it chooses waits
until the agent has made it durable.
"""

import contextlib
import logging
import signal
import threading
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

import msgspec

from common import codec
from common.clock import SystemClock
from common.errors import HeadframeError
from common.logs import configure_logs
from common.messages import Event, Sample
from edge.lookout import Lookout
from edge.perception import Model, load_model
from edge.piping import (
    EVENT,
    PICTURE,
    REPORT,
    SAMPLE,
    Durable,
    Load,
    Release,
    Report,
    Show,
    Shown,
    Stop,
    Watch,
    as_json,
    decode_order,
    encode,
)
from edge.providers import COMPILED, Compute
from edge.settings import EdgeSettings
from edge.threads import one_thread_each

log = logging.getLogger(__name__)

REPORT_S: Final = 0.5


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
        self._models: dict[str, Model] = {}
        self._order, self._fault = 0, ""
        """Number of the last order that was carried out, and why its release could not be loaded."""
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
                order = decode_order(self._pipe.recv_bytes(codec.PAYLOAD_BYTES_MAX))
            except (EOFError, OSError):
                self._gone.set()
                self._durable.set()
                return
            match order:
                case Load():
                    self._load(order)
                case Watch():
                    self._lookout.watch(as_json.validate_json(order.roster))
                    self._told.set()
                case Durable():
                    self._durable.set()
                case Stop():
                    self._gone.set()
                case Show():
                    self._show(order.camera_id)

    def _load(self, order: Load) -> None:
        """The installer has verified and tried the release already, so that a failure here is the environment's."""
        try:
            runs, beside = self._model(order.runs), self._model(order.beside)
        except HeadframeError as error:
            log.error("a worker cannot load a release: %s", error)
            self._fault = f"a worker cannot load it: {error}"
        else:
            self._models = {model.release_id: model for model in (runs, beside) if model}
            self._lookout.hand_over(runs, beside, on_trial=order.on_trial, rescue=order.rescue)
            self._fault = ""
        self._order = order.number

    def _model(self, release: Release | None) -> Model | None:
        """Loaded, unless it is already."""
        if release is None or release.release_id in self._models:
            return self._models[release.release_id] if release else None
        running = self._lookout.model
        return load_model(
            release.release_id,
            release.manifest,
            lambda name: self._layers / name,
            self._settings.site_id,
            running.backbone if running else None,
            opener=self._compute.open,
            variant=release.backbone,
        )

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
            self._pipe.send_bytes(PICTURE + encode(Shown(camera_id, jpeg)))

    def _report(self) -> None:
        order, fault = self._order, self._fault
        observation = self._lookout.observe()
        if fault:
            observation = msgspec.structs.replace(observation, failed=fault)
        model = self._lookout.model
        report = Report(
            model.release_id if model else "",
            dict(self._lookout.looks_by_release),
            self._lookout.states,
            self._lookout.ended,
            self._lookout.pictures_lost,
            order,
            observation,
        )
        with self._sending:
            self._pipe.send_bytes(REPORT + encode(report))
