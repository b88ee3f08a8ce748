"""Flower's Grid over MQTT: gateways behind NAT need one outbound connection, and no SuperLink.

Replies are yielded as they arrive, so a strategy can fold each at once. What is late, repeated, foreign or malformed is
told apart and counted, and never reaches a strategy.
"""

import logging
import queue
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from flwr.serverapp import Grid
from flwr.supercore.run import Run

from common.errors import HeadframeError
from common.flower import (
    SERVER_NODE_ID,
    Message,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    name_message,
    node_id_of,
    take_identity,
)

log = logging.getLogger(__name__)

REPLIES_MAX = 10_000
SEND_TRY_S = 0.05
SEND_FOR_S = 20.0
ENDED_MAX = 50_000
WITHOUT_TIMEOUT_S = 3600.0


class MqttGrid(Grid):  # type: ignore[misc]  # flwr is not typed for us
    """Sends Flower messages to gateways and collects their replies.

    Args:
        send: publishes a Flower message's bytes to a gateway; False when the link's window is full.
        online: ids of the gateways that can be asked now.
    """

    def __init__(self, send: Callable[[str, bytes], bool], online: Callable[[], Sequence[str]]) -> None:
        self._send, self._online = send, online
        self._lock = threading.Lock()
        self._gateways: dict[int, str] = {}
        self._asked: dict[str, int] = {}
        """Message id -> node, of messages without a reply yet."""
        self._ended: dict[str, str] = {}
        """Message id -> how it ended (answered, expired); bounded."""
        self._replies: queue.Queue[Message] = queue.Queue(REPLIES_MAX)
        self._run: Run | None = None
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
            for gateway_id in self._online():
                self._gateways[node_id_of(gateway_id)] = gateway_id
            return [node_id_of(gateway_id) for gateway_id in self._online()]

    def gateway_of(self, node_id: int) -> str:
        """The gateway behind a node id that `get_node_ids` gave."""
        return self._gateways[node_id]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send messages; one that cannot be sent in time is counted and gets no reply."""
        return [self._push(message) for message in messages]

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Replies to these messages that have arrived."""
        wanted = set(message_ids)
        found: list[Message] = []
        others: list[Message] = []
        while True:
            try:
                reply = self._replies.get_nowait()
            except queue.Empty:
                break
            (found if reply.metadata.reply_to_message_id in wanted else others).append(reply)
        for reply in others:
            self._replies.put_nowait(reply)
        return found

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterator[Message]:
        """Send, then yield replies as they arrive, until all have or `timeout` seconds are over."""
        waiting = set(self.push_messages(messages))
        deadline = time.monotonic() + (timeout if timeout is not None else WITHOUT_TIMEOUT_S)
        try:
            while waiting and (left := deadline - time.monotonic()) > 0:
                try:
                    reply = self._replies.get(timeout=min(left, 0.5))
                except queue.Empty:
                    continue
                name = reply.metadata.reply_to_message_id
                if name in waiting:
                    waiting.discard(name)
                    yield reply
                else:
                    self.counters["stale"] += 1
        finally:
            with self._lock:
                for name in waiting:
                    if self._asked.pop(name, None) is not None:
                        self._end(name, "expired")
                        self.counters["unanswered"] += 1

    def on_frame(self, gateway_id: str, data: bytes) -> None:
        """A Flower message from a gateway, on the link's thread."""
        try:
            reply = message_from_bytes(data)
        except HeadframeError as error:
            self.counters["malformed"] += 1
            log.warning("from %s: %s", gateway_id, error)
            return
        name = reply.metadata.reply_to_message_id
        with self._lock:
            if reply.metadata.src_node_id != node_id_of(gateway_id):
                self.counters["foreign"] += 1
                return
            if name not in self._asked:
                kinds = {"answered": "duplicate", "expired": "late"}
                self.counters[kinds.get(self._ended.get(name, ""), "stale")] += 1
                return
            if self._asked[name] != reply.metadata.src_node_id:
                self.counters["foreign"] += 1
                return
            del self._asked[name]
            self._end(name, "answered")
        try:
            self._replies.put_nowait(reply)
            self.counters["answered"] += 1
        except queue.Full:
            self.counters["overflowed"] += 1

    def _push(self, message: Message) -> str:
        name = uuid.uuid4().hex
        name_message(message, name)
        node_id = message.metadata.dst_node_id
        with self._lock:
            self._asked[name] = node_id
        data = message_to_bytes(message)
        deadline = time.monotonic() + SEND_FOR_S
        while not self._send(self._gateways[node_id], data):
            if time.monotonic() > deadline:
                self.counters["unsent"] += 1
                break
            time.sleep(SEND_TRY_S)
        return name

    def _end(self, name: str, how: str) -> None:
        self._ended[name] = how
        while len(self._ended) > ENDED_MAX:
            del self._ended[next(iter(self._ended))]
