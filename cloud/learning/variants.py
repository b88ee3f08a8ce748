"""From the backbone and the datasets' pictures to a variant in the registry, with what the gate will judge it by.

Where gateways have a variant of the backbone that this one was fine-tuned from, the new variant is made in that one's
numbers and travels as a small delta (`cloud.learning.requantise`), as long as that is no worse than one from scratch.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from cloud.learning.curvature import input_moments
from cloud.learning.datasets import Catalogue, Item, picture_id, read_folder
from cloud.learning.export import read_head
from cloud.learning.heads import HeadWeights
from cloud.learning.quantise import (
    CALIBRATION_MAX,
    GoldEmbeddings,
    embed_all,
    fold,
    mean_cosine,
    quantise,
    write_gold,
)
from cloud.learning.requantise import Requantised, Requantiser, Yardstick, coarsest, unlike
from cloud.registry import Registry, delta_of
from common import manifest as keys
from common.backbone import Backbone, time_pass_s
from common.errors import OperatorError
from common.manifest import SHARED, Layer
from common.pictures import read_picture

Picture = NDArray[np.uint8]
JUDGED_MAX: Final = 200  # pictures on which a variant is compared with one from scratch
MOMENTS: Final = 64  # pictures whose feature maps say which weights matter


@dataclass(frozen=True, slots=True)
class Succession:
    """A variant, and how gateways get it that have the one before."""

    data: bytes
    base: Layer | None = None
    """The one before; None: there is none."""
    delta: bytes = b""
    step: int = 0
    """Codes that weights move by at once (`cloud.learning.requantise`); 0: it was quantised from scratch."""
    why: str = ""
    """… and why."""


@dataclass(frozen=True, slots=True)
class MadeVariant:
    """What came of it."""

    layer: Layer
    speedup: float
    """Time of a pass on the float backbone over that on the variant, on this machine."""
    cosine: float
    """Mean cosine to the float embeddings of the gold pictures."""
    gold: int
    succession: Succession

    def summary(self) -> dict[str, object]:
        """Plain values."""
        return {
            "layer": self.layer.hash,
            "bytes": self.layer.size_bytes,
            "speedup": round(self.speedup, 3),
            "cosine": round(self.cosine, 5),
            "gold": self.gold,
            "base": self.succession.base.hash if self.succession.base else "",
            "delta_bytes": len(self.succession.delta),
            "code_step": self.succession.step,
            "from_scratch": self.succession.why,
        }


def make_variant(
    registry: Registry,
    catalogue: Catalogue,
    folders: Sequence[Path],
    split: str | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> MadeVariant:
    """Quantise the backbone that releases stand on, and embed the gold pictures with it.

    Args:
        folders: of pictures whose datasets are in the catalogue: their gold pictures judge, others calibrate.

    Raises:
        OperatorError: the pictures are in no dataset, or too few.
    """
    layer, path = registry.backbone()
    gold, rest = _part(catalogue, layer, [item for folder in folders for item in read_folder(folder, split)])
    backbone = Backbone.open(path)
    seen = _spread(rest, CALIBRATION_MAX)
    others = [item for item in rest if item not in seen] or rest
    pictures = [_read(items, backbone) for items in (seen, _spread(others, JUDGED_MAX))]
    succession = _succeed(registry, backbone, path, *pictures)
    made = registry.put(succession.data)
    registry.note(
        made,
        "variant",
        parent=layer.hash,
        origin="static int8 of its parent",
        parameters={"base": succession.base.hash if succession.base else "", "code_step": succession.step},
    )
    if succession.base:
        registry.put_delta(succession.base, made, succession.delta)
    variant = Backbone.open(registry.layer_path(made.hash))
    embeddings = np.zeros((len(gold), variant.dimension), np.float32)
    on_float = np.zeros_like(embeddings)
    names = list(gold)
    for row, name in enumerate(names):
        picture = read_picture(gold[name].path)
        embeddings[row], on_float[row] = variant.embed(picture), backbone.embed(picture)
        progress(row + 1, len(names))
    write_gold(
        catalogue.folder,
        GoldEmbeddings(made.hash, made.size_bytes, variant.precision, layer.hash, tuple(names), embeddings),
    )
    return MadeVariant(
        made, time_pass_s(backbone) / time_pass_s(variant), mean_cosine(on_float, embeddings), len(names), succession
    )


def _succeed(
    registry: Registry, backbone: Backbone, path: Path, seen: Sequence[Picture], judged: Sequence[Picture]
) -> Succession:
    """The variant in the numbers of the one before, or one from scratch."""
    fresh = quantise(path.read_bytes(), seen, backbone)
    before = registry.variant_before(backbone.hash, keys.INT8)
    if before is None:
        return Succession(fresh, why="gateways have no variant of a backbone that this one was made from")
    parent, layer = before
    published, old = (registry.layer_path(name).read_bytes() for name in (layer.hash, parent))
    active = registry.active()
    heads = [
        read_head(registry.layer_path(scenario.heads[SHARED].hash).read_bytes())
        for scenario in (active.scenarios if active else ())
    ]
    found = keep_scales(published, old, path.read_bytes(), fresh, heads, seen, judged)
    if isinstance(found, str):
        return Succession(fresh, layer, delta_of(published, fresh), why=found)
    return Succession(found.data, layer, found.delta(published), found.step)


def keep_scales(
    published: bytes,
    old: bytes,
    new: bytes,
    fresh: bytes,
    heads: Sequence[HeadWeights],
    seen: Sequence[Picture],
    judged: Sequence[Picture],
) -> Requantised | str:
    """The variant of a backbone in the numbers of a published one, or why there is none that passes.

    Args:
        published: the int8 variant of `old`.
        old: the backbone before, and `new` the one that a variant is wanted of.
        fresh: its variant from scratch, which the other one may not be worse than.
        heads: that stand on it.
        seen: pictures that say how its layers are used.
        judged: pictures on which the variant is compared.
    """
    before, after = fold(old), fold(new)
    reason = unlike(published, before, after)
    if reason:
        return reason
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "layer.onnx"

        def opened(data: bytes) -> Backbone:
            path.write_bytes(data)
            return Backbone.open(path)

        network = opened(new)
        moments = input_moments(after, (network.tensor(picture) for picture in seen[:MOMENTS]))
        yardstick = Yardstick(heads, embed_all(network, judged), embed_all(opened(fresh), judged))
        requantiser = Requantiser(published, before, after, network.hash, moments)
        found = coarsest(requantiser, lambda data: yardstick.holds(embed_all(opened(data), judged)))
    return found or "none in the numbers of the one before was as near to float"


def _spread(items: Sequence[Item], most: int) -> list[Item]:
    """At most so many, over all scenes."""
    return list(items[:: max(1, len(items) // most)][:most])


def _read(items: Sequence[Item], backbone: Backbone) -> list[Picture]:
    """In the backbone's size: hundreds of large ones are too much for memory, and it sees no more of them."""
    return [backbone.fit(read_picture(item.path)) for item in items]


def _part(catalogue: Catalogue, layer: Layer, items: Sequence[Item]) -> tuple[dict[bytes, Item], list[Item]]:
    """The gold pictures by id, and those to calibrate with."""
    is_gold: dict[bytes, bool] = {}
    for dataset in catalogue.datasets():
        if dataset.backbone == layer.hash:
            is_gold |= dict(zip(dataset.ids, dataset.is_gold.tolist(), strict=True))
    gold, rest = {}, []
    for item in items:
        name = picture_id(item.path.read_bytes())
        if is_gold.get(name):
            gold[name] = item
        elif name in is_gold:
            rest.append(item)
    if not gold:
        raise OperatorError(
            "none of these pictures is a gold picture of a dataset", "Add them first: `headframe cloud dataset add`."
        )
    return gold, rest
