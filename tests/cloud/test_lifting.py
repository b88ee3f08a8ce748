"""A lifted backbone says what its formula says, and costs one bit a weight to send."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from cloud.finetuning.graph import Depth, Network
from cloud.learning.lifting import WIDTH_MAX, lift_backbone, place, random_features, random_signs
from cloud.learning.quantise import embed_all, mean_cosine, quantise
from cloud.registry import delta_of
from common.backbone import Backbone
from common.delta import apply_delta
from common.errors import OperatorError

DIMENSION, WIDTH = 12, 64
PICTURES = np.random.default_rng(3).integers(0, 255, (40, 8, 8, 3), dtype=np.uint8)


def opened(folder: Path, data: bytes) -> Backbone:
    path = folder / "layer.onnx"
    path.write_bytes(data)
    return Backbone.open(path)


@pytest.fixture
def plain(tiny_backbone: Callable[..., bytes]) -> bytes:
    return tiny_backbone(DIMENSION)


def test_the_file_computes_the_features_of_the_formula(tmp_path: Path, plain: bytes) -> None:
    before = np.stack([opened(tmp_path, plain).embed(picture) for picture in PICTURES])
    origin, length = place(before)
    signs = random_signs(DIMENSION, WIDTH, 7)
    lifted = opened(tmp_path, lift_backbone(plain, signs, origin, length))
    after = np.stack([lifted.embed(picture) for picture in PICTURES])
    np.testing.assert_allclose(after, random_features(before, signs, origin, length), atol=1e-4)
    assert lifted.dimension == WIDTH
    assert not lifted.has_patches, "the embedding is no mean of a map any more"
    assert 0.3 < (after > 0).mean() < 0.7, "the origin is where the pictures are: half of the features are on"
    assert np.array_equal(signs, random_signs(DIMENSION, WIDTH, 7))
    assert not np.array_equal(signs, random_signs(DIMENSION, WIDTH, 8))


def test_it_is_a_small_delta_of_what_the_gateways_hold(plain: bytes) -> None:
    signs = random_signs(DIMENSION, WIDTH_MAX, 0)
    made = lift_backbone(plain, signs, np.zeros(DIMENSION), 1.0)
    delta = delta_of(plain, made)
    assert apply_delta(plain, delta, len(made)) == made
    assert len(delta) < signs.size / 8 * 1.3 + 1_000


def test_a_lifted_backbone_is_trained_and_quantised_like_any_other(tmp_path: Path, plain: bytes) -> None:
    before = np.stack([opened(tmp_path, plain).embed(picture) for picture in PICTURES])
    made = lift_backbone(plain, random_signs(DIMENSION, WIDTH, 7), *place(before))
    lifted = opened(tmp_path, made)
    wanted = np.stack([lifted.embed(picture) for picture in PICTURES])
    tensors = torch.from_numpy(np.concatenate([lifted.tensor(picture) for picture in PICTURES]))
    np.testing.assert_allclose(Network(made, Depth.FULL)(tensors).detach().numpy(), wanted, atol=1e-4)
    int8 = opened(tmp_path, quantise(made, PICTURES, lifted))
    assert mean_cosine(wanted, embed_all(int8, PICTURES)) > 0.99


def test_what_cannot_be_lifted_is_said(plain: bytes) -> None:
    signs, origin = random_signs(DIMENSION, WIDTH, 0), np.zeros(DIMENSION)
    with pytest.raises(OperatorError, match="lifted already"):
        lift_backbone(lift_backbone(plain, signs, origin, 1.0), random_signs(WIDTH, 8, 0), np.zeros(WIDTH), 1.0)
    with pytest.raises(OperatorError, match="does not fit"):
        lift_backbone(plain, random_signs(DIMENSION + 1, WIDTH, 0), origin, 1.0)
    with pytest.raises(OperatorError, match="does not fit"):
        lift_backbone(plain, random_signs(DIMENSION, WIDTH_MAX + 1, 0), origin, 1.0)
    with pytest.raises(OperatorError, match="all alike"):
        lift_backbone(plain, signs, *place(np.ones((5, DIMENSION))))
