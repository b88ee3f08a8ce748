"""Rounds from a process of its own, beside the running centre: a second connection to the same broker.

A command that trains for an hour must not hold the centre's rounds up, nor end with a restart of it. Answers reach both
connections; each grid knows what it asked, and passes over the rest. Who is online is heard here, and written by the
centre only.
"""

import logging
import secrets
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager

from cloud.admission import check_state
from cloud.federation.grid import MqttGrid
from cloud.guard import Guard
from cloud.link import CentreLink
from cloud.reported import Reported
from cloud.store import Store
from common import codec, topics
from common.clock import Clock
from common.errors import ForgeryError, HeadframeError
from common.flower import SERVER_NODE_ID, take_identity
from common.frames import Courier
from common.messages import Chunk, FlowerFrame, State
from common.mqtt import Broker

log = logging.getLogger(__name__)

CONNECT_S = 20.0
LOOK_S = 0.2
ASK_AGAIN_S = 120.0  # an epoch may take minutes, and each asking is a model
KINDS = ("state", "flower")


class Caller:
    """Asks gateways that fulfil a condition.

    Args:
        name: of the connection; one of each at a time.
        chosen: whether a gateway that is online, and was not unlearned, is asked.
    """

    def __init__(
        self, broker: Broker, name: str, store: Store, guard: Guard, clock: Clock, chosen: Callable[[State], bool]
    ) -> None:
        self._store, self._guard, self._chosen = store, guard, chosen
        self._reported = Reported(store, clock)
        filters = [topics.up_filter(kind=kind) for kind in KINDS]
        self._link = CentreLink(broker, name, filters, self._on_message)
        courier = Courier(lambda to, frame: self._link.publish(topics.down(to, "flower"), codec.encode(frame)))
        self.grid = MqttGrid(courier.send, self.participants, ask_again_s=ASK_AGAIN_S)

    @contextmanager
    def connected(self) -> Iterator[MqttGrid]:
        """The grid, while the connection is there.

        Raises:
            EnvironmentFault: the broker is out of reach.
        """
        take_identity(SERVER_NODE_ID, secrets.randbits(63))  # clients begin anew with another run
        self._link.start()
        try:
            self._link.wait_connected(CONNECT_S)
            yield self.grid
        finally:
            self._link.stop()

    def gather(self, expected: Collection[str], wait_s: float) -> list[str]:
        """Who can be asked: as soon as all that are expected have reported, or after `wait_s`."""
        deadline = time.monotonic() + wait_s
        while not expected or not set(expected) <= set(found := self.participants()):
            if time.monotonic() > deadline:
                return self.participants()
            time.sleep(LOOK_S)
        return found

    def participants(self) -> list[str]:
        """Gateways that can be asked now."""
        excluded, (states, ages) = self._store.excluded(), self._reported.states()
        return sorted(
            name
            for name in ages
            if self._chosen(states[name]) and name not in excluded and states[name].site_id not in excluded
        )

    def site_of(self, node_id: int) -> str:
        """The site of a node of the grid."""
        return self._reported.site_of(self.grid.gateway_of(node_id))

    def _on_message(self, topic: str, payload: bytes) -> None:
        try:
            gateway_id, _ = topics.parse_up(topic)
            if not self._guard.admits(gateway_id):
                return
            match codec.decode(payload):
                case State() as state:
                    if state.gateway_id != gateway_id:
                        raise ForgeryError(f"state of {state.gateway_id!r} came on the topic of {gateway_id!r}")
                    check_state(state)
                    self._reported.take(state)
                case FlowerFrame() as frame:
                    self.grid.on_frame(gateway_id, frame.message)
                case Chunk() as chunk:
                    self.grid.on_chunk(gateway_id, chunk)
        except HeadframeError as error:
            log.warning("%s: %s", topic, error)
