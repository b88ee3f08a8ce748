"""Flower's Grid over MQTT: gateways behind NAT need one outbound connection, and no SuperLink.

Replies are yielded as they arrive, so a strategy can fold each at once; those that wait to be folded are bounded in
bytes, and what comes faster waits in the broker. A reply too large for one MQTT message comes in chunks. What is late,
repeated, foreign, oversize or malformed is told apart and counted, and never reaches a strategy. A client that does not
answer is asked again with the same message: it keeps its answers, so that a lost one costs a message and no work.
"""

import logging
import threading
import time
import uuid
from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

from flwr.serverapp import Grid
from flwr.supercore.run import Run

from common.errors import BoundError, ForgeryError, HeadframeError
from common.flower import (
    SERVER_NODE_ID,
    Message,
    RecordDict,
    is_released,
    message_from_bytes,
    message_to_bytes,
    name_message,
    node_id_of,
    take_identity,
)
from common.frames import Assembly
from common.messages import Chunk

log = logging.getLogger(__name__)

WAITING_BYTES_MAX = 64 * 2**20  # a few replies of a large model, thousands of statistics of a small one
REPLY_BYTES_MAX = 256 * 2**20  # 64 M parameters in float32
JOINING_BYTES_MAX = 512 * 2**20  # replies that have come in part: two of the largest at a time
ROOM_WAIT_S = 5.0  # how long a reply waits for room on the link's thread: less than the link's keepalive of 30 s
SEND_TRY_S = 0.05
SEND_FOR_S = 20.0
ASK_AGAIN_S = 15.0
ENDED_MAX = 50_000
WITHOUT_TIMEOUT_S = 3600.0


@dataclass
class _Pushed:
    message: Message
    until_s: float
    """So long an answer is waited for."""
    again_at_s: float


class MqttGrid(Grid):  # type: ignore[misc]  # flwr is not typed for us
    """Sends Flower messages to gateways and collects their replies.

    Args:
        send: publishes a Flower message's bytes to a gateway (`common.frames.Courier`); False when the link's window is
            full: it is called again with the same.
        online: ids of the gateways that can be asked now.
        reply_bytes_max: a larger reply is not even parsed, nor joined.
        joining_bytes_max: of the replies that have come in part.
        waiting_bytes_max: replies that may wait for the strategy; then `on_frame` blocks for a while.
        ask_again_s: how long a client that is online may be silent before it is asked again.
    """

    def __init__(
        self,
        send: Callable[[str, bytes], bool],
        online: Callable[[], Sequence[str]],
        *,
        reply_bytes_max: int = REPLY_BYTES_MAX,
        joining_bytes_max: int = JOINING_BYTES_MAX,
        waiting_bytes_max: int = WAITING_BYTES_MAX,
        ask_again_s: float = ASK_AGAIN_S,
    ) -> None:
        self._send, self._online = send, online
        self._reply_bytes_max, self._waiting_bytes_max = reply_bytes_max, waiting_bytes_max
        self._ask_again_s = ask_again_s
        self._joining = Assembly(reply_bytes_max, joining_bytes_max)
        self._lock = threading.Condition()
        self._gateways: dict[int, str] = {}
        self._asked: dict[str, int] = {}
        """Message id -> node, of messages without a reply yet."""
        self._ended: dict[str, str] = {}
        """Message id -> how it ended (answered, expired); bounded."""
        self._replies: deque[tuple[Message, int]] = deque()
        """Replies that nobody took yet, and their bytes."""
        self._waiting_bytes = 0
        self._pushed: dict[str, _Pushed] = {}
        """What `push_messages` sent and nobody has pulled the reply of."""
        self._run: Run | None = None
        self._unsent = "", b""
        """Id and bytes of the message that the link did not take yet: a large one is not packed anew at each try."""
        self.counters: Counter[str] = Counter()
        take_identity(SERVER_NODE_ID)

    def set_run(self, run: Run) -> None:
        self._run = run

    @property
    def run(self) -> Run:
        if self._run is None:
            raise RuntimeError("this grid has no SuperLink run")
        return self._run

    def create_message(
        self, content: RecordDict, message_type: str, dst_node_id: int, group_id: str, ttl: float | None = None
    ) -> Message:
        return Message(content, dst_node_id, message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """Node ids of the gateways that are online."""
        with self._lock:
            online = {node_id_of(gateway_id): gateway_id for gateway_id in self._online()}
            self._gateways |= online
            return list(online)

    def gateway_of(self, node_id: int) -> str:
        """The gateway behind a node id that `get_node_ids` gave."""
        return self._gateways[node_id]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages, and say their ids; one that cannot be sent in time is counted and has none.

        A reply is waited for as long as the message lives (its `ttl`), an hour at most.
        """
        self._let_go()
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these messages that have arrived. Who is online and silent is asked again meanwhile."""
        found = self._take_out(set(message_ids))
        for reply in found:
            self._pushed.pop(reply.metadata.reply_to_message_id, None)
        self._let_go()
        self._ask_silent()
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> "Replies":
        """Send, and give replies as they arrive, until all have or `timeout` seconds are over; begins when it is looked
        at."""
        return Replies(self._converse(messages, timeout))

    def _converse(self, messages: Iterable[Message], timeout: float | None) -> Iterator[Message]:
        """Sending goes on while replies come in: otherwise those that answered first would fill the queue before the
        last was asked.
        """
        outgoing, waiting = iter(messages), dict[str, Message]()
        deadline = time.monotonic() + (timeout if timeout is not None else WITHOUT_TIMEOUT_S)
        again_at = time.monotonic() + self._ask_again_s
        unsent = next(outgoing, None)
        try:
            while (unsent or waiting) and (left := deadline - time.monotonic()) > 0:
                sent = unsent is not None and self._try(unsent)
                if unsent is not None and sent:
                    waiting[unsent.metadata.message_id] = unsent
                    unsent = next(outgoing, None)
                pause_s = 0.5 if unsent is None else 0.0 if sent else SEND_TRY_S
                yield from self._take(waiting, min(left, pause_s))
                if time.monotonic() >= again_at:
                    self._ask_again(waiting)
                    again_at = time.monotonic() + self._ask_again_s
        finally:
            self.counters["unsent"] += sum(1 for _ in chain([unsent] if unsent else [], outgoing))
            with self._lock:
                for name in waiting:
                    if self._asked.pop(name, None) is not None:
                        self._end(name, "expired")
                        self.counters["unanswered"] += 1

    def on_frame(self, gateway_id: str, data: bytes) -> None:
        """A Flower message from a gateway, on the link's thread. What is not wanted is counted.

        Raises:
            BoundError: it is larger than a reply may be.
            WireError: it is no Flower message.
            ForgeryError: it answers for another gateway.
        """
        if len(data) > self._reply_bytes_max:
            self.counters["oversize"] += 1
            raise BoundError(f"a reply of {len(data)} bytes is over the bound of {self._reply_bytes_max}")
        try:
            reply = message_from_bytes(data)
        except HeadframeError:
            self.counters["malformed"] += 1
            raise
        name = reply.metadata.reply_to_message_id
        with self._lock:
            if refusal := self._refusal(gateway_id, reply):
                self.counters[refusal] += 1
                if refusal == "foreign":
                    raise ForgeryError(f"{gateway_id} answers for another node")
                return
            if not self._lock.wait_for(lambda: self._has_room(len(data)), ROOM_WAIT_S):
                self.counters["overflowed"] += 1  # it stays asked for: the client will be asked again
                return
            if self._asked.pop(name, None) is None:  # expired while it waited
                self.counters["late"] += 1
                return
            self._end(name, "answered")
            self._replies.append((reply, len(data)))
            self._waiting_bytes += len(data)
            self.counters["answered"] += 1
            self._lock.notify_all()

    def on_chunk(self, gateway_id: str, chunk: Chunk) -> None:
        """A part of a reply, on the link's thread. Nothing is held for who was not asked.

        Raises:
            BoundError: the whole is larger than a reply may be.
            WireError: it is no part of a reply, or contradicts the others.
            ForgeryError: it answers for another gateway.
        """
        node_id, now_s = node_id_of(gateway_id), time.monotonic()
        with self._lock:
            if node_id not in self._asked.values():
                self.counters["stale"] += chunk.index == 0
                return
            if chunk.total_bytes <= self._reply_bytes_max and not self._joining.has_room(gateway_id, chunk, now_s):
                self.counters["overflowed"] += chunk.index == 0
                return
            try:
                whole = self._joining.add(gateway_id, chunk, now_s)
            except BoundError:
                self.counters["oversize"] += chunk.index == 0
                raise
            except HeadframeError:
                self.counters["malformed"] += 1
                raise
        if whole is not None:
            self.on_frame(gateway_id, whole)

    def _refusal(self, gateway_id: str, reply: Message) -> str:
        """Why a reply is not wanted; empty when it is."""
        name, node_id = reply.metadata.reply_to_message_id, reply.metadata.src_node_id
        if node_id != node_id_of(gateway_id):
            return "foreign"
        if name not in self._asked:
            return {"answered": "duplicate", "expired": "late"}.get(self._ended.get(name, ""), "stale")
        return "" if self._asked[name] == node_id else "foreign"

    def _has_room(self, size: int) -> bool:
        return not self._replies or self._waiting_bytes + size <= self._waiting_bytes_max

    def _take(self, waiting: dict[str, Message], timeout_s: float) -> Iterator[Message]:
        """The replies that are there, or the first that comes in time."""
        with self._lock:
            self._lock.wait_for(lambda: bool(self._replies), timeout_s)
        while True:
            with self._lock:
                if not self._replies:
                    return
                reply, size = self._replies.popleft()
                self._waiting_bytes -= size
                self._lock.notify_all()
            if waiting.pop(reply.metadata.reply_to_message_id, None) is None:
                self.counters["stale"] += 1
            else:
                yield reply

    def _ask_again(self, waiting: dict[str, Message]) -> None:
        """Send their message again to those that are online and silent. One that finds no room waits for next time."""
        now_s = time.monotonic()
        with self._lock:
            online = {node_id_of(name) for name in self._online() if not self._joining.is_receiving(name, now_s)}
        for message in waiting.values():
            node_id = message.metadata.dst_node_id
            if node_id in online and self._send(self._gateways[node_id], message_to_bytes(message)):
                self.counters["asked again"] += 1

    def _try(self, message: Message) -> bool:
        """Send a message once; True when the link took it."""
        if not message.metadata.message_id:
            name_message(message, uuid.uuid4().hex)
        name, node_id = message.metadata.message_id, message.metadata.dst_node_id
        data = self._unsent[1] if self._unsent[0] == name else message_to_bytes(message)
        with self._lock:  # before it is sent: the reply may be faster than the return of `send`
            self._asked[name] = node_id
        if self._send(self._gateways[node_id], data):
            self._unsent = "", b""
            return True
        self._unsent = name, data
        with self._lock:
            del self._asked[name]
        return False

    def _push(self, message: Message) -> str:
        deadline = time.monotonic() + SEND_FOR_S
        while not self._try(message):
            if time.monotonic() > deadline:
                self.counters["unsent"] += 1
                return ""
            time.sleep(SEND_TRY_S)
        name: str = message.metadata.message_id
        now_s = time.monotonic()
        until_s = now_s + min(message.metadata.ttl, WITHOUT_TIMEOUT_S)
        self._pushed[name] = _Pushed(message, until_s, now_s + self._ask_again_s)
        return name

    def _take_out(self, wanted: Collection[str]) -> list[Message]:
        """The replies to these messages, out of the queue."""
        with self._lock:
            held = list(self._replies)
            kept = [(reply, size) for reply, size in held if reply.metadata.reply_to_message_id not in wanted]
            self._replies = deque(kept)
            self._waiting_bytes = sum(size for _, size in kept)
            self._lock.notify_all()
        return [reply for reply, _ in held if reply.metadata.reply_to_message_id in wanted]

    def _let_go(self) -> None:
        """Forget pushed messages that are over their time, and replies to them that nobody came for."""
        now_s = time.monotonic()
        over = {name for name, pushed in self._pushed.items() if now_s >= pushed.until_s}
        if over:
            with self._lock:
                for name in over:
                    del self._pushed[name]
                    if self._asked.pop(name, None) is not None:
                        self._end(name, "expired")
                        self.counters["unanswered"] += 1
            self.counters["stale"] += len(self._take_out(over))

    def _ask_silent(self) -> None:
        """Send a pushed message again to who is online and has not answered for a while."""
        now_s = time.monotonic()
        silent = {name: p for name, p in self._pushed.items() if name in self._asked and now_s >= p.again_at_s}
        if silent:
            self._ask_again({name: pushed.message for name, pushed in silent.items()})
        for pushed in silent.values():
            pushed.again_at_s = now_s + self._ask_again_s

    def _end(self, name: str, how: str) -> None:
        self._ended[name] = how
        while len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]


class Replies:
    """Replies as they arrive, for strategies that fold each as it comes and for those that look twice.

    Flower's own grids return a list, and some of its strategies rely on it (the adaptive wrapper checks all replies,
    then begins anew). So a reply is kept until the strategy releases it (`common.flower.release`), which ours do.
    """

    def __init__(self, arriving: Iterator[Message]) -> None:
        self._arriving, self._kept = arriving, list[Message]()

    def __iter__(self) -> Iterator[Message]:
        yield from self._kept[:]
        for reply in self._arriving:
            self._kept.append(reply)
            yield reply
            if is_released(reply):
                self._kept.pop()
