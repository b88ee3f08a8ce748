"""From a chosen frame to the sample that is sent: its full picture, JPEG, embedding, and who looked at it.

What a frame carries while it competes is small (`edge.frames.Still`); here it becomes a picture again, once, for the
few that were chosen.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from common.errors import HeadframeError
from common.ids import sample_id
from common.messages import Box, Sample
from edge.frames import FileStill, Frame, Picture, Still, Zone, cut_zone
from edge.perception import Model
from edge.selection import Chosen
from edge.settings import EdgeSettings


@dataclass(frozen=True, slots=True)
class Negative:
    """What a candidate carries until it is chosen: what its picture is made from, and who looked at it."""

    still: Still | None
    release_id: str
    backbone: str
    pixel_path: str
    boxes: tuple[Box, ...]
    variant: str
    zone: Zone | None

    @classmethod
    def of(cls, frame: Frame, model: Model, zone: Zone | None, boxes: tuple[Box, ...]) -> "Negative":
        """Of a frame that a model has just looked at."""
        backbone = model.manifest.backbone.hash
        variant = model.backbone.hash if model.backbone.hash != backbone else ""
        path = frame.path + ("/zone" if zone else "")
        return cls(frame.still, model.release_id, backbone, path, boxes, variant, zone)


def develop(choice: Chosen, settings: EdgeSettings, model: Model | None) -> Sample | None:
    """The sample of a chosen frame; None when its packets are gone or damaged.

    Args:
        model: what runs now, for the embedding of a picture that is not the one that was looked at.
    """
    candidate, seen = choice.candidate, choice.candidate.token
    if not isinstance(seen, Negative):
        raise TypeError(f"candidate carries {type(seen).__name__}")
    picture = seen.still.picture() if seen.still else None
    if picture is None:
        return None
    image = cut_zone(picture, seen.zone)
    jpeg = _encode(image, candidate.camera_id, settings.selection.jpeg_quality)
    height, width = image.shape[:2]
    return Sample(
        sample_id=sample_id(jpeg, settings.gateway_id, candidate.camera_id, candidate.captured_at_ns),
        gateway_id=settings.gateway_id,
        site_id=settings.site_id,
        camera_id=candidate.camera_id,
        captured_at_ns=candidate.captured_at_ns,
        release_id=seen.release_id,
        backbone=seen.backbone,
        width_px=width,
        height_px=height,
        jpeg=jpeg,
        embedding=_embedding(choice, seen, image, model).astype("<f2").tobytes(),
        predictions=candidate.predictions,
        scores=choice.scores,
        reason=choice.reason,
        pixel_path=seen.pixel_path,
        boxes=seen.boxes,
        variant=seen.variant,
    )


def _embedding(choice: Chosen, seen: Negative, image: Picture, model: Model | None) -> NDArray[np.float32]:
    """Of the picture that is sent, where that is not what was looked at: who has the JPEG gets the same numbers."""
    looked_at_it = seen.still is None or isinstance(seen.still, FileStill)
    if looked_at_it or model is None or model.backbone.hash != (seen.variant or seen.backbone):
        return choice.candidate.embedding
    return model.backbone.embed(image)


def _encode(image: Picture, camera_id: str, quality: int) -> bytes:
    ok, encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise HeadframeError(f"frame of camera {camera_id} could not be encoded")
    return encoded.tobytes()
