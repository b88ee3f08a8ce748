"""A virtual gateway: the wire of a real one without its cameras, models and disk.

Reports its state and how far its spool is, sends samples at the pace of a real uplink (`edge.pacing`), sends again
what is not receipted, forgets on the receipt. What waits is kept as numbers and made anew for each sending, so that a
gateway takes a few KB. Time comes as an argument.
"""

import hashlib
import itertools
import random
from collections.abc import Callable
from typing import Final

from common import AGENT_VERSION, chunks, codec, topics
from common.ids import sample_id
from common.messages import CameraState, Prediction, Receipt, Sample, Scores, SpoolEpoch, State
from edge.pacing import Pacer
from simulations.lightclient import LightClient
from simulations.load.pictures import Pictures

BACKBONE: Final = "0" * 64
EMBEDDING: Final = bytes(2 * 512)
"""As many float16 as a projected embedding has."""
CAMERA: Final = "belt"
EPOCH_NS: Final = 1_750_000_000 * 10**9

OnReceipt = Callable[[float], None]


class VirtualGateway:
    """One of them.

    Args:
        on_receipt: called with the seconds from the first sending of a sample to its receipt.
    """

    __slots__ = (
        "_again_s", "_epoch", "_first_s", "_heard_s", "_numbers", "_on_receipt", "_pacer", "_pictures", "_sendings",
        "_sequences", "accepted", "client", "desired", "gateway_id", "receipted", "refused", "resent",
    )  # fmt: skip

    def __init__(
        self, gateway_id: str, pictures: Pictures, on_receipt: OnReceipt, *, window: int = 32, resend_s: float = 20.0
    ) -> None:
        self.gateway_id = gateway_id
        self._pictures, self._on_receipt = pictures, on_receipt
        self._pacer = Pacer(window, resend_s, random.Random(gateway_id))
        self._heard_s = 0.0
        self._epoch = hashlib.blake2b(gateway_id.encode(), digest_size=8).hexdigest()
        self._numbers: dict[bytes, int] = {}
        """Accepted and not yet receipted, by sample id."""
        self._sequences: dict[bytes, int] = {}
        self._again_s: dict[bytes, float] = {}
        """When a sample that was sent is due again."""
        self._sendings: dict[bytes, int] = {}
        self._first_s: dict[bytes, float] = {}
        self.accepted = self.receipted = self.refused = self.resent = self.desired = 0
        will = self._state(0, online=False)
        self.client = LightClient(
            f"headframe-{gateway_id}",
            (topics.down_filter(gateway_id),),
            self.on_message,
            will=(topics.up(gateway_id, "state"), codec.encode(will)),
            on_up=self._again_s.clear,  # the broker may have forgotten what was under way
        )

    @property
    def unreceipted(self) -> int:
        """What a spool would hold."""
        return len(self._numbers)

    def accept(self, number: int) -> bytes:
        """Take a sample; returns its id. It is sent with the next `send`."""
        name = sample_id(self._pictures.jpeg(number), self.gateway_id, CAMERA, EPOCH_NS + number)
        self._numbers[name] = number
        self.accepted += 1
        self._sequences[name] = self.accepted
        return name

    def send(self, now_s: float) -> None:
        """Send what the window and the link allow, the overdue again."""
        if not self.client.up:
            return
        self._heard_s = now_s
        if any(due_s <= now_s for due_s in self._again_s.values()):
            self._pacer.on_silence(now_s)
        under_way = {name for name, due_s in self._again_s.items() if due_s > now_s}
        due = (name for name in self._numbers if name not in under_way)
        for name in list(itertools.islice(due, self._pacer.room(now_s, len(under_way)))):
            if not self._publish(codec.encode(self._sample(name, self._numbers[name]))):
                return
            self.resent += name in self._first_s
            self._sendings[name] = self._sendings.get(name, 0) + 1
            self._again_s[name] = now_s + self._pacer.resend_after_s(self._sendings[name])
            self._first_s.setdefault(name, now_s)

    def report(self, at_ns: int) -> bool:
        """A heartbeat."""
        return self.client.publish(topics.up(self.gateway_id, "state"), codec.encode(self._state(at_ns)))

    def on_message(self, topic: str, payload: bytes) -> None:
        """What the centre says."""
        if topic.endswith("/desired"):
            self.desired += 1
        message = codec.decode(payload)
        if not isinstance(message, Receipt):
            return
        for name in message.stored:
            self.receipted += self._forget(name)
        for refusal in message.refused:
            self.refused += self._forget(refusal.sample_id)
        self._pacer.on_receipts(len(message.stored) + len(message.refused))
        self._pacer.on_pause(self._heard_s, message.pause_s)

    def _forget(self, name: bytes) -> bool:
        if self._numbers.pop(name, None) is None:
            return False
        for of_samples in (self._sequences, self._again_s, self._sendings):
            of_samples.pop(name, None)
        self._on_receipt(self._first_s.pop(name, float("nan")))
        return True

    def _publish(self, payload: bytes) -> bool:
        if len(payload) <= chunks.CHUNK_BYTES:
            return self.client.publish(topics.up(self.gateway_id, "sample"), payload)
        topic = topics.up(self.gateway_id, "chunk")
        return all(self.client.publish(topic, codec.encode(chunk)) for chunk in chunks.split(payload))

    def _sample(self, name: bytes, number: int) -> Sample:
        width, height = self._pictures.size
        return Sample(
            sample_id=name,
            gateway_id=self.gateway_id,
            site_id="load",
            camera_id=CAMERA,
            captured_at_ns=EPOCH_NS + number,
            release_id="r1-00000000",
            backbone=BACKBONE,
            width_px=width,
            height_px=height,
            jpeg=self._pictures.jpeg(number),
            embedding=EMBEDDING,
            predictions=(Prediction("belt", ("normal", "tear"), (0.4, 0.6), 1.0),),
            scores=Scores(0.5, 0.5, 0.5, 0.0, number % 1000 / 1000),
            reason="novel",
            pixel_path="load",
            epoch=self._epoch,
            sequence=self._sequences[name],
        )

    def _state(self, at_ns: int, *, online: bool = True) -> State:
        camera = CameraState(camera_id=CAMERA, state="live", frames=self.accepted, fps=25.0)
        tail = min(self._sequences.values(), default=self.accepted + 1)
        return State(
            gateway_id=self.gateway_id,
            epochs=(SpoolEpoch(self._epoch, self.accepted, tail, len(self._numbers)),),
            site_id="load",
            at_ns=at_ns,
            agent_version=AGENT_VERSION,
            release_id="r1-00000000",
            spool_rows=len(self._numbers),
            accepted=self.accepted,
            receipted=self.receipted,
            refused=self.refused,
            cameras=(camera,),
            online=online,
        )
