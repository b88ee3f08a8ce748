"""`headframe bench edge`: how many cameras a core carries, against the loop that everybody writes first.

The comparator reads every frame of the main stream with `cv2.VideoCapture` and gives each fifth to ONNX Runtime with
default session options: 25 fps, five looks a second. Ours is the agent's own runtime (`edge.lookout.Lookout`) on the
same clips, as fast as it can. Both are charged the CPU seconds of the process per second of video, so that a busy
machine spoils neither; the arms take turns, and a ratio is the median over the turns. A truth event is *detected* when
the model, on a frame that was looked at while the event lasted, says so with more than even odds; recall is the share
of the naive loop's detected events that ours detects too.
"""

import gc
import importlib.util
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any, Final

import av
import cv2
import numpy as np
import onnxruntime
from rich.console import Console

from common import manifest as keys
from common.clock import SystemClock
from common.errors import EnvironmentFault
from common.messages import Prediction, Sample
from edge.frames import Frame
from edge.lookout import Lookout
from edge.perception import Model, View
from edge.settings import CameraSettings, EdgeSettings, GearSettings, SelectionSettings
from edge.threads import one_thread_each
from simulations.bench._edge_models import EVENT, make_model, write_float_backbone, write_int8_backbone
from simulations.bench._footage import (
    MAIN_FPS,
    Belt,
    Footage,
    Yard,
    build_footage,
    cut_footage,
    find_videos,
    repeat_footage,
)

LOOK_EVERY: Final = 5
LENGTHS_S: Final = {True: (20.0, 8.0, 4.0), False: (240.0, 40.0, 60.0)}
"""By `quick`: seconds of the duty clip, of the busy clip, and of the part that the ablation runs on."""
ROUNDS: Final = {True: 2, False: 3}
COPIES: Final = {True: {"duty": (3, 6), "busy": (2, 6)}, False: {"duty": (1, 2), "busy": (3, 8)}}
"""How often ours watches a clip in one go, its main stream and its sub-stream: what a camera pays once (opening, its
first sample, five seconds until never still counts as steady) must not weigh as it does in a minute. The naive loop
pays nothing once, and watches one copy."""
NAIVE_AGAIN_S: Final = 8.0
"""Of the clip, from the second turn on: what the naive loop costs does not depend on what it sees."""
WAIT_S: Final = 600.0
SLACK_S: Final = 0.2
"""Time stamps of the truth are those of 10 fps clips."""
SAMPLES_PER_HOUR: Final = 120.0 / 40
"""A camera's share of the default budget on a gateway with forty: each sample costs the decoding of its group."""

console = Console(stderr=True)


@dataclass(slots=True)
class Run:
    """What one way of watching a footage cost and saw."""

    footage: Footage
    cpu_ms: float = 0.0
    """CPU milliseconds per second of video."""
    looks: int = 0
    said: list[tuple[float, float]] = field(default_factory=list)
    """(captured, known) in seconds of video, of each look that said there is an event."""
    samples: int = 0

    def detected(self) -> dict[int, float]:
        """Event number -> seconds from its beginning until it was known."""
        found: dict[int, float] = {}
        for number, (begin, end) in enumerate(self.footage.events):
            known = [at for captured, at in self.said if begin - SLACK_S <= captured <= end + SLACK_S]
            if known:
                found[number] = max(0.0, min(known) - begin)
        return found

    def false_looks(self) -> int:
        """Looks that saw an event where there was none."""
        return sum(
            not any(begin - 1 <= captured <= end + 1 for begin, end in self.footage.events) for captured, _ in self.said
        )

    def repeated(self, footage: Footage) -> "Run":
        """What this says of several copies of its footage, when it saw one: the same, again."""
        copies = round(footage.seconds / self.footage.seconds)
        offsets = [number * self.footage.seconds for number in range(copies)]
        said = [(captured + offset, known + offset) for offset in offsets for captured, known in self.said]
        return Run(footage, self.cpu_ms, self.looks * copies, said, self.samples)


def recall(ours: Run, naive: Run) -> float | None:
    """Share of the events that the naive loop detects that ours detects too; None when it detects none."""
    wanted = set(naive.detected())
    return len(wanted & set(ours.detected())) / len(wanted) if wanted else None


def says_event(predictions: Sequence[Prediction]) -> bool:
    """More than even odds for the event."""
    return any(item.top == EVENT for item in predictions)


def run_naive(footage: Footage, model: Model, backbone: Path, *, spin: bool = True) -> Run:
    """The common loop on the main stream.

    Args:
        spin: False is its first improvement: one thread that sleeps between frames.
    """
    run = Run(footage)
    session = onnxruntime.InferenceSession(backbone) if spin else None
    began_s = time.process_time()
    capture = cv2.VideoCapture(str(footage.main))
    index = 0
    while True:
        ok, image = capture.read()
        if not ok:
            break
        if index % LOOK_EVERY == 0:
            run.looks += 1
            small = cv2.resize(image, (224, 224))
            if session is None:
                view = model.look(np.asarray(small, dtype=np.uint8))
            else:
                tensor = (small[:, :, ::-1].astype(np.float32) - 127) / 128
                (rows,) = session.run([keys.EMBEDDING], {keys.IMAGE: tensor.transpose(2, 0, 1)[None]})
                view = model.judge(rows[0])
            if says_event(view.predictions):
                run.said.append((index / MAIN_FPS, index / MAIN_FPS))
        index += 1
    capture.release()
    run.cpu_ms = 1e3 * (time.process_time() - began_s) / footage.seconds
    return run


def run_ours(footage: Footage, model: Model, *, substream: bool, gears: GearSettings | None = None) -> Run:
    """The agent's runtime: camera, sampler, model, selection, and the pictures of what was chosen; with no past."""
    with tempfile.TemporaryDirectory(prefix="headframe-bench-") as name:
        return _run_ours(footage, model, Path(name), substream=substream, gears=gears)


def _run_ours(footage: Footage, model: Model, folder: Path, *, substream: bool, gears: GearSettings | None) -> Run:
    run = Run(footage)
    camera = CameraSettings(
        id="camera-1",
        source=str(footage.main),
        substream=str(footage.sub) if substream else None,
        paced=False,
        gears=gears or GearSettings(),
    )
    settings = EdgeSettings(
        gateway_id="bench",
        site_id="bench",
        release_root=Path("root.json"),
        data_dir=folder,
        cameras=(camera,),
        selection=SelectionSettings(samples_per_hour=SAMPLES_PER_HOUR),
    )
    began_ns = (footage.sub if substream else footage.main).stat().st_mtime_ns

    def on_look(frame: Frame, view: View) -> None:
        run.looks += 1
        if says_event(view.predictions):
            run.said.append(((frame.captured_at_ns - began_ns) / 1e9, (frame.decided_at_ns - began_ns) / 1e9))

    def accept(_: Sample) -> None:
        run.samples += 1

    deadline_s = time.monotonic() + WAIT_S
    with one_thread_each():  # as `edge.app` does for the agent
        began_s = time.process_time()
        lookout = Lookout(settings, settings.cameras, SystemClock(), accept, on_look)
        lookout.hand_over(model)
        lookout.start()
        while not lookout.ended:
            if time.monotonic() > deadline_s or not lookout.alive:
                raise EnvironmentFault(f"the {footage.name} clip did not end", "Is the machine overloaded?")
            time.sleep(0.02)
        lookout.stop()
    run.cpu_ms = 1e3 * (time.process_time() - began_s) / footage.seconds
    return run


def measure_floor(footage: Footage, model: Model, naive: Run) -> dict[str, float]:
    """What nothing can be cheaper than: to receive the sub-stream, and one inference for each event."""

    def demux(path: Path) -> float:
        began_s = time.process_time()
        with av.open(str(path)) as container:
            for _ in container.demux(video=0):
                pass
        return 1e3 * (time.process_time() - began_s) / footage.seconds

    image = np.zeros((224, 224, 3), np.uint8)
    began_s = time.process_time()
    for _ in range(20):
        model.look(image)
    inference_ms = 1e3 * (time.process_time() - began_s) / 20
    demux_sub_ms, demux_main_ms = demux(footage.sub), demux(footage.main)
    floor_ms = demux_sub_ms + inference_ms * len(footage.events) / footage.seconds
    return {
        "demux_substream_ms": demux_sub_ms,
        "demux_main_ms": demux_main_ms,
        "inference_ms": inference_ms,
        "cpu_ms": floor_ms,
        "ratio": naive.cpu_ms / floor_ms,
    }


def ablate(footage: Footage, float_model: Model, int8_model: Model, backbone: Path) -> list[dict[str, Any]]:
    """From the naive loop to ours, one trick at a time, on the same clip; each row is the whole so far."""
    eager = GearSettings(motion_min=0.0, gate=0.0, alert_looks_per_s=5.0, steady_looks_per_s=5.0)
    gated = GearSettings(motion_min=0.0)
    steps: list[tuple[str, Callable[[], Run]]] = [
        ("naive", lambda: run_naive(footage, float_model, backbone)),
        ("one thread, no spinning", lambda: run_naive(footage, float_model, backbone, spin=False)),
        (
            "PyAV, reduced-size conversion, no loop filter",
            lambda: run_ours(footage, float_model, substream=False, gears=eager),
        ),
        ("int8", lambda: run_ours(footage, int8_model, substream=False, gears=eager)),
        ("motion gate", lambda: run_ours(footage, int8_model, substream=False, gears=gated)),
        ("lazy groups (the main stream alone)", lambda: run_ours(footage, int8_model, substream=False)),
        ("sub-stream, every frame decoded", lambda: run_ours(footage, int8_model, substream=True, gears=gated)),
        ("sub-stream, lazy groups", lambda: run_ours(footage, int8_model, substream=True)),
    ]
    rows: list[dict[str, Any]] = []
    naive: Run | None = None
    for name, step in steps:
        run = step()
        naive = naive or run
        before_ms = rows[-1]["cpu_ms"] if rows else run.cpu_ms
        rows.append(
            {
                "trick": name,
                "cpu_ms": round(run.cpu_ms, 2),
                "ratio": round(naive.cpu_ms / run.cpu_ms, 2),
                "gain": round(before_ms / run.cpu_ms, 2),
                "recall": recall(run, naive),
                "looks_per_s": round(run.looks / footage.seconds, 2),
            }
        )
    return rows


def bench_edge(*, quick: bool) -> dict[str, Any]:
    """Main, sub-stream and busy footage against the naive loop; the ablation; the floor; paced cameras."""
    began_s = time.monotonic()
    duty_s, busy_s, ablation_s = LENGTHS_S[quick]
    videos = find_videos()
    with tempfile.TemporaryDirectory(prefix="headframe-bench-") as name, console.status("footage") as status:
        folder = Path(name)
        with ThreadPoolExecutor(1) as pool:  # an encoder a clip; the shorter one leaves a core for the models
            footages = pool.submit(build_footage, videos, folder, duty_s=duty_s, busy_s=busy_s)
            floats, int8 = write_float_backbone(folder), write_int8_backbone(folder)
            models: dict[tuple[str, Path], Model] = {}
            for kind, scene in (("duty", Yard(videos)), ("busy", Belt(videos))):
                for path in (floats, int8):
                    models[kind, path] = make_model(folder, path, scene.examples(), kind)
            duty, busy = footages.result()
        gc.collect()
        arms = [
            Arm.of(item, folder, COPIES[quick][item.name], models[item.name, floats], models[item.name, int8], floats)
            for item in (duty, busy)
        ]
        turns: list[dict[str, Run]] = []
        for number in range(ROUNDS[quick]):
            status.update(f"turn {number + 1} of {ROUNDS[quick]}")
            turns.append({key: run for arm in arms for key, run in arm.run().items()})
        status.update("ablation")
        part = cut_footage(duty, folder, ablation_s)
        ablation = ablate(part, models["duty", floats], models["duty", int8], floats)
        floor = measure_floor(duty, models["duty", int8], turns[0]["duty-naive"])
    figures = _figures(turns) | {"ablation": ablation, "floor": floor}
    if importlib.util.find_spec("simulations.bench._paced"):
        figures |= importlib.import_module("simulations.bench._paced").measure_paced(quick=quick)
    return figures | {"seconds": round(time.monotonic() - began_s, 1)}


@dataclass(slots=True)
class Arm:
    """One kind of footage, watched in each way."""

    footage: Footage
    brief: Footage
    """Its beginning."""
    longer: dict[str, Footage]
    """The same several times over, for ours on the main and on the sub-stream."""
    floats: Model
    int8: Model
    backbone: Path
    naive: Run | None = None
    """The naive loop on all of it, in the first turn."""

    @classmethod
    def of(
        cls, footage: Footage, folder: Path, copies: tuple[int, int], floats: Model, int8: Model, backbone: Path
    ) -> "Arm":
        """With as many copies for the main and for the sub-stream."""
        longer = {
            stream: repeat_footage(footage, folder, count)
            for stream, count in zip(("main", "sub"), copies, strict=True)
        }
        return cls(footage, cut_footage(footage, folder, NAIVE_AGAIN_S), longer, floats, int8, backbone)

    def run(self) -> dict[str, Run]:
        """One turn: the naive loop, ours on the main stream, ours on the sub-stream."""
        if self.naive is None:
            naive = self.naive = run_naive(self.footage, self.floats, self.backbone)
        else:
            naive = replace(self.naive, cpu_ms=run_naive(self.brief, self.floats, self.backbone).cpu_ms)
        runs = {f"{self.footage.name}-naive": naive}
        for stream, footage in self.longer.items():
            runs[f"{self.footage.name}-{stream}"] = run_ours(footage, self.int8, substream=stream == "sub")
        return runs


def _figures(turns: Sequence[dict[str, Run]]) -> dict[str, Any]:
    """Medians of costs over the turns; of what was missed, the worst turn."""

    def naive(turn: dict[str, Run], name: str) -> Run:
        return turn[name.partition("-")[0] + "-naive"]

    def ratio(name: str) -> float:
        return median(naive(turn, name).cpu_ms / turn[name].cpu_ms for turn in turns)

    def seen(name: str) -> float | None:
        shares = [recall(turn[name], naive(turn, name).repeated(turn[name].footage)) for turn in turns]
        return min((share for share in shares if share is not None), default=None)

    runs = turns[0]
    ours = [name for name in runs if not name.endswith("-naive")]
    delays = {name: sorted(delay for turn in turns for delay in turn[name].detected().values()) for name in ours}
    cpu_ms = {name: median(turn[name].cpu_ms for turn in turns) for name in runs}
    duty = runs["duty-naive"].footage
    return {
        "substream_ratio": ratio("duty-sub"),
        "substream_recall": seen("duty-sub"),
        "main_ratio": ratio("duty-main"),
        "main_recall": seen("duty-main"),
        "busy_ratio": ratio("busy-main"),
        "busy_recall": seen("busy-main"),
        "busy_substream_ratio": ratio("busy-sub"),
        "busy_substream_recall": seen("busy-sub"),
        "alarm_delay_s": max(median(delays[name]) for name in ("duty-main", "duty-sub") if delays[name]),
        "alarm_delay_by_run_s": {name: [round(delay, 2) for delay in row] for name, row in delays.items()},
        "ratios_by_turn": {
            name: [round(naive(turn, name).cpu_ms / turn[name].cpu_ms, 2) for turn in turns] for name in ours
        },
        "active_share": sum(end - begin for begin, end in duty.events) / duty.seconds,
        "events": {name: len(run.footage.events) for name, run in runs.items()},
        "events_detected": {name: len(run.detected()) for name, run in runs.items()},
        "false_looks": {name: run.false_looks() for name, run in runs.items()},
        "looks_per_s": {name: round(run.looks / run.footage.seconds, 2) for name, run in runs.items()},
        "samples": {name: runs[name].samples for name in ours},
        "cpu_ms_per_video_s": {name: round(cost, 2) for name, cost in cpu_ms.items()},
        "streams_per_core": {name: round(1000.0 / cost, 1) for name, cost in cpu_ms.items()},
    }
