"""Does the heat map show where something is? People who cross a yard, on real video.

A frame counts as occupied by the clip's own truth. Where the person stands in it is said by YOLOX-nano, in the same
run, on the frames where it finds exactly one; the comparator is a patch chosen at random.
"""

import json
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.learning.adoption import DetectorForm, adopt_detector
from cloud.learning.export import export_default_backbone
from common.backbone import Backbone
from common.clock import SystemClock
from common.errors import OperatorError
from common.ids import layer_hash
from common.manifest import DetectorLayer, Layer
from common.messages import Box
from edge.detectors import Detector
from edge.patches import PatchNormal
from edge.settings import CameraSettings
from edge.sources import open_source
from edge.threads import one_thread_each
from simulations.data import find_data

EVERY: Final = {True: 3, False: 1}
WARM_FRAMES: Final = 60
"""Of the clip: the yard is empty, and nothing is judged."""
CPU_PASSES: Final = 60


def bench_heat(*, quick: bool) -> dict[str, Any]:
    """Figures of docs/benchmarks.md, `heat`."""
    data = find_data()
    truth = json.loads((data / "videos" / "one_by_one_person.json").read_text())
    camera = CameraSettings(id="yard", source=str(data / "videos" / "one_by_one_person.mp4"), paced=False)
    with tempfile.TemporaryDirectory() as name, one_thread_each():
        folder = Path(name)
        (folder / "backbone.onnx").write_bytes(export_default_backbone())
        backbone, detector = Backbone.open(folder / "backbone.onnx"), _detector(folder, data)
        normal = PatchNormal()
        peaks: list[float] = []
        occupied: list[bool] = []
        hot: list[bool] = []
        inside: list[bool] = []
        chance: list[float] = []
        last: NDArray[np.uint8] | None = None
        for number, shot in enumerate(open_source(camera, SystemClock())):
            if number % EVERY[quick]:
                continue
            _, patches = backbone.embed_patches(shot.image)
            if patches is None:
                raise OperatorError("the backbone gives no feature map", "Export it anew.")
            heat, is_hot = normal.look(patches)
            last = shot.image
            if number < WARM_FRAMES:
                continue
            peaks.append(float(heat.max()))
            hot.append(bool(is_hot.any()))
            occupied.append(any(first <= number <= end for first, end in truth["presence"]))
            people = [box for box in detector.detect(shot.image).boxes if box.label == "person"]
            if len(people) == 1:
                inside.append(_within(people[0], heat, int(heat.argmax())))
                chance.append(float(np.mean([_within(people[0], heat, place) for place in range(heat.size)])))
        cost = _cost(backbone, normal, last) if last is not None else float("nan")
    somebody = np.array(occupied)
    return {
        "peak_in_person": float(np.mean(inside)),
        "peak_in_person_at_random": float(np.mean(chance)),
        "auroc": _auroc(np.array(peaks)[somebody], np.array(peaks)[~somebody]),
        "hot_when_occupied": float(np.array(hot)[somebody].mean()),
        "hot_when_empty": float(np.array(hot)[~somebody].mean()),
        "cost": cost,
        "frames": len(peaks),
        "frames_located": len(inside),
    }


def _detector(folder: Path, data: Path) -> Detector:
    source = data / "detector-yolox-nano"
    names = tuple(line.strip() for line in (source / "coco.names").read_text().splitlines() if line.strip())
    made = adopt_detector((source / "yolox_nano.onnx").read_bytes(), DetectorForm("yolox", names, bgr=True))
    (folder / "detector.onnx").write_bytes(made)
    return Detector.open(DetectorLayer("people", Layer(layer_hash(made), len(made))), folder / "detector.onnx")


def _within(box: Box, heat: NDArray[np.float32], place: int) -> bool:
    """Whether a patch's centre lies in a box, give or take half a patch: what the grid can resolve."""
    rows, columns = heat.shape
    x, y = (place % columns + 0.5) / columns, (place // columns + 0.5) / rows
    inside: bool = (
        box.left - 0.5 / columns <= x <= box.right + 0.5 / columns
        and box.top - 0.5 / rows <= y <= box.bottom + 0.5 / rows
    )
    return inside


def _auroc(high: NDArray[np.floating], low: NDArray[np.floating]) -> float:
    """Probability that a peak of the first kind is above one of the second."""
    return float((high[:, None] > low[None]).mean() + 0.5 * (high[:, None] == low[None]).mean())


def _cost(backbone: Backbone, normal: PatchNormal, image: NDArray[np.uint8]) -> float:
    """CPU of embedding with patches and heat over that of embedding alone, less one: the median of passes."""
    alone_s, with_heat_s = [], []
    for _ in range(CPU_PASSES):
        began_s = time.process_time()
        backbone.embed(image)
        between_s = time.process_time()
        _, patches = backbone.embed_patches(image)
        if patches is not None:
            normal.look(patches)
        alone_s.append(between_s - began_s)
        with_heat_s.append(time.process_time() - between_s)
    return float(np.median(with_heat_s) / np.median(alone_s) - 1)
