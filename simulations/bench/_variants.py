"""Int8 variants of fine-tuned backbones, as the product makes them from the one before; for benchmarks."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from cloud.learning.datasets import Item
from cloud.learning.heads import HeadWeights
from cloud.learning.quantise import quantise
from cloud.learning.requantise import Requantised
from cloud.learning.variants import keep_scales
from cloud.registry import delta_of
from common.backbone import Backbone
from common.pictures import read_picture


@dataclass(frozen=True, slots=True)
class Successor:
    """The variant of a fine-tuned backbone, from scratch and in the numbers of the published one."""

    fresh: bytes
    fresh_delta: bytes
    data: bytes
    delta: bytes
    step: int
    """0: none in the numbers of the published one was as good."""


class Variants:
    """Those of one backbone and of what it is tuned to.

    Args:
        base: its file.
        seen: pictures that set the ranges.
        judged: pictures on which a variant is compared with one from scratch.
    """

    def __init__(self, base: bytes, seen: Sequence[Item], judged: Sequence[Item]) -> None:
        self._base = base
        self._seen, self._judged = ([read_picture(item.path) for item in items] for items in (seen, judged))
        self.published = self._from_scratch(base)

    def succeed(self, tuned: bytes, head: HeadWeights) -> Successor:
        """The variant that would ship with a fine-tuned backbone on which this head stands."""
        fresh = self._from_scratch(tuned)
        fresh_delta = delta_of(self.published, fresh)
        kept = keep_scales(self.published, self._base, tuned, fresh, [head], self._seen, self._judged)
        if isinstance(kept, Requantised):
            data, delta, step = kept.data, kept.delta(self.published), kept.step
        else:
            data, delta, step = fresh, fresh_delta, 0
        return Successor(fresh, fresh_delta, data, delta, step)

    def _from_scratch(self, data: bytes) -> bytes:
        with TemporaryDirectory(prefix="headframe-bench-") as folder:
            path = Path(folder) / "backbone.onnx"
            path.write_bytes(data)
            return quantise(data, self._seen, Backbone.open(path))
