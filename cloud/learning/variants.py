"""From the backbone and the datasets' pictures to a variant in the registry, with what the gate will judge it by."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud.learning.datasets import Catalogue, Item, read_folder
from cloud.learning.quantise import CALIBRATION_MAX, GoldEmbeddings, mean_cosine, quantise, write_gold
from cloud.registry import Registry
from common.backbone import Backbone, time_pass_s
from common.errors import OperatorError
from common.manifest import Layer
from common.pictures import read_picture


@dataclass(frozen=True, slots=True)
class MadeVariant:
    """What came of it."""

    layer: Layer
    speedup: float
    """Time of a pass on the float backbone over that on the variant, on this machine."""
    cosine: float
    """Mean cosine to the float embeddings of the gold pictures."""
    gold: int

    def summary(self) -> dict[str, object]:
        """Plain values."""
        return {
            "layer": self.layer.hash,
            "bytes": self.layer.size_bytes,
            "speedup": round(self.speedup, 3),
            "cosine": round(self.cosine, 5),
            "gold": self.gold,
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
    steps = max(1, len(rest) // CALIBRATION_MAX)  # spread over all scenes
    data = quantise(path.read_bytes(), [read_picture(item.path) for item in rest[::steps][:CALIBRATION_MAX]], backbone)
    made = registry.put(data)
    registry.note(made, "variant", parent=layer.hash, origin="static int8 of its parent")
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
        made, time_pass_s(backbone) / time_pass_s(variant), mean_cosine(on_float, embeddings), len(names)
    )


def _part(catalogue: Catalogue, layer: Layer, items: Sequence[Item]) -> tuple[dict[bytes, Item], list[Item]]:
    """The gold pictures by id, and those to calibrate with."""
    is_gold: dict[bytes, bool] = {}
    for dataset in catalogue.datasets():
        if dataset.backbone == layer.hash:
            is_gold |= dict(zip(dataset.ids, dataset.is_gold.tolist(), strict=True))
    gold, rest = {}, []
    for item in items:
        name = hashlib.blake2b(item.path.read_bytes(), digest_size=16).digest()
        if is_gold.get(name):
            gold[name] = item
        elif name in is_gold:
            rest.append(item)
    if not gold:
        raise OperatorError(
            "none of these pictures is a gold picture of a dataset", "Add them first: `headframe cloud dataset add`."
        )
    return gold, rest
