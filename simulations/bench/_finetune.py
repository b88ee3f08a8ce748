"""Fine-tunes of the default backbone on real belts: what `bench deltas` measures the deltas of.

Batch-norm statistics stay frozen: unfrozen they cost accuracy at new sites and change most of the file.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from cloud.learning.datasets import Item, read_picture
from cloud.learning.export import default_network, export_backbone

TRAIN_PX = 128  # the patches' own size; the network is fully convolutional
BATCH = 16
LEARNING_RATE = 2e-4
LAST_BLOCK = ("_blocks.15", "_conv_head", "_bn1")


@dataclass(frozen=True, slots=True)
class Budget:
    """How long a fine-tune trains."""

    steps: int
    seed: int = 0


def fine_tune(kind: str, items: Sequence[Item], budget: Budget) -> bytes:
    """Train with a softmax head that is thrown away, and export the backbone.

    Args:
        kind: `last_block` trains the last block and the last convolution, `full` every weight.
    """
    torch.manual_seed(budget.seed)
    network = default_network()
    for name, parameter in network.named_parameters():
        parameter.requires_grad = kind == "full" or name.startswith(LAST_BLOCK)
    classes = sorted({item.label for item in items})
    head = torch.nn.Linear(1280, len(classes))
    trained = [p for p in network.parameters() if p.requires_grad]
    optimiser = torch.optim.Adam([*trained, *head.parameters()], lr=LEARNING_RATE)
    network.eval()  # freezes the batch-norm statistics; gradients flow all the same
    generator = np.random.default_rng(budget.seed)
    for _ in range(budget.steps):
        rows = generator.choice(len(items), BATCH)
        images = torch.from_numpy(np.stack([scale_picture(items[row], TRAIN_PX) for row in rows]))
        truth = torch.tensor([classes.index(items[row].label) for row in rows])
        features = network.extract_features(images).mean((2, 3))
        loss = torch.nn.functional.cross_entropy(head(features), truth)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return export_backbone(network)


def scale_picture(item: Item, side_px: int) -> NDArray[np.float32]:
    """float32 (3, px, px) RGB, scaled as the default backbone declares."""
    picture = read_picture(item.path)
    shrinks = min(picture.shape[:2]) >= side_px
    resized = cv2.resize(picture, (side_px, side_px), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC)
    return np.ascontiguousarray(((resized[:, :, ::-1].astype(np.float32) - 127) / 128).transpose(2, 0, 1))
