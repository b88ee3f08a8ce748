"""What must hold before a sample is stored. Judges one sample by itself; leaves queues and answers to `cloud.ingest`.

A refused sample is dropped by its gateway, so only what no repetition can mend is a reason to refuse.
"""

import math

import msgspec
import numpy as np

from cloud.pictures import PictureCheck, read_headers
from cloud.settings import IngestSettings
from cloud.store.delivery import check_number
from common.errors import BoundError, ForgeryError, WireError
from common.ids import SAMPLE_ID_BYTES, check_name, sample_id
from common.messages import Event, Offer, Sample, Scores, State

EMBEDDING_BYTES_MAX = 64 * 1024
_INFINITE = np.uint16(0x7C00)  # exponent of float16 that infinities and NaN have, the largest there is
TIME_NS_MAX = 2**63 - 1
BOXES_MAX = 1000
THUMBNAIL_PX_MAX = 256
STATE_PARTS_MAX = 50_000  # of a gateway with 256 cameras, many times over
STATE_TEXT_MAX = 2000
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
        ForgeryError: it says that it is of another gateway.
        BoundError: the picture is larger than it may be, or would be when decoded.
        WireError: says which other rule was broken.
        OperatorError: an id has characters that are not allowed.
    """
    if sample.gateway_id != gateway_id:
        raise ForgeryError(f"a sample that says it is of {sample.gateway_id!r} came on the topic of {gateway_id!r}")
    check_name("site", sample.site_id)
    check_name("camera", sample.camera_id)
    if not 0 <= sample.captured_at_ns <= TIME_NS_MAX:
        raise WireError(f"capture time {sample.captured_at_ns} is out of bounds")
    if sample.epoch:
        check_number(sample.epoch, sample.sequence, least=1)
    if len(sample.jpeg) > settings.jpeg_bytes_max:
        raise BoundError(f"picture of {len(sample.jpeg)} bytes is over the bound of {settings.jpeg_bytes_max}")
    if sample.sample_id != sample_id(sample.jpeg, sample.gateway_id, sample.camera_id, sample.captured_at_ns):
        raise WireError("the sample id is not the hash of the content")
    for name, length_max in TEXTS.items():
        text = getattr(sample, name)
        if len(text) > length_max or (text and not text.isprintable()):
            raise WireError(f"{name} {text[:40]!r} is not one line of at most {length_max} characters")
    _check_numbers(sample)
    _pictures.check(sample.jpeg, sample.width_px, sample.height_px, settings.pixels_max)


def check_state(state: State) -> None:
    """Check a heartbeat before it is kept and shown: one that holds a NaN could never be read again as JSON.

    Raises:
        WireError: a number that is not finite, or a text that is too long.
        BoundError: too many parts.
        OperatorError: an id has characters that are not allowed.
    """
    check_name("site", state.site_id)
    _check_plain("a state", msgspec.to_builtins(state, builtin_types=(bytes,)), STATE_PARTS_MAX)


def check_event(event: Event) -> None:
    """Check an event before it is kept and shown.

    Raises:
        WireError: a number that is not finite, or a text that is too long.
        BoundError: too many parts.
        OperatorError: an id has characters that are not allowed.
    """
    for kind, name in (("site", event.site_id), ("camera", event.camera_id), ("scenario", event.scenario)):
        check_name(kind, name)
    if event.jpeg:
        read_headers(event.jpeg)
    _check_plain("an event", msgspec.to_builtins(event, builtin_types=(bytes,)), STATE_PARTS_MAX)


def check_offer(offer: Offer, gateway_id: str) -> None:
    """Check an offer that came on the topic of `gateway_id`.

    Raises:
        ForgeryError: it says that it is of another gateway.
        BoundError: the thumbnail is larger than one is.
        WireError: says which other rule was broken.
        OperatorError: an id has characters that are not allowed.
    """
    if offer.gateway_id != gateway_id:
        raise ForgeryError(f"an offer that says it is of {offer.gateway_id!r} came on the topic of {gateway_id!r}")
    check_name("site", offer.site_id)
    check_name("camera", offer.camera_id)
    if len(offer.sample_id) != SAMPLE_ID_BYTES or not 0 < len(offer.embedding) <= EMBEDDING_BYTES_MAX:
        raise WireError("an offer names no sample, or has no embedding")
    numbers = [offer.step, *(getattr(offer.scores, name) for name in Scores.__struct_fields__)]
    if not all(map(math.isfinite, numbers)) or offer.step <= 0 or offer.payload_bytes < 1:
        raise WireError("an offer holds a number that cannot be")
    if not np.frombuffer(offer.embedding, np.int8).any():
        raise WireError("an offer has an embedding of zeros")
    if any(len(text) > TEXT_MAX or not text.isprintable() for text in (offer.backbone, offer.reason)):
        raise WireError("an offer holds a text that is not one short line")
    if offer.thumbnail:
        headers = read_headers(offer.thumbnail)
        if max(headers.width, headers.height) > THUMBNAIL_PX_MAX:
            raise BoundError("the thumbnail of an offer is over the bound")


def _check_plain(what: str, tree: object, parts_max: int) -> None:
    """Every number finite, every text a short one, and not too many of them."""
    waiting = [tree]
    for _ in range(parts_max):
        if not waiting:
            return
        value = waiting.pop()
        if isinstance(value, dict):
            waiting += [*value, *value.values()]
        elif isinstance(value, list | tuple):
            waiting += value
        elif isinstance(value, float) and not math.isfinite(value):
            raise WireError(f"{what} holds a number that is not finite")
        elif isinstance(value, str) and len(value) > STATE_TEXT_MAX:
            raise WireError(f"{what} holds a text of {len(value)} characters")
    if waiting:
        raise BoundError(f"{what} has more than {parts_max} parts")


def _check_numbers(sample: Sample) -> None:
    """Embedding, predictions and scores: whole and finite, or no ranking, JSON or column could hold them."""
    if not 0 < len(sample.embedding) <= EMBEDDING_BYTES_MAX or len(sample.embedding) % 2:
        raise WireError(f"embedding of {len(sample.embedding)} bytes is no float16 vector")
    if (np.frombuffer(sample.embedding, "<u2") & _INFINITE).max() == _INFINITE:  # faster than isfinite
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
