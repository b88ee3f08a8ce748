"""The look loop: frames of some cameras in, samples worth keeping out. One thread, one model, many cameras.

Cameras come and go while it runs (`watch`), between two frames like a release: the others do not notice.
Owns what may live in a worker process of its own: cameras, slots, the running model, the selector. Knows no spool, no
link and no installer: a release is handed in and swapped between two frames (`edge.casting`), and a chosen sample goes
to `accept`, which returns when somebody has made it durable.
"""

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import msgspec

from common.clock import Clock
from common.ids import event_id
from common.messages import CameraState, Event, Sample
from edge.camera import Camera
from edge.casting import AbandonedError, Cast, Casting
from edge.develop import Negative, develop
from edge.drift import DriftWatch
from edge.events import Phase, Turn
from edge.frames import Frame, cut_zone
from edge.judge import Judge, Verdict
from edge.lastlook import LastLook
from edge.outputs import snapshot
from edge.perception import Model, View
from edge.rationing import Rationing
from edge.recorder import Recorder
from edge.roster import Roster, packet_bytes
from edge.sampler import FrameSlots
from edge.selection import Candidate, Chosen, Selector
from edge.selection.keeping import Keeper
from edge.settings import CameraSettings, EdgeSettings
from edge.tally import Observation

log = logging.getLogger(__name__)

Accept = Callable[[Sample], None]
"""Takes a sample and returns when it is durable, or when the agent stops. May block: the look loop then waits."""

OnEvent = Callable[[Event], None]
"""Is told what events do, on the look loop's thread; must not block."""

OnLook = Callable[[Frame, View], None]
"""Is told every look, on the look loop's thread: events, snapshots, benchmarks."""

MODEL_WAIT_S = 0.5
FRAME_WAIT_S = 0.25
OWED_MAX = 32
"""Samples of the release before that are still to be made; beyond them the oldest is made at once."""
RATION_S = 5.0
"""How often the looks of all cameras are weighed against what the box can do."""
LEAVE_S = 10.0
"""A changed camera begins anew when its old streams are closed, or after so long: many cameras serve few at a time."""


class Lookout:
    """Looks at the frames of its cameras. `start`, then `hand_over` a model whenever there is one, then `stop`.

    Args:
        settings: of the gateway: its identity and selection.
        cameras: those of the gateway's cameras that this lookout has.
        clock: for the cameras' pace.
        accept: makes a chosen sample durable.
        on_look: is told every look.
        on_event: is told every event.
    """

    def __init__(
        self,
        settings: EdgeSettings,
        cameras: Sequence[CameraSettings],
        clock: Clock,
        accept: Accept,
        on_look: OnLook | None = None,
        on_event: OnEvent | None = None,
    ) -> None:
        self._settings, self._accept_sample = settings, accept
        self._on_look, self._on_event = on_look, on_event
        self.pictures_lost = 0
        """Chosen frames of which no picture could be made: their packets were gone or damaged."""
        self.looks_by_release: Counter[str] = Counter()
        self._judged_release = ""
        self._last: dict[str, LastLook] = {}
        self._slots, self._replaced = FrameSlots(), 0
        self._clock = clock
        self._weighed_s, self._waited_s, self._weighed_cpu_s = clock.monotonic_s(), 0.0, time.process_time()
        self._weighed_looks = self._weighed_drops = 0
        self._selector = Selector(settings.selection, [])
        self._keeper = Keeper(settings.data_dir, self._selector, [], clock.monotonic_s())
        self.cameras: dict[str, Camera] = {}
        """By their ids. Replaced as a whole when cameras come or go: other threads read it."""
        self._judges: dict[str, Judge] = {}
        self._leaving: list[tuple[Camera, float]] = []
        """Cameras that were told to end, and when."""
        self._waiting: list[Camera] = []
        """Cameras that start when a predecessor of the same name has left."""
        self._next_roster: Roster | None = None
        self._refused = 0
        self._drift = DriftWatch(settings.drift_every_s)
        clips = settings.outputs.clips
        self._recorder = Recorder(clips, settings.data_dir / "clips", clock) if clips.enabled else None
        self._flushed: set[str] = set()
        self._swap = threading.Condition()
        self._casting = Casting(self._swap, clock, settings.install.shadow_share)
        self._owed: deque[Chosen] = deque()
        """What another backbone chose before the swap: made into samples when no frame waits, so that the swap costs
        the frames after it nothing."""
        self._again: Frame | None = None
        """A frame on which the thread before this one hung."""
        self._stopping = threading.Event()
        self._thread = self._make_thread()
        self._roster = Roster((), settings.selection.samples_per_hour)
        self._rationing = Rationing({})
        self._follow(Roster(tuple(cameras), settings.selection.samples_per_hour, cores=settings.budget.cores))

    @property
    def model(self) -> Model | None:
        """What looks now; None on a box that never had a release."""
        return self._casting.runs

    @property
    def alive(self) -> bool:
        """False when the look loop has died of an exception (or was not started)."""
        return self._thread.is_alive()

    @property
    def ended(self) -> bool:
        """All cameras were files or folders, and every frame of them has been looked at and judged."""
        return all(camera.ended and name in self._flushed for name, camera in self.cameras.items())

    @property
    def states(self) -> tuple[CameraState, ...]:
        """Reported state of each camera."""
        return tuple(
            msgspec.structs.replace(camera.state, drift=round(self._drift.level(name), 3))
            for name, camera in self.cameras.items()
        )

    def start(self) -> None:
        """Begin to look; does not wait for a model or a frame."""
        for camera in self._waiting:
            camera.start()
        self._waiting = []
        self._thread.start()
        if self._recorder:
            self._recorder.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """End cameras first, then judge what is still held: what was chosen has been accepted on return."""
        self._stopping.set()
        cameras = list(self.cameras.values())
        for camera in cameras:
            camera.stop()
        for camera in cameras:
            camera.join(timeout_s)
        self._casting.stop()
        with self._swap:
            self._swap.notify_all()
        self._thread.join(timeout_s)
        if self._recorder:
            self._recorder.stop(timeout_s)

    def hand_over(
        self, model: Model | None, beside: Model | None = None, *, on_trial: bool = False, rescue: bool = False
    ) -> None:
        """A release to run: the look loop takes it before its next frame. Never blocks, from any thread.

        Args:
            model: what runs; None: nothing may look any more.
            beside: looks at some of the frames too, at the share of a core that is set.
            on_trial: `beside` takes over when `model` fails on a frame.
            rescue: the look under way hangs: its thread is left to itself, and a new one goes on with the same frame.
        """
        with self._swap:
            self._casting.order(Cast(model, beside, on_trial))
            if rescue:
                thread = self._make_thread()
                self._again = self._casting.abandon(thread)
                if self._again:
                    self._thread = thread
                    thread.start()

    def observe(self) -> Observation:
        """What has been counted of the releases that look or looked here."""
        return self._casting.observe()

    def _make_thread(self) -> threading.Thread:
        return threading.Thread(target=self._look_on, name="lookout", daemon=True)

    def watch(self, roster: Roster) -> None:
        """From now on these cameras: new ones are attached, those that are gone detached, changed ones begin anew, and
        the others go on as they are. Never blocks, from any thread; the last one counts."""
        with self._swap:
            self._next_roster = roster
            self._swap.notify_all()

    def last_look(self, camera_id: str) -> bytes | None:
        """A small JPEG of what was looked at last; None before the first look, or without this camera."""
        last = self._last.get(camera_id)
        return last.jpeg() if last else None

    def _looked_at_ns(self, camera_id: str) -> int:
        """When what was looked at last was captured; 0 before the first look."""
        last = self._last.get(camera_id)
        return last.captured_at_ns if last else 0

    def _follow(self, roster: Roster) -> None:
        """Make the cameras those of a roster. On the look loop's thread, or before it runs."""
        wanted = {camera.id: camera for camera in roster.cameras}
        before, now_s = self.cameras, self._clock.monotonic_s()
        for name, camera in before.items():
            if wanted.get(name) != camera.settings:
                self._detach(name, camera, now_s)
        cameras: dict[str, Camera] = {}
        for name, settings in wanted.items():
            if name in self._judges:
                cameras[name] = before[name]
            else:
                cameras[name] = self._attach(settings, now_s)
        self.cameras = cameras
        self._roster = roster
        self._selector.allot(roster.samples_per_hour)
        level = self._rationing.level
        self._rationing = Rationing({name: camera.priority for name, camera in wanted.items()})
        self._rationing.level = min(level, self._rationing.level_max)
        self._ration()
        self._weighed_drops = sum(self._slots.dropped(name) for name in cameras)

    def _attach(self, settings: CameraSettings, now_s: float) -> Camera:
        camera = Camera(settings, self._slots, self._clock)
        self._judges[settings.id] = Judge(settings, self._settings.events)
        model = self._casting.runs
        if model is not None and self._judged_release == model.release_id:
            self._judges[settings.id].adopt(model.manifest, 0)
        self._selector.attach(settings.id)
        self._keeper.attach(settings.id, now_s)
        self._waiting.append(camera)
        return camera

    def _detach(self, name: str, camera: Camera, now_s: float) -> None:
        """Nothing more is taken of it; its streams end by themselves, and nobody waits for them."""
        camera.stop()
        self._leaving.append((camera, now_s))
        self._waiting = [other for other in self._waiting if other is not camera]
        turns = self._judges[name].lose(self._looked_at_ns(name), "the camera was detached")
        self._tell(name, turns, self._judged_release)
        self._accept(self._selector.flush(name))
        self._keeper.detach(name, now_s)
        self._selector.detach(name)
        self._drift.forget(name)
        self._slots.discard(name)
        del self._judges[name]
        self._last.pop(name, None)
        self._flushed.discard(name)

    def _take_roster(self) -> None:
        """The change of cameras happens here, between two frames."""
        with self._swap:
            roster, self._next_roster = self._next_roster, None
        if roster is not None:
            self._follow(roster)
        if not self._waiting and not self._leaving:
            return
        now_s = self._clock.monotonic_s()
        self._leaving = [(c, at_s) for c, at_s in self._leaving if not c.gone and now_s - at_s < LEAVE_S]
        leaving = {camera.settings.id for camera, _ in self._leaving}
        for camera in self._waiting:
            if camera.settings.id not in leaving:
                camera.start()
        self._waiting = [camera for camera in self._waiting if camera.settings.id in leaving]

    def _take_model(self) -> Model | None:
        """The model for the next frame: the swap happens here, between two frames. Waits a little for the first."""
        with self._swap:
            if self._casting.runs is None and not self._casting.waits and self._next_roster is None:
                self._swap.wait(MODEL_WAIT_S)
            return self._casting.take()

    def _look_on(self) -> None:
        """The thread. An exception ends it, and with it the process (`Agent.step` sees that it is not alive)."""
        try:
            while not self._stopping.is_set():
                self._take_roster()
                model = self._take_model()
                if model is None:
                    continue
                if self._again:  # the thread before this one hung on it
                    again, self._again = self._again, None
                    self._look(model, again)
                waits_s = self._clock.monotonic_s()
                frame = self._slots.take(0.0 if self._owed else FRAME_WAIT_S)
                now_s = self._clock.monotonic_s()
                self._waited_s += now_s - waits_s
                if now_s - self._weighed_s >= RATION_S:
                    self._weigh(now_s)
                if frame is not None:
                    self._look(model, frame)
                if self._owed and (frame is None or len(self._owed) > OWED_MAX):
                    self._accept([self._owed.popleft()])
                elif frame is None:
                    self._flush_ended()
            self._accept([*self._owed, *self._selector.flush()])
            self._keeper.keep_all(self._clock.monotonic_s())
        except AbandonedError:
            log.warning("a look that hung has ended; its frame was looked at by another release")
        except Exception:
            log.exception("the look loop failed")
            raise

    def _look(self, model: Model, frame: Frame) -> None:
        camera = self.cameras.get(frame.camera_id)
        if camera is None:
            return  # it was detached while this frame was on its way
        zone = camera.settings.zone
        look = self._casting.look(model, frame, zone, with_patches=camera.settings.heat)
        if look is None:
            return
        model, view = look.model, look.view
        if self._judged_release != model.release_id:
            self._adopt(model)
        self.looks_by_release[model.release_id] += 1
        self._casting.miss(model, self._unseen(frame.camera_id))
        verdict = self._judges[frame.camera_id].judge(
            frame.captured_at_ns, view.predictions, view.sightings, view.patches, camera.blind
        )
        self._last[frame.camera_id] = LastLook.of(frame, look.picture, zone, verdict.boxes)
        told = any(turn.phase is Phase.ENTER for _, turn in verdict.turns)
        camera.looked_at(frame, striking=verdict.striking, told=told, insists=verdict.insists)
        if self._on_look:
            self._on_look(frame, view)
        self._tell(frame.camera_id, verdict.turns, model.release_id, frame, verdict)
        seen = Negative.of(frame, model, zone, verdict.boxes)
        candidate = Candidate(
            frame.camera_id, frame.captured_at_ns, view.embedding, view.predictions, seen, verdict.doubt
        )
        self._accept(self._selector.offer(candidate))
        if not camera.blind:
            self._drift.tell(frame.camera_id, frame.captured_at_ns, view.embedding)
        if camera.held_bytes > camera.held_bytes_max:
            # the memory for pictures is full: the frames compete within a shorter window
            self._accept(self._selector.flush(frame.camera_id))
        self._casting.offer(look, frame, zone)

    def _unseen(self, camera_id: str) -> float:
        """Looks that did not happen since the last one: frames that were replaced, and what rationing takes from this
        camera."""
        replaced, self._replaced = self._slots.replaced - self._replaced, self._slots.replaced
        return replaced + 1 / self._rationing.share(camera_id) - 1

    def _adopt(self, model: Model) -> None:
        """Another release looks from now on: events of what it no longer watches are closed."""
        for name, judge in self._judges.items():
            self._tell(name, judge.adopt(model.manifest, self._looked_at_ns(name)), self._judged_release)
        self._judged_release = model.release_id
        self._owed.extend(self._selector.adopt(model.manifest.backbone.hash))
        self._drift.adopt(model.backbone.hash)

    def _close_lost(self) -> None:
        """A camera that fails or is blind shows nothing: its open events are closed, and open anew when it is back."""
        for name, camera in self.cameras.items():
            state = camera.state.state
            if self._judges[name].open_events and (camera.blind or state in ("failed", "ended")):
                turns = self._judges[name].lose(self._looked_at_ns(name), f"camera {state}")
                self._tell(name, turns, self._judged_release)

    def _tell(
        self,
        camera_id: str,
        turns: Sequence[tuple[str, Turn]],
        release_id: str,
        frame: Frame | None = None,
        verdict: Verdict | None = None,
    ) -> None:
        if not turns or self._on_event is None:
            return
        boxes = verdict.boxes if verdict else ()
        jpeg = b""
        if frame and self._settings.outputs.snapshots and any(turn.phase is Phase.ENTER for _, turn in turns):
            jpeg = snapshot(cut_zone(frame.image, self.cameras[camera_id].settings.zone), boxes)
        for scenario, turn in turns:
            if self._recorder and turn.phase is Phase.ENTER and self.cameras[camera_id].live:
                self._recorder.order(camera_id, self.cameras[camera_id], turn.began_at_ns, turn.at_ns)
            self._on_event(
                Event(
                    event_id=event_id(self._settings.gateway_id, camera_id, scenario, turn.began_at_ns),
                    gateway_id=self._settings.gateway_id,
                    site_id=self._settings.site_id,
                    camera_id=camera_id,
                    scenario=scenario,
                    phase=turn.phase.value,
                    label=turn.label,
                    peak=turn.peak,
                    began_at_ns=turn.began_at_ns,
                    at_ns=turn.at_ns,
                    release_id=release_id,
                    cause=turn.cause,
                    boxes=boxes,
                    jpeg=jpeg if turn.phase is Phase.ENTER else b"",
                )
            )

    def _weigh(self, now_s: float) -> None:
        """Too many frames replaced unseen: the least important cameras are looked at less often, and report it."""
        self._close_lost()
        self._keeper.keep(now_s)
        if self._selector.refused > self._refused:
            self._refused = self._selector.refused
            log.error("%d looks so far were not judged: the model's answer held numbers that are none", self._refused)
        looks = sum(self.looks_by_release.values())
        drops = sum(self._slots.dropped(name) for name in self.cameras)
        cpu_s = time.process_time()
        used = (cpu_s - self._weighed_cpu_s) / (now_s - self._weighed_s)
        if self._rationing.adjust(
            looked=looks - self._weighed_looks,
            dropped=drops - self._weighed_drops,
            busy=1 - self._waited_s / (now_s - self._weighed_s),
            load=used / self._roster.cores if self._roster.cores else 0.0,
        ):
            level = self._rationing.level
            log.warning(
                "looks of the less important cameras are cut in half %d times: %d dropped, %.2f cores used",
                level,
                drops,
                used,
            )
            self._ration()
        self._weighed_s, self._waited_s, self._weighed_looks, self._weighed_drops = now_s, 0.0, looks, drops
        self._weighed_cpu_s = cpu_s

    def _ration(self) -> None:
        """Tell each camera its share: what the box can do now, within what fits into its memory at all."""
        for name, camera in self.cameras.items():
            able, fits = self._rationing.share(name), self._roster.of(name)
            why = "the box has too many cameras" if able < fits else "budget.memory_mb is too small for all"
            camera.ration(min(able, fits), why)
            camera.keep_at_most(packet_bytes(camera.settings, fits))

    def _flush_ended(self) -> None:
        for name, camera in self.cameras.items():
            if camera.ended and name not in self._flushed:
                self._accept(self._selector.flush(name))
                self._flushed.add(name)

    def _accept(self, chosen: list[Chosen]) -> None:
        for choice in chosen:
            sample = develop(choice, self._settings, self._casting.runs)
            if sample is None:
                self.pictures_lost += 1
            else:
                self._accept_sample(sample)
