"""What the model says about a frame: the backbone once, every scenario's head on its embedding.

Loads a release's layers and checks that they belong together; leaves fetching and trust to `edge.installer`.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from common import manifest as keys
from common.backbone import Backbone, open_session
from common.errors import OperatorError, WireError
from common.manifest import Layer, Manifest
from common.messages import Prediction
from edge.frames import cut_zone

__all__ = ["Backbone", "Head", "Model", "View", "cut_zone", "load_model"]


class Head:
    """One scenario's head: probabilities and novelty of an embedding."""

    def __init__(self, session: onnxruntime.InferenceSession, metadata: dict[str, str], name: str, path: Path) -> None:
        self._session = session
        self.hash = name
        try:
            self.scenario = metadata[keys.SCENARIO]
            self.classes = tuple(str(label) for label in json.loads(metadata[keys.CLASSES]))
            self.backbone = metadata[keys.BACKBONE]
        except (KeyError, ValueError, TypeError) as error:
            raise OperatorError(f"{path} lacks what a head declares ({error})", _HINT) from error
        outputs = {item.name for item in session.get_outputs()}
        if not {keys.PROBABILITIES, keys.NOVELTY} <= outputs:
            raise OperatorError(f"{path} has the outputs {', '.join(sorted(outputs))}", _HINT)

    @classmethod
    def open(cls, path: Path, backbone_hash: str) -> "Head":
        """Load a head.

        Raises:
            OperatorError: not a head, or one for another backbone; names the file.
        """
        session, metadata, name = open_session(path, "head")
        head = cls(session, metadata, name, path)
        if head.backbone != backbone_hash:
            raise OperatorError(
                f"{path} is a head for backbone {head.backbone[:12]}, the release has backbone {backbone_hash[:12]}",
                "Release heads only with the backbone they were solved on.",
            )
        return head

    def predict(self, embedding: NDArray[np.float32]) -> Prediction:
        """What this head says about an embedding float32 (d,)."""
        probabilities, novelty = self._session.run(
            [keys.PROBABILITIES, keys.NOVELTY], {keys.EMBEDDING: embedding[None]}
        )
        return Prediction(self.scenario, self.classes, tuple(map(float, probabilities[0])), float(novelty[0]))


_HINT = "Use a layer exported by the centre (docs/cloud.md, 'Bring your own backbone')."


@dataclass(frozen=True, slots=True)
class View:
    """What the model saw in a frame."""

    embedding: NDArray[np.float32]
    predictions: tuple[Prediction, ...]


class Model:
    """A release as it runs at a site: one backbone, one head per scenario."""

    def __init__(self, release_id: str, manifest: Manifest, backbone: Backbone, heads: tuple[Head, ...]) -> None:
        self.release_id, self.manifest, self.backbone = release_id, manifest, backbone
        self._heads = heads

    def look(self, image: NDArray[np.uint8]) -> View:
        """Embed a picture uint8 (H, W, 3) BGR once, and ask every head."""
        return self.judge(self.backbone.embed(image))

    def judge(self, embedding: NDArray[np.float32]) -> View:
        """Ask every head about an embedding float32 (d,)."""
        return View(embedding, tuple(head.predict(embedding) for head in self._heads))


def load_model(
    release_id: str,
    manifest: Manifest,
    layer_path: Callable[[str], Path],
    site_id: str,
    loaded: Backbone | None = None,
) -> Model:
    """Load the layers that `site_id` runs, and try them once on an empty picture.

    Args:
        loaded: a backbone in memory, used again when the release has the same: a head-only release loads heads only.

    Raises:
        OperatorError: a layer is missing, no ONNX model, of another kind, or does not fit the others; names the file.
        WireError: a layer's bytes do not match its hash.
    """
    if loaded is not None and loaded.hash == manifest.backbone.hash:
        backbone = loaded
    else:
        backbone = Backbone.open(layer_path(manifest.backbone.hash))
        _check_hash(backbone.hash, manifest.backbone, layer_path)
    heads = []
    for scenario in manifest.scenarios:
        layer = scenario.head_for(site_id)
        head = Head.open(layer_path(layer.hash), backbone.hash)
        _check_hash(head.hash, layer, layer_path)
        if head.scenario != scenario.name:
            raise OperatorError(f"{layer_path(layer.hash)} is a head for {head.scenario}, not {scenario.name}", _HINT)
        heads.append(head)
    model = Model(release_id, manifest, backbone, tuple(heads))
    try:
        model.look(np.zeros((backbone.input_px, backbone.input_px, 3), np.uint8))
    except Exception as error:  # ONNX Runtime's errors share no public base but Exception
        raise OperatorError(f"the layers of release {release_id} do not run together ({error})", _HINT) from error
    return model


def _check_hash(found: str, layer: Layer, layer_path: Callable[[str], Path]) -> None:
    if found != layer.hash:
        raise WireError(f"{layer_path(layer.hash)} does not match its hash", "It is fetched again with the release.")
