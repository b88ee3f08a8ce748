"""One valid message of every kind that goes over the wire, for those who then spoil them."""

import time
from collections.abc import Callable

import cv2
import msgspec
import numpy as np

from common.ids import sample_id
from common.messages import (
    Box,
    CameraState,
    Certificate,
    Event,
    Fetch,
    FlowerFrame,
    Message,
    Prediction,
    Receipt,
    Refusal,
    Renewal,
    Sample,
    Scores,
    State,
    Want,
)
from edge.offers import make_offer

Make = Callable[[int], Message]
_REQUEST = b"-----BEGIN CERTIFICATE REQUEST-----\n"


def made_sample(
    number: int, gateway_id: str = "north-1", *, size: tuple[int, int] = (64, 96), **fields: object
) -> Sample:
    """A sample that the centre takes; another one for each number. The id follows the content unless it is given."""
    rng = np.random.default_rng(number)
    picture = cv2.resize(rng.integers(0, 255, (8, 12, 3), dtype=np.uint8), (size[1], size[0]))
    sample = Sample(
        sample_id=b"",
        gateway_id=gateway_id,
        site_id="north",
        camera_id="belt",
        captured_at_ns=1_700_000_000_000_000_000 + number,
        release_id="r1-00000000",
        backbone="b" * 64,
        width_px=size[1],
        height_px=size[0],
        jpeg=cv2.imencode(".jpg", picture)[1].tobytes(),
        embedding=rng.normal(size=64).astype("<f2").tobytes(),
        predictions=(Prediction("belt", ("normal", "tear"), (0.25, 0.75), 1.5),),
        scores=Scores(0.1, 0.2, 0.3, 0.4, 0.5),
        reason="novel",
        pixel_path="main-96x64/whole",
        boxes=(Box("people", "person", 0.9, 0.1, 0.1, 0.4, 0.8),),
    )
    sample = msgspec.structs.replace(sample, **fields)
    if "sample_id" in fields:
        return sample
    name = sample_id(sample.jpeg, sample.gateway_id, sample.camera_id, sample.captured_at_ns)
    return msgspec.structs.replace(sample, sample_id=name)


def made_state(number: int, gateway_id: str = "north-1") -> State:
    """A heartbeat."""
    return State(
        gateway_id=gateway_id,
        site_id="north",
        at_ns=time.time_ns() + number,
        agent_version="0.1.0",
        release_id="",
        chosen={"novel": number},
        cameras=(CameraState(camera_id="belt", state="live", frames=number),),
    )


def made_event(number: int, gateway_id: str = "north-1") -> Event:
    """An event with a picture."""
    return Event(
        event_id=f"{number:016x}",
        gateway_id=gateway_id,
        site_id="north",
        camera_id="belt",
        scenario="belt",
        phase="enter",
        label="tear",
        peak=0.9,
        began_at_ns=number,
        at_ns=number + 1,
        release_id="r1-00000000",
        jpeg=made_sample(number).jpeg,
    )


UP: dict[str, Make] = {
    "sample": made_sample,
    "state": made_state,
    "event": made_event,
    "offer": lambda number: make_offer(made_sample(number), 20_000),
    "fetch": lambda number: Fetch(layer=f"{number:064x}", offset=number, length=4096, bases=("b" * 64,)),
    "flower": lambda number: FlowerFrame(message=number.to_bytes(8, "big") * 8),
    "renew": lambda number: Renewal(request=_REQUEST, certificate=b"", signature=number.to_bytes(8, "big")),
}
"""Kind of topic -> a message that belongs there; a chunked sample is made from `sample`."""

DOWN: dict[str, Make] = {
    "receipt": lambda number: Receipt(stored=(number.to_bytes(16, "big"),), refused=(Refusal(b"r" * 16, "why"),)),
    "want": lambda number: Want(wanted=(number.to_bytes(16, "big"),), heard=(b"h" * 16,)),
    "certificate": lambda _: Certificate(certificate=b"-----BEGIN CERTIFICATE-----\n"),
}
