"""What forty scenarios cost beside one: CPU time of the agent's own look on real frames.

Comparators in the same run: one head, and the same forty heads each in an ONNX Runtime session of its own. Rounds of
all variants alternate, so that a busy machine disturbs them alike.
"""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
from numpy.typing import NDArray

from cloud.learning.export import export_head
from cloud.learning.heads import solve_lda
from common import manifest as keys
from common.backbone import Backbone
from common.clock import SystemClock
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario
from common.statistics import Statistics
from edge.perception import Model, View, load_model
from edge.selection import Candidate, Selector
from edge.settings import CameraSettings, GearSettings, SelectionSettings
from edge.sources import open_source
from edge.striking import Striking
from edge.threads import one_thread_each
from simulations.bench._edge_models import write_float_backbone, write_int8_backbone
from simulations.data import find_data

HEADS: Final = 40
CLASSES: Final = (2, 3, 6, 4)
"""Classes of the heads, in turn: a scenario has a normal and one to five others."""
FRAMES: Final = 40
ROUNDS: Final = {True: 8, False: 40}


def bench_heads(*, quick: bool) -> dict[str, Any]:
    """Figures of docs/benchmarks.md, `heads`."""
    frames = _frames()
    figures: dict[str, Any] = {"heads": HEADS, "frames": len(frames)}
    with tempfile.TemporaryDirectory() as name, one_thread_each():
        folder = Path(name)
        for precision, path in (("float", write_float_backbone(folder)), ("int8", write_int8_backbone(folder))):
            figures |= _measure(folder, path, frames, precision, ROUNDS[quick])
    return figures


def _measure(
    folder: Path, backbone_path: Path, frames: list[NDArray[np.uint8]], precision: str, rounds: int
) -> dict[str, Any]:
    backbone = Backbone.open(backbone_path)
    embeddings = np.stack([backbone.embed(frame) for frame in frames])
    heads = [_head(backbone, embeddings, number) for number in range(HEADS)]
    one, forty = (_model(folder, backbone, backbone_path, heads[:count]) for count in (1, HEADS))
    separate = _model(folder, backbone, backbone_path, [_without_form(head) for head in heads])
    _check_equal(forty, separate, embeddings)
    looks = {"one": _look(one), "forty": _look(forty), "separate": _look(separate)}
    looks |= {"one_chosen": _look_and_offer(one), "forty_chosen": _look_and_offer(forty)}
    spent_s = _alternate(looks, frames, rounds)
    suffix = "" if precision == "float" else f"_{precision}"
    return {
        f"cost_of_40_heads{suffix}": spent_s["forty"] / spent_s["one"] - 1,
        f"cost_of_40_heads_in_sessions{suffix}": spent_s["separate"] / spent_s["one"] - 1,
        f"cost_of_40_heads_to_selection{suffix}": spent_s["forty_chosen"] / spent_s["one_chosen"] - 1,
        f"look_with_one_head_ms{suffix}": 1e3 * spent_s["one"],
    }


def _frames() -> list[NDArray[np.uint8]]:
    """Frames of a real video, spread over it."""
    path = find_data("videos", "worker_zone.mp4")
    camera = CameraSettings(id="frames", source=str(path), paced=False)
    found = [shot.image for shot in open_source(camera, SystemClock())]
    return found[:: max(1, len(found) // FRAMES)][:FRAMES]


def _head(backbone: Backbone, embeddings: NDArray[np.float32], number: int) -> bytes:
    """A head on real embeddings; which class a frame is called does not matter for what it costs."""
    count = CLASSES[number % len(CLASSES)]
    names = ("normal", *(f"event-{index}" for index in range(1, count)))
    labels = [names[index] for index in np.random.default_rng(number).permutation(np.arange(len(embeddings)) % count)]
    weights = solve_lda(Statistics.of(names, embeddings.astype(np.float64), labels), 0.5)
    return export_head(weights, f"scenario-{number}", backbone.hash)


def _without_form(head: bytes) -> bytes:
    """The same head, not declaring its form: it runs in a session of its own."""
    model = onnx.load_model_from_string(head)
    kept = [item for item in model.metadata_props if item.key != keys.FORM]
    del model.metadata_props[:]
    model.metadata_props.extend(kept)
    data: bytes = model.SerializeToString()
    return data


def _model(folder: Path, backbone: Backbone, backbone_path: Path, heads: list[bytes]) -> Model:
    paths = {backbone.hash: backbone_path}
    scenarios = []
    for number, data in enumerate(heads):
        layer = Layer(layer_hash(data), len(data))
        paths[layer.hash] = folder / layer.hash
        paths[layer.hash].write_bytes(data)
        classes = ("normal", *(f"event-{index}" for index in range(1, CLASSES[number % len(CLASSES)])))
        scenarios.append(Scenario(f"scenario-{number}", classes, "normal", {SHARED: layer}))
    now_ns = time.time_ns()
    manifest = Manifest(
        sequence=1,
        created_at_ns=now_ns,
        expires_at_ns=now_ns + 10**15,
        minimum_agent="0.1.0",
        backbone=Layer(backbone.hash, backbone_path.stat().st_size),
        scenarios=tuple(scenarios),
    )
    return load_model(f"bench-{len(heads)}", manifest, paths.__getitem__, "bench", backbone)


def _check_equal(stacked: Model, separate: Model, embeddings: NDArray[np.float32]) -> None:
    """Both say the same, or the figures would compare two different things."""
    for embedding in embeddings:
        for ours, theirs in zip(
            stacked.judge(embedding).predictions, separate.judge(embedding).predictions, strict=True
        ):
            np.testing.assert_allclose(ours.probabilities, theirs.probabilities, atol=1e-3)
            np.testing.assert_allclose(ours.novelty, theirs.novelty, rtol=1e-3, atol=1e-2)


def _look(model: Model) -> Callable[[NDArray[np.uint8]], View]:
    return model.look


def _look_and_offer(model: Model) -> Callable[[NDArray[np.uint8]], View]:
    """A look and what follows each: the gear's judgement and the selection's ranks."""
    striking, selector = Striking(GearSettings()), Selector(SelectionSettings(), ["camera"])
    seen = 0

    def look(frame: NDArray[np.uint8]) -> View:
        nonlocal seen
        view = model.look(frame)
        seen += 1
        striking.judge(view.predictions)
        selector.offer(Candidate("camera", seen * 200_000_000, view.embedding, view.predictions, None))
        return view

    return look


def _alternate(
    looks: dict[str, Callable[[NDArray[np.uint8]], View]], frames: list[NDArray[np.uint8]], rounds: int
) -> dict[str, float]:
    """CPU seconds of a look of each variant: the median over rounds, in which every variant sees the same frames."""
    spent_s: dict[str, list[float]] = {name: [] for name in looks}
    for number in range(rounds + 1):
        for name, look in looks.items():
            began_s = time.process_time()
            for frame in frames[number % 2 :: 2]:
                look(frame)
            if number:  # the first warms up
                spent_s[name].append((time.process_time() - began_s) / len(frames[number % 2 :: 2]))
    return {name: float(np.median(times)) for name, times in spent_s.items()}
