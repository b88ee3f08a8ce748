"""What comes down from the centre: decoded, handed to whoever it is for, refused with a reason when it is for nobody.

Decides nothing about contents; a message that cannot be used is logged and counted, and the connection goes on.
"""

import logging
from collections.abc import Callable

from common import codec, topics
from common.errors import HeadframeError
from common.frames import Frame
from common.messages import Certificate, Chunk, Desired, FlowerFrame, LayerPart, Message, Receipt, Shelved, Want

log = logging.getLogger(__name__)


class Downward:
    """The parts of a gateway that the centre speaks to; a part that is not there refuses what is for it."""

    def __init__(
        self,
        *,
        on_receipt: Callable[[Receipt], None] | None = None,
        on_desired: Callable[[Desired], None] | None = None,
        on_layer: Callable[[LayerPart], None] | None = None,
        on_flower: Callable[[Frame], None] | None = None,
        on_certificate: Callable[[Certificate], None] | None = None,
        on_want: Callable[[Want], None] | None = None,
        on_shelved: Callable[[Shelved], None] | None = None,
        on_piece: Callable[[str, bytes], None] | None = None,
    ) -> None:
        self._on_receipt, self._on_desired, self._on_layer = on_receipt, on_desired, on_layer
        self._on_flower, self._on_certificate, self._on_want = on_flower, on_certificate, on_want
        self._on_shelved, self._on_piece = on_shelved, on_piece
        self.refused = 0

    def take(self, topic: str, payload: bytes) -> str:
        """One message, on the link's thread; returns why it was refused, empty when it was not."""
        piece = topics.parse_release(topic)
        if piece and self._on_piece:
            self._on_piece(piece, payload)  # its name is its hash: there is nothing to decode
            return ""
        try:
            message = codec.decode(payload)
            if not self._hand_over(message):
                return self._refuse(topic, f"a {type(message).__name__} is not for this gateway")
        except HeadframeError as error:
            return self._refuse(topic, str(error))
        return ""

    def _hand_over(self, message: Message) -> bool:
        match message:
            case Receipt() if self._on_receipt:
                self._on_receipt(message)
            case Desired() if self._on_desired:
                self._on_desired(message)
            case LayerPart() if self._on_layer:
                self._on_layer(message)
            case Shelved() if self._on_shelved:
                self._on_shelved(message)
            case FlowerFrame() | Chunk() if self._on_flower:
                self._on_flower(message)
            case Certificate() if self._on_certificate:
                self._on_certificate(message)
            case Want() if self._on_want:
                self._on_want(message)
            case _:
                return False
        return True

    def _refuse(self, topic: str, reason: str) -> str:
        self.refused += 1
        log.warning("refused a message on %s: %s", topic, reason)
        return reason
