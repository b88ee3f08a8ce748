"""Fine-tunes of the default backbone on pictures of a folder, as the product makes and snaps them; for benchmarks."""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import Progress

from cloud.finetuning.examples import Example, Picture
from cloud.finetuning.tuning import Recipe, Tuned, Tuning
from cloud.learning.curvature import input_moments
from cloud.learning.datasets import Item
from cloud.learning.heads import HeadWeights
from cloud.learning.snapping import Snapped, coarsest, keeps
from common.backbone import Backbone
from common.pictures import read_picture
from simulations.bench._sites import embed_items

MOMENT_PICTURES = 64


def tune(base: bytes, items: Sequence[Item], recipe: Recipe) -> Tuned:
    """Train on these pictures; nothing is kept between runs."""
    with (
        TemporaryDirectory(prefix="headframe-bench-") as folder,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task(f"{recipe.depth.value}, {len(items)} pictures", total=recipe.epochs)
        tuning = Tuning(_write(folder, base), [_example(item) for item in items], recipe)
        return tuning.run(lambda done, _: progress.update(task, completed=done))


def snap_tuned(base: bytes, tuned: bytes, head: HeadWeights, judged: Sequence[Item], seen: Sequence[Item]) -> Snapped:
    """The file that would ship: coarsest steps on which the head says what it says on the tuned one.

    Args:
        head: solved on the tuned backbone.
        judged: pictures that it is asked about.
        seen: pictures whose feature maps say which weights matter.
    """
    wanted = head.probabilities(embed(tuned, judged))
    with TemporaryDirectory(prefix="headframe-bench-") as folder:
        backbone = Backbone.open(_write(folder, tuned))
    moments = input_moments(tuned, (backbone.tensor(read_picture(item.path)) for item in seen[:MOMENT_PICTURES]))
    return coarsest(base, tuned, lambda model: keeps(head, embed(model, judged), wanted), moments)


def embed(model: bytes, items: Sequence[Item]) -> NDArray[np.float32]:
    """Embeddings (n, d) by ONNX Runtime, as a gateway makes them."""
    return embed_items("embedding", items, model).embeddings


def _write(folder: str, data: bytes) -> Path:
    path = Path(folder) / "backbone.onnx"
    path.write_bytes(data)
    return path


def _example(item: Item) -> Example:
    def read() -> Picture:
        return read_picture(item.path)

    return Example(str(item.path).encode(), "belt", item.label, item.site, read)
