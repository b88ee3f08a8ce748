"""The gateway as a Flower client: runs a ClientApp over the link, ours (`edge.contributor`) or anybody's.

Decides nothing about what is answered. The same request has the same answer, from memory, so that one that was lost
costs a message and no work.
"""

import contextlib
import logging
import queue
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping

from common.errors import HeadframeError
from common.flower import (
    APP_FAILED,
    Context,
    Error,
    Message,
    RecordDict,
    message_from_bytes,
    message_to_bytes,
    node_id_of,
)
from common.frames import Assembly, Frame, frames
from common.messages import Chunk

log = logging.getLogger(__name__)

WAITING_MAX = 4
ANSWERED_MAX = 8
RUNS_MAX = 3  # whose state is kept; of weight updates that is as large as the model
ANSWERED_BYTES_MAX = 64 * 2**20  # of all answers kept; the last one is, however large
REQUEST_BYTES_MAX = 256 * 2**20  # a model of 64 M parameters in float32
SEND_TRIES_S = (0.0, 0.5, 1.0, 2.0, 5.0)

ClientAppCallable = Callable[[Message, Context], Message]


class Learner:
    """Runs a ClientApp in a thread of its own; a full queue drops the oldest request (its round has moved on).

    Args:
        app: Flower's ClientApp; its context keeps its state from message to message of a run, as on Flower's own nodes,
            and begins anew with another start.
        send: publishes a frame to the centre; False when the link is down or its window is full.
        node_config: what the app finds in its context about this node.
    """

    def __init__(
        self,
        gateway_id: str,
        app: ClientAppCallable,
        send: Callable[[Frame], bool],
        node_config: Mapping[str, bool | float | int | str] | None = None,
    ) -> None:
        self._node_id = node_id_of(gateway_id)
        self._app, self._send = app, send
        self._node_config = dict(node_config or {})
        self._contexts: OrderedDict[int, Context] = OrderedDict()
        self._joining = Assembly(REQUEST_BYTES_MAX, REQUEST_BYTES_MAX)
        self._waiting: queue.Queue[bytes] = queue.Queue(WAITING_MAX)
        self._answered: OrderedDict[str, bytes] = OrderedDict()
        self.app_errors = 0
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="learner", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float) -> None:
        """End after the request under way."""
        self._stopping.set()
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(b"")  # it need not wait for a request
        if self._thread.is_alive():
            self._thread.join(timeout_s)

    def on_frame(self, frame: Frame) -> None:
        """Take a Flower message from the centre, or a part of one.

        Raises:
            WireError: the parts contradict each other, or would be too large a message.
        """
        data = self._joining.add("", frame, time.monotonic()) if isinstance(frame, Chunk) else frame.message
        while data is not None:
            try:
                self._waiting.put_nowait(data)
            except queue.Full:
                self._waiting.get_nowait()
                log.warning("a round's request was dropped: four others wait")
            else:
                return

    def answer(self, data: bytes) -> bytes | None:
        """The reply to a request; the same request has the same reply. None when it is not for this gateway."""
        message = message_from_bytes(data)
        if message.metadata.dst_node_id != self._node_id:
            log.warning("a Flower message for node %d came here", message.metadata.dst_node_id)
            return None
        name = message.metadata.message_id
        if name not in self._answered:
            self._answered[name] = message_to_bytes(self._run_app(message))
            while len(self._answered) > 1 and (
                len(self._answered) > ANSWERED_MAX or sum(map(len, self._answered.values())) > ANSWERED_BYTES_MAX
            ):
                self._answered.popitem(last=False)
        return self._answered[name]

    def _run_app(self, message: Message) -> Message:
        """The app's reply; when it fails, one that says so, as Flower's nodes do: the round need not wait for it."""
        try:
            return self._app(message, self._context_of(message.metadata.run_id))
        except HeadframeError as error:
            log.error("a round's request was refused: %s", error)
            reason = str(error)
        except Exception as error:  # a message handler: any app may run here
            self.app_errors += 1
            log.exception("the client app failed")
            reason = f"{type(error).__name__}: {error}"
        return Message(Error(APP_FAILED, reason), reply_to=message)

    def _context_of(self, run_id: int) -> Context:
        """The run's own: rounds of the centre come in between those of a run that takes an hour."""
        found = self._contexts.pop(run_id, None)
        self._contexts[run_id] = found or Context(run_id, self._node_id, dict(self._node_config), RecordDict(), {})
        while len(self._contexts) > RUNS_MAX:
            self._contexts.popitem(last=False)
        return self._contexts[run_id]

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                data = self._waiting.get(timeout=0.5)
            except queue.Empty:
                continue
            if self._stopping.is_set():
                return
            try:
                reply = self.answer(data)
            except HeadframeError as error:
                log.error("a round's request was refused: %s", error)
                continue
            if reply is not None:
                self._deliver(reply)

    def _deliver(self, reply: bytes) -> None:
        for frame in frames(reply):
            if not self._publish(frame):
                log.warning("the reply to a round could not be sent; the centre uses what it had")
                return

    def _publish(self, frame: Frame) -> bool:
        return any(not self._stopping.wait(wait_s) and self._send(frame) for wait_s in SEND_TRIES_S)
