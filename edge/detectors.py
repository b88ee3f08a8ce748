"""A detector of the group's own on ONNX Runtime: pixels in, boxes out. What its outputs mean is `edge.decoders`'.

A detector is a layer that says by itself how it wants its pixels and what its outputs are (`common.manifest`), so a
gateway runs one that it has never heard of.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import onnxruntime
from numpy.typing import NDArray

from common import manifest as keys
from common.backbone import Opener, open_session
from common.errors import OperatorError
from common.manifest import DetectorLayer
from common.messages import Box
from edge.decoders import Found, Placement, check_shapes, decode, place, suppress

FAINT: Final = 0.5
"""Boxes down to this share of the threshold are kept for the doubts (`edge.doubts`), not reported."""
GREY: Final = 114
"""What is beside a letterboxed picture: what these families are trained with."""
_HINT: Final = "Adopt it with `headframe cloud detector add` (docs/cloud.md, 'Bring your own detector')."


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a detector found in a picture, and what it nearly found; both best first."""

    boxes: tuple[Box, ...] = ()
    faint: tuple[Box, ...] = ()


class Detector:
    """One detector of a release."""

    def __init__(
        self,
        declared: DetectorLayer,
        session: onnxruntime.InferenceSession,
        metadata: dict[str, str],
        name: str,
        path: Path,
    ) -> None:
        self.declared, self.hash = declared, name
        self._session, self._path = session, path
        try:
            self.input_px = int(metadata[keys.INPUT_PX])
            self.score_min, self._overlap_max = float(metadata[keys.SCORE_MIN]), float(metadata[keys.OVERLAP_MAX])
            self.classes = tuple(str(label) for label in json.loads(metadata[keys.CLASSES]))
            self._decoder, self._letterbox = metadata[keys.DECODER], metadata[keys.LETTERBOX]
            self._is_rgb = metadata[keys.CHANNELS] == "rgb"
        except (KeyError, ValueError, TypeError) as error:
            raise OperatorError(f"{path} lacks what a detector declares ({error})", _HINT) from error
        self._outputs = [keys.BOXES, keys.SCORES] if self._decoder == "ssd" else [keys.DETECTIONS]
        missing = set(self._outputs) - {item.name for item in session.get_outputs()}
        if self._decoder not in keys.DECODERS or self._letterbox not in keys.LETTERBOXES or missing:
            raise OperatorError(f"{path} has no decoder {self._decoder!r} or lacks its outputs", _HINT)

    @classmethod
    def open(cls, declared: DetectorLayer, path: Path, opener: Opener = open_session) -> "Detector":
        """Raises:
        OperatorError: not a detector; names the file.
        """
        session, metadata, name = opener(path, "detector")
        return cls(declared, session, metadata, name, path)

    def detect(self, picture: NDArray[np.uint8]) -> Sighting:
        """Look at a picture uint8 (H, W, 3) BGR of any size.

        Raises:
            OperatorError: the outputs are not those of the decoder; names the file. Sizes that a file leaves open are
                known only now, so a release is tried once before it looks (`edge.perception.load_model`).
        """
        height, width = picture.shape[:2]
        placement = place(width, height, self.input_px, self._letterbox)
        batch = self._input(picture, placement)
        raw = self._session.run(self._outputs, {keys.IMAGE: batch})
        outputs = {name: value[0] for name, value in zip(self._outputs, raw, strict=True)}
        self._check(outputs)
        found = suppress(decode(self._decoder, outputs, self.input_px, FAINT * self.score_min), self._overlap_max)
        boxes = self._boxes(found, placement)
        return Sighting(
            tuple(box for box in boxes if box.score >= self.score_min),
            tuple(box for box in boxes if box.score < self.score_min),
        )

    def _check(self, outputs: dict[str, NDArray[np.float32]]) -> None:
        shapes = {name: value.shape for name, value in outputs.items()}
        try:
            check_shapes(self._decoder, shapes, self.input_px, len(self.classes))
        except OperatorError as error:
            raise OperatorError(f"{self._path}: {error.message}", error.hint) from error

    def _input(self, picture: NDArray[np.uint8], placement: Placement) -> NDArray[np.float32]:
        """float32 (1, 3, px, px), pixels 0..255: what mean and scale there are is part of the graph."""
        side = self.input_px
        width = min(side, max(1, int(placement.width * placement.scale_x)))
        height = min(side, max(1, int(placement.height * placement.scale_y)))
        square = np.full((side, side, 3), GREY, np.uint8)
        left, top = int(placement.left), int(placement.top)
        square[top : top + height, left : left + width] = cv2.resize(picture, (width, height))
        ordered = square[:, :, ::-1] if self._is_rgb else square
        return np.ascontiguousarray(ordered.transpose(2, 0, 1)[None], dtype=np.float32)

    def _boxes(self, found: Found, placement: Placement) -> Sequence[Box]:
        corners = placement.to_fractions(found.corners).tolist()
        rows = zip(corners, found.scores.tolist(), found.classes.tolist(), strict=True)
        return [Box(self.declared.name, self.classes[index], score, *corner) for corner, score, index in rows]
