"""Does a release answer here what it answered at the centre, and how fast? Tried before it sees a camera.

Compares the models as they run on this box (its provider, its kernels, its precision) with the golden layer of the
release; a release without one is tried for numbers that are numbers.
"""

import math
import time
from pathlib import Path
from typing import Final

import numpy as np

from common.errors import EnvironmentFault, OperatorError
from common.golden import Golden, decode_golden, draw_inputs
from edge.perception import Model, View
from edge.tally import is_finite

PASSES: Final = 5
"""The fastest counts: what else the machine does can only slow a pass down."""
TRIES: Final = 4
"""Measured again before a release is called slow: a busy box can be slow for all of one model's passes."""
SLACK_S: Final = 0.02
"""A pass may take so much longer whatever the ratio: with small models the ratio is of noise."""


def read_golden(path: Path) -> Golden:
    """The golden layer of a release.

    Raises:
        EnvironmentFault: it cannot be read.
        WireError: it is none.
    """
    try:
        return decode_golden(path.read_bytes())
    except OSError as error:
        raise EnvironmentFault(f"Cannot read {path}: {error.strerror or error}", "Check the disk.") from error


def self_test(model: Model, golden: Golden | None, site_id: str, tolerance: float) -> float:
    """Run the golden inputs.

    Args:
        tolerance: how far a probability may be off, and the cosine of an embedding from 1.

    Returns:
        The largest difference found.

    Raises:
        OperatorError: the model fails on them, or says something else than it should; says what and by how much.
    """
    pictures = golden.pictures() if golden else draw_inputs()
    try:
        views = [model.look(picture) for picture in pictures]
    except Exception as error:  # ONNX Runtime's errors share no public base but Exception
        raise OperatorError(f"release {model.release_id} fails on the golden inputs ({error})", _HINT) from error
    if not all(is_finite(view.embedding, view.predictions) for view in views):
        raise OperatorError(f"release {model.release_id} answers the golden inputs with numbers that are none", _HINT)
    if golden is None:
        return 0.0
    worst, where = max(_differences(model, golden, views, site_id), default=(0.0, ""))
    if worst > tolerance:
        raise OperatorError(
            f"{where} of release {model.release_id} is {worst:.3f} off what it answers at the centre"
            f" ({tolerance:g} is tolerated)",
            _HINT,
        )
    return worst


_HINT = "Its models do not run here as they should: try another compute.provider or precision (docs/edge.md)."


def _differences(model: Model, golden: Golden, views: list[View], site_id: str) -> list[tuple[float, str]]:
    """How far each part is off, with its name."""
    found = []
    expected = golden.embeddings_of(model.backbone.hash)
    if expected is not None:
        here = np.stack([view.embedding[: expected.shape[1]] for view in views])
        norms = np.linalg.norm(here, axis=1) * np.linalg.norm(expected, axis=1)
        cosines = np.where(norms > 0, (here * expected).sum(axis=1) / np.maximum(norms, 1e-12), 1.0)
        found.append((float(1 - cosines.min()), "the embedding"))
    for number, scenario in enumerate(model.manifest.scenarios):
        wanted = golden.probabilities_of(model.backbone.hash, scenario.head_for(site_id).hash)
        if wanted is not None:
            said = np.array([view.predictions[number].probabilities for view in views])
            found.append((float(np.abs(said - wanted).max()), f"scenario {scenario.name!r}"))
    return found


def check_pace(new: Model, old: Model, latency_ratio: float) -> None:
    """Compare the fastest of some looks of both.

    Raises:
        OperatorError: the new one is too slow.
    """
    new_s = old_s = math.inf
    for _ in range(TRIES):
        new_s, old_s = min(new_s, _pass_s(new)), min(old_s, _pass_s(old))
        if new_s <= max(latency_ratio * old_s, old_s + SLACK_S):
            return
    raise OperatorError(
        f"a look of release {new.release_id} takes {1e3 * new_s:.0f} ms here, {new_s / old_s:.1f} times that of"
        f" {old.release_id}",
        "If it may be so slow, raise install.latency_ratio.",
    )


def _pass_s(model: Model) -> float:
    side_px = model.backbone.input_px
    noise = np.random.default_rng(0).integers(0, 255, (side_px, side_px, 3), dtype=np.uint8)
    taken_s = []
    for _ in range(PASSES):
        began_s = time.perf_counter()
        model.look(noise)
        taken_s.append(time.perf_counter() - began_s)
    return min(taken_s)
