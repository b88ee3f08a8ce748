"""How many cameras a core carries in real time: the agent's camera and look code on sub-streams of a real RTSP server.

Part of `headframe bench edge`. Every camera is a mount of its own on GStreamer's RTSP server, at another moment of the
duty clip (360p, 5 fps), so that they neither send nor move in step. The watching process has one core to itself where
the machine has two; the server has the other. Nothing is faster than real time, so a figure is of the seconds watched.

A look is *late* by the time from when its deciding frame would have arrived at best (the sender's time stamps, against
the promptest packet of the same camera) to the end of the look: network, reading, decoding, waiting and inference.
"""

import contextlib
import multiprocessing
import os
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing import forkserver
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from rich.console import Console

from common.clock import SystemClock
from common.errors import EnvironmentFault
from common.ids import layer_hash
from common.manifest import Manifest
from common.messages import Sample
from edge.frames import Frame
from edge.lookout import Lookout
from edge.perception import View, load_model
from edge.settings import CameraSettings, EdgeSettings, SelectionSettings
from edge.threads import one_thread_each, usable_cores
from simulations.bench._edge_models import make_model, write_int8_backbone
from simulations.bench._footage import DUTY, MAIN_FPS, MAIN_SIZE, SUB_EVERY, SUB_SIZE, Yard, find_videos, write_stream
from simulations.rtsp import RtspServer, why_no_server

CAMERAS: Final = 100
"""What a core is asked to carry."""
CAMERAS_MAX: Final = 240
MAINS: Final = 6
"""Cameras with a 1080p main stream only, watched beside by another process, for their memory."""
STEADY_S: Final = {True: 2.0, False: 20.0}
"""By `quick`: watched but not counted: gears settle, buffers fill."""
WINDOW_S: Final = {True: 5.0, False: 40.0}
CLIP_S: Final = {True: 20.0, False: 60.0}
MAIN_CLIP_S: Final = 4.0
START_S: Final = 60.0
OPEN_S: Final = 20.0
"""A camera has no hundred others to serve, and answers sooner than this server when all are opened at once."""
LATE_MS_MAX: Final = 200.0
SUB_FPS: Final = MAIN_FPS // SUB_EVERY

console = Console(stderr=True)
processes = multiprocessing.get_context("forkserver")
"""What is imported is imported once, for all watching processes."""


@dataclass(frozen=True, slots=True)
class Watched:
    """What a process did in its window."""

    cameras: int
    cores: float
    """CPU seconds of the process per second."""
    rss_bytes: int
    rss_before_bytes: int
    """With the model loaded and used, before the first camera."""
    late_ms: tuple[float, ...]
    looked_back: tuple[bool, ...]
    """For each of them, whether its frame was decoded after the fact."""
    arrival_late_ms: tuple[float, ...]
    """The part of it before a packet was read."""
    dropped: int
    idle: int
    """Cameras in Idle at the end."""

    @property
    def late_ms_p99(self) -> float:
        """Infinite when nothing was looked at."""
        return float(np.percentile(self.late_ms, 99)) if self.late_ms else float("inf")

    @property
    def mb_per_camera(self) -> float:
        """Megabytes of memory that the cameras added, what is there once for all of them included."""
        return (self.rss_bytes - self.rss_before_bytes) / self.cameras / 1e6

    @property
    def holds(self) -> bool:
        """Within one core, and in time."""
        return self.cores <= 1 and self.late_ms_p99 < LATE_MS_MAX


@dataclass(frozen=True, slots=True)
class Task:
    """What a watching process is told."""

    urls: tuple[str, ...]
    manifest: Manifest
    layers: dict[str, Path]
    steady_s: float
    window_s: float
    folder: Path
    """For what the agent keeps."""
    pins: dict[int, int]
    """Process -> core it keeps to once all cameras are open (opening may use all of them); 0 is the watching one."""


@dataclass(frozen=True, slots=True)
class Looked:
    """What is kept of a look: not its pixels."""

    camera_id: str
    at_s: float
    decided_s: float
    sent_s: float
    """By the sender's time stamps, which begin anywhere."""
    back: bool

    @classmethod
    def now(cls, frame: Frame) -> "Looked":
        """A look at a frame ends now."""
        sent_s = 0.0 if isinstance(frame.source, np.ndarray) else float(frame.source.time)
        return cls(frame.camera_id, time.time(), frame.decided_at_ns / 1e9, sent_s, frame.is_late)


def watch(task: Task, pipe: Any) -> None:
    """The life of a watching process: open all cameras, let them settle, count, report."""
    model = load_model("bench", task.manifest, lambda name: task.layers[name], "bench")
    cameras = tuple(
        CameraSettings(id=f"camera-{number}", source=url, timeout_s=OPEN_S) for number, url in enumerate(task.urls)
    )
    settings = EdgeSettings(
        gateway_id="bench",
        site_id="bench",
        release_root=Path("root.json"),
        data_dir=task.folder,
        cameras=cameras,
        selection=SelectionSettings(),
    )
    looks: list[Looked] = []
    counts = threading.Event()
    accepted: deque[Sample] = deque(maxlen=1)

    def on_look(frame: Frame, _: View) -> None:
        if counts.is_set():
            looks.append(Looked.now(frame))

    with one_thread_each():
        side_px = model.backbone.input_px
        model.look(np.zeros((side_px, side_px, 3), np.uint8))
        rss_before_bytes = psutil.Process().memory_info().rss
        lookout = Lookout(settings, cameras, SystemClock(), accepted.append, on_look)
        lookout.hand_over(model)
        lookout.start()
        deadline_s = time.monotonic() + START_S
        while any(state.frames == 0 for state in lookout.states):
            if time.monotonic() > deadline_s:
                pipe.send(None)
                return
            time.sleep(0.1)
        for pid, core in task.pins.items():
            _pin(pid or os.getpid(), core)
        time.sleep(task.steady_s)
        dropped = sum(state.dropped for state in lookout.states)
        counts.set()
        cpu_s, began_s = time.process_time(), time.monotonic()
        time.sleep(task.window_s)
        cores = (time.process_time() - cpu_s) / (time.monotonic() - began_s)
        counts.clear()
        rss_bytes = psutil.Process().memory_info().rss
        late, arrivals = _lateness(lookout, looks, time.time_ns() - round(task.window_s * 1e9))
        states = lookout.states
        pipe.send(
            Watched(
                len(cameras),
                cores,
                rss_bytes,
                rss_before_bytes,
                tuple(late),
                tuple(look.back for look in looks),
                tuple(arrivals),
                sum(state.dropped for state in states) - dropped,
                sum(state.gear == "idle" for state in states),
            )
        )
    os._exit(0)  # a hundred connections need not be closed one by one


def _lateness(lookout: Lookout, looks: Sequence[Looked], since_ns: int) -> tuple[list[float], list[float]]:
    """Milliseconds, of the looks and of the packets that arrived in the window and that the rings still hold."""
    promptest: dict[str, float] = {}
    arrivals: list[float] = []
    for name, camera in lookout.cameras.items():
        packets = [
            item
            for item in camera.ring.between(0, 2**63)
            if item.data.pts is not None and item.captured_at_ns >= since_ns
        ]
        offsets = [item.captured_at_ns / 1e9 - float(item.data.pts * item.data.time_base) for item in packets]
        if offsets:
            promptest[name] = min(offsets)
            arrivals += [1e3 * (offset - promptest[name]) for offset in offsets]
    late: list[float] = []
    for look in looks:
        due_s = look.decided_s  # of a frame decoded after the fact the own time stamp is of the past
        if not look.back and look.camera_id in promptest:
            due_s = min(due_s, look.sent_s + promptest[look.camera_id])
        late.append(1e3 * (look.at_s - due_s))
    return late, arrivals


@contextlib.contextmanager
def _watching(task: Task) -> Iterator[Any]:
    """A process that watches; yields its pipe, and ends it."""
    ours, theirs = processes.Pipe(duplex=False)
    process = processes.Process(target=watch, args=(task, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        yield ours
    finally:
        process.kill()
        process.join()
        ours.close()


def _watch_all(tasks: Sequence[Task]) -> list[Watched]:
    """Run tasks side by side.

    Raises:
        EnvironmentFault: one of them got no frames, or died.
    """
    with contextlib.ExitStack() as stack:
        pipes = [stack.enter_context(_watching(task)) for task in tasks]
        results: list[Watched] = []
        for task, pipe in zip(tasks, pipes, strict=True):
            ready = pipe.poll(2 * START_S + task.steady_s + task.window_s)
            watched = None
            with contextlib.suppress(EOFError):
                watched = pipe.recv() if ready else None
            if watched is None:
                raise EnvironmentFault(
                    f"{len(task.urls)} cameras did not deliver within {START_S:.0f} s", "Is the machine overloaded?"
                )
            results.append(watched)
        return results


def measure_paced(*, quick: bool) -> dict[str, Any]:
    """Cameras per core in real time, their lateness, and the memory of each.

    `paced_cameras_per_core` is the largest number that was really watched within one core and in time; what its CPU
    promises beyond stands apart, as an extrapolation. Without an RTSP server on the machine only that is said.
    """
    if why := why_no_server():
        return {"paced": f"not measured: {why}"}
    began_s = time.monotonic()
    processes.set_forkserver_preload([__name__])
    forkserver.ensure_running()  # it imports while the clips are written
    with tempfile.TemporaryDirectory(prefix="headframe-paced-") as name, console.status("paced: footage") as status:
        stage = Stage.build(Path(name), quick=quick)
        stage.server.start()
        try:
            alone, beside = _cores_apart(stage.server.pid)
            status.update(f"paced: {CAMERAS} cameras")
            many, mains = _watch_all(
                [
                    stage.task(_spread("sub", CAMERAS), alone),
                    stage.task([f"main-{n}" for n in range(MAINS)], beside),
                ]
            )
            runs = [many]
            while not quick and runs[-1].holds and (more := _next(runs[-1])):
                status.update(f"paced: {more} cameras")
                runs += _watch_all([stage.task(_spread("sub", more), alone)])
        finally:
            stage.server.stop()
    held = [run for run in runs if run.holds]
    best = held[-1] if held else many
    return {
        "paced_cameras_per_core": best.cameras if held else 0,
        "p99_lateness_ms": round(best.late_ms_p99, 1),
        "mb_per_stream": round(many.mb_per_camera, 2),
        "mb_per_main_stream": round(mains.mb_per_camera, 2),
        "paced": {
            "runs": [_row(run) for run in runs],
            "cameras_per_core_extrapolated": int(best.cameras / best.cores),
            "active_share": DUTY,
            "window_s": WINDOW_S[quick],
            "core_of_its_own": bool(alone),
            "seconds": round(time.monotonic() - began_s, 1),
        },
    }


@dataclass(frozen=True, slots=True)
class Stage:
    """A server with its clips, and the model that looks at them."""

    server: RtspServer
    clips: dict[str, Path]
    manifest: Manifest
    layers: dict[str, Path]
    quick: bool

    @classmethod
    def build(cls, folder: Path, *, quick: bool) -> "Stage":
        """Write clips and model into a folder; the server is not started."""
        yard = Yard(find_videos())
        scene, _ = yard.play(CLIP_S[quick], seed=0)
        clips = {"sub": folder / "sub.mp4", "main": folder / "main.mp4"}
        part = scene[-round(MAIN_CLIP_S * yard.FPS) :]
        with ThreadPoolExecutor(2) as pool:
            done = (
                pool.submit(write_stream, clips["sub"], SUB_SIZE, SUB_FPS, scene, yard.FPS),
                pool.submit(write_stream, clips["main"], MAIN_SIZE, MAIN_FPS, part, yard.FPS),
            )
            manifest = make_model(folder, write_int8_backbone(folder), yard.examples(), "paced").manifest
            for writing in done:
                writing.result()
        mounts = {f"sub-{n}": ("sub", CLIP_S[quick] * n / CAMERAS_MAX) for n in range(CAMERAS_MAX)}
        mounts |= {f"main-{n}": ("main", 0.3 * n) for n in range(MAINS)}
        layers = {layer_hash(path.read_bytes()): path for path in folder.glob("*.onnx")}
        return cls(RtspServer(clips, mounts), clips, manifest, layers, quick)

    def task(self, mounts: Sequence[str], pins: dict[int, int]) -> Task:
        """To watch some mounts."""
        urls = tuple(self.server.url(mount) for mount in mounts)
        folder = (
            self.clips["sub"].parent / f"data-{len(urls)}"
        )  # told apart by their number: what runs beside has fewer
        return Task(urls, self.manifest, self.layers, STEADY_S[self.quick], WINDOW_S[self.quick], folder, pins)


def _spread(kind: str, count: int) -> list[str]:
    """Mounts at evenly spread moments of the clip."""
    return [f"{kind}-{number}" for number in np.linspace(0, CAMERAS_MAX - 1, count).astype(int)]


def _next(run: Watched) -> int:
    """How many cameras to try after a run that held; 0 when there are no more mounts."""
    more = round(1.2 * run.cameras)
    return more if more <= CAMERAS_MAX else 0


def _cores_apart(server_pid: int) -> tuple[dict[int, int], dict[int, int]]:
    """Pins for the process that is measured, with the server on the other core, and for what runs beside it; none where
    there is but one core."""
    if usable_cores() < 2 or not hasattr(os, "sched_getaffinity"):
        return {}, {}
    first, second, *_ = sorted(os.sched_getaffinity(0))
    return {0: second, server_pid: first}, {0: first}


def _pin(pid: int, core: int) -> None:
    """Keep a process and all its threads, also those it starts from now on, on one core."""
    for thread in psutil.Process(pid).threads():
        with contextlib.suppress(ProcessLookupError):
            os.sched_setaffinity(thread.id, {core})


def _p99(values: Sequence[float]) -> float | None:
    return round(float(np.percentile(values, 99)), 1) if values else None


def _row(run: Watched) -> dict[str, Any]:
    return {
        "cameras": run.cameras,
        "cores": round(run.cores, 3),
        "p99_lateness_ms": round(run.late_ms_p99, 1),
        "median_lateness_ms": round(float(np.median(run.late_ms)), 1) if run.late_ms else None,
        "p99_arrival_ms": _p99(run.arrival_late_ms),
        "p99_lateness_live_ms": _p99([ms for ms, back in zip(run.late_ms, run.looked_back, strict=True) if not back]),
        "looks": len(run.late_ms),
        "looked_back": sum(run.looked_back),
        "dropped": run.dropped,
        "idle": run.idle,
        "rss_mb": round(run.rss_bytes / 1e6, 1),
    }
