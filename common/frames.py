"""A Flower message as MQTT messages: one where one can carry it, else chunks. No I/O; time comes as an argument.

Whoever receives from many holds one unfinished transfer of each, and begins only those that it has room for: what was
begun can then end, where letting the oldest go would let nobody finish. A sender that finds no room is asked again.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from common.chunks import Joiner, split
from common.codec import PAYLOAD_BYTES_MAX
from common.errors import BoundError
from common.messages import Chunk, FlowerFrame

FRAME_BYTES_MAX = PAYLOAD_BYTES_MAX - 64 * 1024
"""Of a message that travels as one: what a link carries, less the envelope. Every earlier build reads those."""
IDLE_S = 60.0
"""After so long without a chunk a transfer gives its room to another; its sender begins again."""
UNFINISHED_MAX = 8
"""Messages of a courier that the link took a part of."""

Frame = FlowerFrame | Chunk


def frames(data: bytes, frame_bytes_max: int = FRAME_BYTES_MAX) -> Iterator[Frame]:
    """The MQTT messages that carry a Flower message's bytes."""
    if len(data) <= frame_bytes_max:
        yield FlowerFrame(message=data)
    else:
        yield from split(data)


class Courier:
    """Sends to many over a link that says no when its window is full; goes on where it was told no.

    Args:
        publish: (to, frame) -> whether the link took it.
    """

    def __init__(self, publish: Callable[[str, Frame], bool], frame_bytes_max: int = FRAME_BYTES_MAX) -> None:
        self._publish, self._frame_bytes_max = publish, frame_bytes_max
        self._unfinished: OrderedDict[str, tuple[bytes, Iterator[Frame], Frame]] = OrderedDict()

    def send(self, to: str, data: bytes) -> bool:
        """Whether the link has taken all of it; call again with the same bytes until it has."""
        before = self._unfinished.pop(to, None)
        if before and before[0] == data:
            _, rest, frame = before
        else:
            rest = frames(data, self._frame_bytes_max)
            frame = next(rest)
        while self._publish(to, frame):
            following = next(rest, None)
            if following is None:
                return True
            frame = following
        if isinstance(frame, Chunk):  # a whole frame is as easily made again
            self._unfinished[to] = data, rest, frame
        while len(self._unfinished) > UNFINISHED_MAX:
            self._unfinished.popitem(last=False)
        return False


@dataclass
class _Begun:
    name: bytes
    total_bytes: int
    joiner: Joiner
    heard_s: float


class Assembly:
    """Joins the chunks of many senders.

    Args:
        message_bytes_max: a larger message is refused at its first chunk.
        bytes_max: of all messages that were begun, as large as they said they would be.
    """

    def __init__(self, message_bytes_max: int, bytes_max: int) -> None:
        self._message_bytes_max, self._bytes_max = message_bytes_max, bytes_max
        self._begun: dict[str, _Begun] = {}

    def has_room(self, sender: str, chunk: Chunk, now_s: float) -> bool:
        """Whether this chunk's message is under way or can be begun."""
        begun = self._begun.get(sender)
        if begun and begun.name == chunk.transfer_id:
            return True
        others = [(name, other) for name, other in self._begun.items() if name != sender]
        held = sum(other.total_bytes for _, other in others)
        for name, other in others:
            if held + chunk.total_bytes <= self._bytes_max:
                break
            if now_s - other.heard_s > IDLE_S:
                held -= other.total_bytes
                del self._begun[name]
        return not held or held + chunk.total_bytes <= self._bytes_max

    def add(self, sender: str, chunk: Chunk, now_s: float) -> bytes | None:
        """The whole message when this was its last chunk. A new message of a sender replaces the one it had begun.

        Raises:
            BoundError: it would be larger than a message may be.
            WireError: the chunk contradicts itself or the others; the message is dropped.
        """
        if chunk.total_bytes > self._message_bytes_max:
            raise BoundError(f"a message of {chunk.total_bytes} bytes is over the bound of {self._message_bytes_max}")
        begun = self._begun.pop(sender, None)
        if begun is None or begun.name != chunk.transfer_id:
            begun = _Begun(chunk.transfer_id, chunk.total_bytes, Joiner(self._message_bytes_max), now_s)
        whole = begun.joiner.add(chunk)
        if whole is None:
            begun.heard_s = now_s
            self._begun[sender] = begun
        return whole

    def is_receiving(self, sender: str, now_s: float) -> bool:
        """Whether a message of this sender is on its way."""
        begun = self._begun.get(sender)
        return begun is not None and now_s - begun.heard_s <= IDLE_S
