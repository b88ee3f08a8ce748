"""Which variant of a backbone this box runs best: a short trial of each, when a release is installed.

The float backbone is what heads and statistics stand on; a variant in a release has passed the centre's drift gate
(`cloud.learning.quantise`). Here only speed decides: int8 is twice as fast on one processor and slower on the next.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from common.backbone import Backbone, Opener, time_pass_s
from common.errors import HeadframeError
from common.manifest import FLOAT, Layer, Manifest
from edge.perception import open_backbone

log = logging.getLogger(__name__)

WORTHWHILE: Final = 0.9
"""A variant must take at most this share of the float backbone's time: less is not worth any drift."""


@dataclass(frozen=True, slots=True)
class VariantChoice:
    """The layer to run; `hash` is empty for the float backbone."""

    hash: str
    reason: str


def choose_variant(
    manifest: Manifest,
    layer_path: Callable[[str], Path],
    opener: Opener,
    wanted: str = "auto",
    timer: Callable[[Backbone], float] | None = None,
) -> VariantChoice:
    """Try every variant of the backbone once. One that does not load is no reason to refuse a release: float is left.

    Args:
        wanted: `auto`, or the precision that is to run where the release has it.
        timer: seconds of a pass; by default `common.backbone.time_pass_s`.

    Raises:
        OperatorError: the float backbone itself does not load.
        WireError: its bytes do not match its hash.
    """
    if wanted == FLOAT:
        return VariantChoice("", "float is asked for")
    if not manifest.variants:
        return VariantChoice("", "the release has no variant of its backbone")
    if wanted != "auto":
        found = next((item.layer.hash for item in manifest.variants if item.precision == wanted), "")
        return VariantChoice(found, f"{wanted} is asked for" if found else f"the release has no {wanted} variant")
    measure = timer or time_pass_s
    float_s = measure(open_backbone(manifest, manifest.backbone, layer_path, opener))
    said, best, best_s = [f"{FLOAT} takes {1e3 * float_s:.1f} ms"], "", WORTHWHILE * float_s
    for item in manifest.variants:
        taken_s = _measured(manifest, item.layer, layer_path, opener, measure)
        if taken_s is None:
            said.append(f"{item.precision} does not load")
            continue
        said.append(f"{item.precision} takes {1e3 * taken_s:.1f} ms")
        if taken_s <= best_s:
            best, best_s = item.layer.hash, taken_s
    return VariantChoice(best, ", ".join(said))


def _measured(
    manifest: Manifest,
    layer: Layer,
    layer_path: Callable[[str], Path],
    opener: Opener,
    measure: Callable[[Backbone], float],
) -> float | None:
    try:
        return measure(open_backbone(manifest, layer, layer_path, opener))
    except HeadframeError as error:
        log.warning("variant %s is not used: %s", layer.hash[:12], error)
        return None
