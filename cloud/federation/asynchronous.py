"""Asynchronous averaging: no round waits for its slowest client (FedBuff, Nguyen et al. 2022, arXiv:2106.06639).

Clients train on whatever model they were given last. Every `buffer` updates make a new model; an update that was
computed s models ago counts 1/√(1+s) of its weight, as in the paper. What is averaged is the *difference* from the
model that the client started from, so that a stale update pushes where it meant to and does not pull the model back.
Difference means memory O(models under way x model): at most `versions_max` old models are kept, and what is older is
counted as `stale`.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterable

import numpy as np
from flwr.serverapp import Grid
from numpy.typing import NDArray

from cloud.federation.averaging import MeanMetrics, StreamingFedAvg
from cloud.federation.folding import Mean
from common.errors import EnvironmentFault
from common.flower import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

PULL_S = 0.05
VERSIONS_MAX = 8


class BufferedAsync(StreamingFedAvg):
    """Buffered asynchronous averaging; `run_async` takes the place of Flower's `start`.

    Args:
        buffer: how many updates make a new model.
        server_rate: share of the mean difference that is applied.
        versions_max: older models' updates are left out.
    """

    def __init__(
        self, *, buffer: int, server_rate: float = 1.0, versions_max: int = VERSIONS_MAX, **averaging: object
    ) -> None:
        super().__init__(**averaging)  # type: ignore[arg-type]
        self.buffer, self.server_rate, self.versions_max = buffer, server_rate, versions_max
        self._versions: OrderedDict[int, ArrayRecord] = OrderedDict()
        self._sums: dict[int, Mean] = {}

    def run_async(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_models: int,
        *,
        wait: Callable[[float], object],
        waits_max: int,
    ) -> ArrayRecord:
        """Make `num_models` models.

        Args:
            wait: sleeps; given, so that a simulation can have its own time.
            waits_max: pauses of `PULL_S` without a new reply after which it gives up.

        Raises:
            EnvironmentFault: nothing came for `waits_max` pauses.
        """
        arrays = initial_arrays
        self.expect(arrays)
        under_way: dict[str, int] = {}
        self._begin(0, arrays)
        under_way.update(self._ask(grid, list(grid.get_node_ids()), 0, arrays))
        version, folded, idle = 0, 0, 0
        while version < num_models:
            replies = list(grid.pull_messages(list(under_way)))
            idle = 0 if replies else idle + 1
            if idle > waits_max:
                raise EnvironmentFault("no client has sent an update for a while", "Are gateways online?")
            free: list[int] = []
            for reply in replies:
                began = under_way.pop(reply.metadata.reply_to_message_id)
                free.append(reply.metadata.src_node_id)
                folded += self.take(reply, began, version)
                if folded == self.buffer:
                    version, folded = version + 1, 0
                    arrays = self._advance(version, arrays)
            under_way.update(self._ask(grid, free, version, arrays))
            if not replies:
                wait(PULL_S)
        return arrays

    def take(self, reply: Message, began: int, version: int) -> bool:
        """Fold an update that began from model `began` while `version` is the newest."""
        if reply.has_error():
            self.counters["failed"] += 1
            return False
        if began not in self._versions:
            self.counters["stale"] += 1
            return False
        self._base = self._versions[began]  # a compressed update is a difference from the model it began from
        mean = self._sums.setdefault(began, self.empty_mean())
        return self.fold(reply, mean, MeanMetrics(self.weighted_by_key), 1.0 / np.sqrt(1.0 + version - began))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not in rounds: see `run_async`."""
        raise NotImplementedError("an asynchronous strategy has no rounds; call run_async")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not in rounds: see `run_async`."""
        raise NotImplementedError("an asynchronous strategy has no rounds; call run_async")

    def _ask(self, grid: Grid, nodes: list[int], version: int, arrays: ArrayRecord) -> dict[str, int]:
        content = {self.arrayrecord_key: arrays, self.configrecord_key: ConfigRecord({"server-round": version})}
        messages = list(self._construct_messages(RecordDict(content), nodes, "train"))
        self.counters["asked"] += len(messages)
        return dict.fromkeys(grid.push_messages(messages), version)

    def _begin(self, version: int, arrays: ArrayRecord) -> None:
        self._versions[version] = arrays
        while len(self._versions) > self.versions_max:
            self._versions.popitem(last=False)

    def _advance(self, version: int, arrays: ArrayRecord) -> ArrayRecord:
        """The next model: this one and the weighted mean difference of the buffered updates."""
        weight = sum(mean.weight for mean in self._sums.values())
        made = {name: array.numpy().astype(np.float64) for name, array in arrays.items()}
        for began, mean in self._sums.items():
            share = self.server_rate * mean.weight / weight
            start: dict[str, NDArray[np.generic]] = {n: a.numpy() for n, a in self._versions[began].items()}
            for name, values in mean.result().items():
                made[name] += share * (values.astype(np.float64) - start[name].astype(np.float64))
        self._sums.clear()
        record = ArrayRecord({n: Array(v.astype(self._forms[n].dtype)) for n, v in made.items()})
        self._begin(version, record)
        return record
