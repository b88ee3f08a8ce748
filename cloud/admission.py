"""What must hold before a sample is stored. Judges one sample by itself; leaves queues and answers to `cloud.ingest`.

A refused sample is dropped by its gateway, so only what no repetition can mend is a reason to refuse.
"""

import math

import numpy as np

from cloud.pictures import PictureCheck
from cloud.settings import IngestSettings
from cloud.store.delivery import check_number
from common.errors import WireError
from common.ids import check_name, sample_id
from common.messages import Sample, Scores

EMBEDDING_BYTES_MAX = 64 * 1024
TIME_NS_MAX = 2**63 - 1
BOXES_MAX = 1000
TEXT_MAX = 120
TEXTS = {
    "release_id": 80,
    "backbone": 64,
    "variant": 64,
    "reason": 20,
    "pixel_path": 120,
}  # as wide as the columns of the store
_pictures = PictureCheck()  # of the process: what it remembers is bounded, and the same for every gateway


def check_sample(sample: Sample, gateway_id: str, settings: IngestSettings) -> None:
    """Check a sample that came on the topic of `gateway_id`.

    Raises:
        WireError: says which rule was broken.
        OperatorError: an id has characters that are not allowed.
    """
    if sample.gateway_id != gateway_id:
        raise WireError(f"a sample that says it is of {sample.gateway_id!r} came on the topic of {gateway_id!r}")
    check_name("site", sample.site_id)
    check_name("camera", sample.camera_id)
    if not 0 <= sample.captured_at_ns <= TIME_NS_MAX:
        raise WireError(f"capture time {sample.captured_at_ns} is out of bounds")
    if sample.epoch:
        check_number(sample.epoch, sample.sequence, least=1)
    if len(sample.jpeg) > settings.jpeg_bytes_max:
        raise WireError(f"picture of {len(sample.jpeg)} bytes is over the bound of {settings.jpeg_bytes_max}")
    if sample.sample_id != sample_id(sample.jpeg, sample.gateway_id, sample.camera_id, sample.captured_at_ns):
        raise WireError("the sample id is not the hash of the content")
    for name, length_max in TEXTS.items():
        text = getattr(sample, name)
        if len(text) > length_max or (text and not text.isprintable()):
            raise WireError(f"{name} {text[:40]!r} is not one line of at most {length_max} characters")
    _check_numbers(sample)
    _pictures.check(sample.jpeg, sample.width_px, sample.height_px, settings.pixels_max)


def _check_numbers(sample: Sample) -> None:
    """Embedding, predictions and scores: whole and finite, or no ranking, JSON or column could hold them."""
    if not 0 < len(sample.embedding) <= EMBEDDING_BYTES_MAX or len(sample.embedding) % 2:
        raise WireError(f"embedding of {len(sample.embedding)} bytes is no float16 vector")
    if not np.isfinite(np.frombuffer(sample.embedding, "<f2")).all():
        raise WireError("the embedding holds values that are not finite")
    for prediction in sample.predictions:
        check_name("scenario", prediction.scenario)
        if not 0 < len(prediction.classes) == len(prediction.probabilities):
            raise WireError(f"the prediction of {prediction.scenario} has not one probability per class")
        if not all(map(math.isfinite, (prediction.novelty, *prediction.probabilities))):
            raise WireError(f"the prediction of {prediction.scenario} holds values that are not finite")
    if len(sample.boxes) > BOXES_MAX:
        raise WireError(f"{len(sample.boxes)} boxes are over the bound of {BOXES_MAX}")
    for box in sample.boxes:
        if not all(0 <= edge <= 1 for edge in (box.score, box.left, box.top, box.right, box.bottom)):
            raise WireError(f"a box of {box.detector[:40]!r} is not within the picture")
        if any(len(text) > TEXT_MAX or not text.isprintable() for text in (box.detector, box.label)):
            raise WireError(f"a box is named {box.label[:40]!r}")
    if not all(math.isfinite(getattr(sample.scores, name)) for name in Scores.__struct_fields__):
        raise WireError("the scores hold values that are not finite")
