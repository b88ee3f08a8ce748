"""Makes the golden layer of a release: what its models answer here, for each gateway to compare with."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from common import manifest as keys
from common.backbone import Backbone, open_session
from common.golden import FEATURES, Golden, GoldenHead, draw_inputs, encode_golden
from common.manifest import SHARED, Layer, Scenario, Variant


def make_golden(
    backbone: Layer,
    variants: Sequence[Variant],
    scenarios: Sequence[Scenario],
    layer_path: Callable[[str], Path],
) -> bytes:
    """Run the drawn inputs through the backbone, each of its variants, and every shared head on each of them.

    Raises:
        OperatorError: a layer is missing or no model.
    """
    pictures = draw_inputs()
    heads = [
        (name, open_session(layer_path(name), "head")[0])
        for name in dict.fromkeys(scenario.heads[SHARED].hash for scenario in scenarios)
    ]
    embeddings: dict[str, bytes] = {}
    answers: list[GoldenHead] = []
    for name in (backbone.hash, *(variant.layer.hash for variant in variants)):
        model = Backbone.open(layer_path(name))
        found = np.stack([model.embed(picture) for picture in pictures])  # (inputs, d)
        embeddings[name] = found[:, :FEATURES].astype("<f4").tobytes()
        for head, session in heads:
            (probabilities,) = session.run([keys.PROBABILITIES], {keys.EMBEDDING: found})
            answers.append(GoldenHead(name, head, np.asarray(probabilities, "<f4").tobytes()))
    return encode_golden(Golden(pictures.tobytes(), embeddings, tuple(answers)))
