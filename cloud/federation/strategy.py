"""The analytic strategy: one round, in which every client sends the sufficient statistics of its labelled samples.

A Flower `Strategy`, so it runs on any Grid. Replies are checked one by one as they arrive; a wrong one is counted with
its reason and left out, never averaged in.
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.contribution import Labels, pack_request, unpack_reply, unpack_request
from common.errors import HeadframeError
from common.flower import ArrayRecord, ConfigRecord, Message, MetricRecord, release
from common.packing import Packed

log = logging.getLogger(__name__)

Parts = dict[str, tuple[Packed, set[bytes]]]
"""scenario -> statistics as they came, ids covered"""
OnAnswer = Callable[[int, Parts], None]
"""(node id, what it contributed)"""


class AnalyticStrategy(Strategy):  # type: ignore[misc]  # flwr is not typed for us
    """Collects statistics.

    Args:
        backbone: hash of the backbone that the statistics must stand on.
        scenarios: scenario -> classes, in the order of the statistics.
        labels_for: node id -> scenario -> sample id -> label, what people said about that client's uploads.
        on_answer: called for each good reply, also for one that contributes nothing; whoever needs it keeps it there.
        skip: nodes that are not asked.
        bytes_max: bound on the statistics of a scenario; 0 loses nothing.
        class_samples_min: a class of which a client has fewer is not told of.
    """

    def __init__(
        self,
        backbone: str,
        scenarios: Mapping[str, Sequence[str]],
        labels_for: Callable[[int], Labels],
        on_answer: OnAnswer,
        skip: Collection[int] = (),
        bytes_max: int = 0,
        class_samples_min: int = 0,
    ) -> None:
        self._backbone, self._scenarios, self._skip = backbone, scenarios, frozenset(skip)
        self._labels_for, self._on_answer = labels_for, on_answer
        self._bytes_max, self._class_samples_min = bytes_max, class_samples_min
        self._request = unpack_request(pack_request(backbone, scenarios, {}))
        self.counters: Counter[str] = Counter()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """One message per client, with the labels of its own samples. A list: Flower's own grid reads it twice."""
        del arrays, config
        messages = []
        for node_id in grid.get_node_ids():
            if node_id in self._skip:
                continue
            content = pack_request(
                self._backbone, self._scenarios, self._labels_for(node_id), self._bytes_max, self._class_samples_min
            )
            messages.append(Message(content, node_id, "train", group_id=str(server_round)))
        self.counters["asked"] += len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold each reply as it comes."""
        del server_round
        for reply in replies:
            self._fold(reply)
            release(reply)
        return None, MetricRecord({name: int(count) for name, count in self.counters.items()})

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Evaluation is the centre's gate: no message."""
        del server_round, arrays, config, grid
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Nothing was asked."""
        del server_round, replies
        return None

    def summary(self) -> None:
        """Say what this round is about."""
        log.info("analytic round on backbone %s: %s", self._backbone[:12], ", ".join(self._scenarios))

    def _fold(self, reply: Message) -> None:
        node_id = reply.metadata.src_node_id
        if reply.has_error():
            self.counters["failed"] += 1
            log.warning("client %d failed: %s", node_id, reply.error.reason)
            return
        try:
            parts = unpack_reply(reply.content, self._request)
        except HeadframeError as error:
            self.counters["refused"] += 1
            log.warning("the reply of client %d was refused: %s", node_id, error)
            return
        self.counters["folded"] += 1
        self._on_answer(node_id, parts)
