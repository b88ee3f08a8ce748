"""What the model says about a frame: the backbone once, every scenario's head on its embedding, detectors beside it.

Loads a release's layers and checks that they belong together; leaves fetching and trust to `edge.installer`. Heads of
the analytic form are answered together (`edge.heads`) after a trial has shown that they say what their files say.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from common import manifest as keys
from common.backbone import Backbone, Opener, open_session
from common.errors import OperatorError, WireError
from common.manifest import Layer, Manifest
from common.messages import Prediction
from common.weights import read_weights
from edge.detectors import Detector
from edge.frames import cut_zone
from edge.heads import AnalyticForm, HeadStack
from edge.judge import Seen

log = logging.getLogger(__name__)

__all__ = ["Backbone", "Head", "Model", "View", "cut_zone", "load_model"]


PROBES: Final = 4
"""Embeddings on which a head's stacked numbers are held against its file: the first is all zeros."""
PROBE_TOLERANCE: Final = 2e-3
"""Both are float32 sums over a thousand features in another order; a graph that computes something else is far off."""


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
        form = metadata.get(keys.FORM)
        self._form = self._read_form(path, form == keys.RIDGE) if form in (keys.ANALYTIC, keys.RIDGE) else None

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

    def stackable(self) -> AnalyticForm | None:
        """Its numbers, where the file declares the analytic form and a trial shows that it computes what they say."""
        form = self._form
        if form is None or self._says_the_same(form):
            return form
        log.warning("head %s is not of the form it declares: it runs in a session of its own", self.hash[:12])
        return None

    def _read_form(self, path: Path, is_ridge: bool) -> AnalyticForm | None:
        try:
            return AnalyticForm.of(self.scenario, self.classes, read_weights(path.read_bytes()), is_ridge)
        except WireError as error:
            log.warning("the weights of %s cannot be read: %s", path, error)
            return None

    def _says_the_same(self, form: AnalyticForm) -> bool:
        stack = HeadStack([form])
        probes = np.random.default_rng(0).normal(0, 1, (PROBES, form.directions.shape[0])).astype(np.float32)
        probes[0] = 0
        for probe in probes:
            said, (stacked,) = self.predict(probe), stack.judge(probe)
            if abs(stacked.novelty - said.novelty) > PROBE_TOLERANCE * (1 + abs(said.novelty)):
                return False
            if not np.allclose(stacked.probabilities, said.probabilities, rtol=0, atol=PROBE_TOLERANCE):
                return False
        return True


_HINT = "Use a layer exported by the centre (docs/cloud.md, 'Bring your own backbone')."


@dataclass(frozen=True, slots=True)
class View:
    """What the model saw in a frame."""

    embedding: NDArray[np.float32]
    predictions: tuple[Prediction, ...]
    sightings: tuple[Seen, ...] = ()
    """What each detector of the release saw."""
    patches: NDArray[np.float32] | None = None
    """The feature map (d, h, w) whose mean the embedding is, where it was asked for and there is one."""


Fit = Callable[[int], NDArray[np.uint8]]
"""The same frame in its own shape, fitted into a square of so many pixels."""


class Model:
    """A release as it runs at a site: one backbone, one head per scenario, detectors beside them."""

    def __init__(
        self,
        release_id: str,
        manifest: Manifest,
        backbone: Backbone,
        heads: tuple[Head, ...],
        detectors: tuple[Detector, ...] = (),
    ) -> None:
        self.release_id, self.manifest, self.backbone = release_id, manifest, backbone
        self.detectors = detectors
        self._order = tuple(head.scenario for head in heads)
        forms = [(head, head.stackable()) for head in heads]
        self._stack = HeadStack([form for _, form in forms if form])
        self._others = tuple(head for head, form in forms if form is None)

    def look(self, image: NDArray[np.uint8], fit: Fit | None = None, *, with_patches: bool = False) -> View:
        """Embed a picture uint8 (H, W, 3) BGR once, ask every head, and every detector.

        Args:
            fit: what the detectors look at, since their input is another one; by default the same picture.
            with_patches: keep the feature map.
        """
        if with_patches:
            embedding, patches = self.backbone.embed_patches(image)
            view = replace(self.judge(embedding), patches=patches)
        else:
            view = self.judge(self.backbone.embed(image))
        if not self.detectors:
            return view
        seen = []
        for detector in self.detectors:
            sighting = detector.detect(fit(detector.input_px) if fit else image)
            seen.append(Seen(detector.declared, detector.score_min, sighting.boxes, sighting.faint))
        return replace(view, sightings=tuple(seen))

    def judge(self, embedding: NDArray[np.float32]) -> View:
        """Ask every head about an embedding float32 (d,)."""
        stacked = self._stack.judge(embedding)
        if not self._others:
            return View(embedding, stacked)
        said = {item.scenario: item for item in (*stacked, *(head.predict(embedding) for head in self._others))}
        return View(embedding, tuple(said[name] for name in self._order))


def load_model(
    release_id: str,
    manifest: Manifest,
    layer_path: Callable[[str], Path],
    site_id: str,
    loaded: Backbone | None = None,
    *,
    opener: Opener = open_session,
    variant: str = "",
) -> Model:
    """Load the layers that `site_id` runs, and try them once on an empty picture.

    Args:
        loaded: a backbone in memory, used again when the release has the same: a head-only release loads heads only.
        opener: opens backbone and detectors (`edge.providers`); heads are small and run on the CPU.
        variant: hash of the variant of the backbone to run (`edge.variants`); empty: the float one.

    Raises:
        OperatorError: a layer is missing, no ONNX model, of another kind, or does not fit the others; names the file.
        WireError: a layer's bytes do not match its hash.
    """
    wanted = next((item.layer for item in manifest.variants if item.layer.hash == variant), manifest.backbone)
    if loaded is not None and loaded.hash == wanted.hash:
        backbone = loaded
    else:
        backbone = open_backbone(manifest, wanted, layer_path, opener)
    heads = []
    for scenario in manifest.scenarios:
        layer = scenario.head_for(site_id)
        head = Head.open(layer_path(layer.hash), manifest.backbone.hash)
        _check_hash(head.hash, layer, layer_path)
        if head.scenario != scenario.name:
            raise OperatorError(f"{layer_path(layer.hash)} is a head for {head.scenario}, not {scenario.name}", _HINT)
        heads.append(head)
    detectors = []
    for declared in manifest.detectors:
        detectors.append(Detector.open(declared, layer_path(declared.layer.hash), opener))
        _check_hash(detectors[-1].hash, declared.layer, layer_path)
    try:
        model = Model(release_id, manifest, backbone, tuple(heads), tuple(detectors))
        model.look(np.zeros((backbone.input_px, backbone.input_px, 3), np.uint8))
    except OperatorError:
        raise
    except Exception as error:  # ONNX Runtime's errors share no public base but Exception
        raise OperatorError(f"the layers of release {release_id} do not run together ({error})", _HINT) from error
    return model


def open_backbone(
    manifest: Manifest, layer: Layer, layer_path: Callable[[str], Path], opener: Opener = open_session
) -> Backbone:
    """The backbone of a release, or one of its variants.

    Raises:
        OperatorError: not a backbone, or a variant of another one.
        WireError: the bytes do not match the hash.
    """
    backbone = Backbone.open(layer_path(layer.hash), opener)
    _check_hash(backbone.hash, layer, layer_path)
    if layer != manifest.backbone and backbone.stands_for != manifest.backbone.hash:
        raise OperatorError(
            f"{layer_path(layer.hash)} is a variant of {backbone.stands_for[:12]}, not of the release's backbone", _HINT
        )
    return backbone


def _check_hash(found: str, layer: Layer, layer_path: Callable[[str], Path]) -> None:
    if found != layer.hash:
        raise WireError(f"{layer_path(layer.hash)} does not match its hash", "It is fetched again with the release.")
