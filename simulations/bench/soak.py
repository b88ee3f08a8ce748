"""`headframe bench soak`: does the agent's camera and look code grow while it plays for hours?

One process looks at cameras of every kind at real speed: sub-streams over a real RTSP server, a main stream, a
sub-stream with its main stream, and files that are played again and again (each time opened anew). Its resident memory
is read every second. Growth is the slope of a straight line through the second half of the run, after gears, rings and
the windows of the selection have filled; the comparator is the first half, in which they fill.

`HEADFRAME_SOAK_MINUTES` sets the length; 120 by default, two thirds of one with `--quick`.
"""

import contextlib
import os
import tempfile
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import numpy as np
import psutil
from rich.console import Console

from common.clock import SystemClock
from common.errors import EnvironmentFault, OperatorError
from common.manifest import Manifest
from common.messages import CameraState, Sample
from edge.lookout import Lookout
from edge.perception import load_model
from edge.settings import CameraSettings, EdgeSettings, SelectionSettings
from edge.threads import one_thread_each
from simulations.bench._paced import Stage, processes
from simulations.rtsp import why_no_server

MINUTES: Final = {True: 2 / 3, False: 120.0}
"""By `quick`."""
SUBS: Final = 6
EVERY_S: Final = 1.0
SAMPLES_PER_HOUR: Final = 360.0
"""More than a site would set, so that pictures are decoded and samples made all the time."""

console = Console(stderr=True)


def play(cameras: tuple[CameraSettings, ...], manifest: Manifest, layers: dict[str, Path], pipe: Any) -> None:
    """The life of the watching process: each second its memory and its cameras, until the pipe breaks."""
    model = load_model("bench", manifest, lambda name: layers[name], "bench")
    settings = EdgeSettings(
        gateway_id="bench",
        site_id="bench",
        release_root=Path("root.json"),
        cameras=cameras,
        selection=SelectionSettings(samples_per_hour=SAMPLES_PER_HOUR * len(cameras)),
    )
    samples: deque[Sample] = deque(maxlen=1)
    with one_thread_each(), contextlib.suppress(OSError):
        lookout = Lookout(settings, cameras, SystemClock(), samples.append)
        lookout.hand_over(model)
        lookout.start()
        while lookout.alive:
            pipe.send((psutil.Process().memory_info().rss, threading.active_count(), lookout.states))
            time.sleep(EVERY_S)
    os._exit(0)


def bench_soak(*, quick: bool) -> dict[str, Any]:
    """Megabytes per hour that a process with ten cameras grows by.

    Raises:
        EnvironmentFault: there is no RTSP server, or the process died.
        OperatorError: `HEADFRAME_SOAK_MINUTES` is no number above zero.
    """
    if why := why_no_server():
        raise EnvironmentFault(why, "Install it: the soak test plays over RTSP.")
    seconds = 60 * _minutes(quick=quick)
    with tempfile.TemporaryDirectory(prefix="headframe-soak-") as name, console.status("soak: footage") as status:
        stage = Stage.build(Path(name), quick=True)
        stage.server.start()
        ours, theirs = processes.Pipe(duplex=False)
        told = (_cameras(stage), stage.manifest, stage.layers, theirs)
        process = processes.Process(target=play, args=told, daemon=True)
        process.start()
        theirs.close()
        rows: list[tuple[float, int, int]] = []
        states: tuple[CameraState, ...] = ()
        began_s = time.monotonic()
        try:
            while (passed_s := time.monotonic() - began_s) < seconds:
                if not ours.poll(10 * EVERY_S + 20):
                    raise EnvironmentFault("the watching process is silent", "See the log above.")
                rss, threads, states = ours.recv()
                rows.append((passed_s, rss, threads))
                status.update(f"soak: {passed_s / 60:.0f} of {seconds / 60:.0f} min, {rss / 1e6:.0f} MB")
        except EOFError as error:
            raise EnvironmentFault("the watching process died", "See the log above.") from error
        finally:
            process.kill()
            process.join()
            ours.close()
            stage.server.stop()
    return _figures(rows, states)


def _minutes(*, quick: bool) -> float:
    text = os.environ.get("HEADFRAME_SOAK_MINUTES", "")
    try:
        minutes = float(text) if text else MINUTES[quick]
    except ValueError:
        minutes = 0.0
    if minutes <= 0:
        raise OperatorError(f"HEADFRAME_SOAK_MINUTES is {text!r}", "Set a number of minutes above zero.")
    return minutes


def _cameras(stage: Stage) -> tuple[CameraSettings, ...]:
    url = stage.server.url
    subs = [CameraSettings(id=f"sub-{n}", source=url(f"sub-{20 * n}")) for n in range(SUBS)]
    return (
        *subs,
        CameraSettings(id="main", source=url("main-0")),
        CameraSettings(id="both", source=url("main-1"), substream=url("sub-230")),
        CameraSettings(id="file", source=str(stage.clips["sub"]), loop=True),
        CameraSettings(id="file-main", source=str(stage.clips["main"]), loop=True),
    )


def _figures(rows: list[tuple[float, int, int]], states: tuple[CameraState, ...]) -> dict[str, Any]:
    at_h = np.array([row[0] for row in rows]) / 3600
    mb = np.array([row[1] for row in rows]) / 1e6
    half = len(rows) // 2
    return {
        "growth_mb_per_hour": _slope(at_h[half:], mb[half:]),
        "growth_mb_per_hour_first_half": _slope(at_h[:half], mb[:half]),
        "minutes": round(rows[-1][0] / 60, 1),
        "mb_at_half": round(float(mb[half]), 1),
        "mb_at_end": round(float(np.median(mb[-10:])), 1),
        "mb_most": round(float(mb.max()), 1),
        "threads": rows[-1][2],
        "cameras": {state.camera_id: state.state for state in states},
        "frames": sum(state.frames for state in states),
        "looks": sum(state.looks for state in states),
    }


def _slope(at_h: np.ndarray[Any, Any], mb: np.ndarray[Any, Any]) -> float:
    """Of the straight line with the least squares, in MB per hour."""
    return round(float(np.polyfit(at_h, mb, 1)[0]), 2) if len(mb) > 1 else 0.0
