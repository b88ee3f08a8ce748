"""Asynchronous averaging: no round waits for its slowest client (FedBuff, Nguyen et al. 2022, arXiv:2106.06639).

Clients train on whatever model they were given last. Every `buffer` updates make a new model; an update that was
computed s models ago counts 1/√(1+s) of its weight, as in the paper. What is averaged is the *difference* from the
model that the client started from, so that a stale update pushes where it meant to and does not pull the model back.
At most `versions_max` old models are kept for that, and what is older is counted as `stale`; a request that is under
way holds its model too, for `answer_within_s` at most.

At every step, some of those that are online and have nothing to do are asked, drawn at random, so that `concurrency`
are at work: those that come later, and those whose request or answer was lost, take part. A client whose update was of
no use waits for the next model, so that one that fails at once is not asked in circles.
"""

import math
import random
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result
from numpy.typing import NDArray

from cloud.federation.averaging import MeanMetrics, StreamingFedAvg
from cloud.federation.folding import Mean
from common.errors import EnvironmentFault
from common.flower import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict, release

PULL_S = 0.05
VERSIONS_MAX = 8
CONCURRENCY = 100  # were a whole fleet asked at once, the first answers would wait for the last request
ANSWER_WITHIN_S = 600.0  # an epoch takes ten seconds of a server's core, minutes on a small box


@dataclass(frozen=True, slots=True)
class Asked:
    """A request under way."""

    node: int
    began: int
    """The model that it carries."""
    at_s: float


class BufferedAsync(StreamingFedAvg):
    """Buffered asynchronous averaging; a round is a model.

    Args:
        buffer: how many updates make a new model.
        server_rate: share of the mean difference that is applied.
        versions_max: older models' updates are left out.
        answer_within_s: a client that has not answered by then is asked anew, with the newest model.
        concurrency: how many online clients are at work at a time; bounds what is sent and what waits to be folded.
    """

    def __init__(
        self,
        *,
        buffer: int,
        server_rate: float = 1.0,
        versions_max: int = VERSIONS_MAX,
        answer_within_s: float = ANSWER_WITHIN_S,
        concurrency: int = CONCURRENCY,
        **averaging: object,
    ) -> None:
        super().__init__(**averaging)  # type: ignore[arg-type]
        self.buffer, self.server_rate, self.versions_max = buffer, server_rate, versions_max
        self.answer_within_s, self.concurrency = answer_within_s, concurrency
        self._versions: OrderedDict[int, ArrayRecord] = OrderedDict()
        self._sums: dict[int, Mean] = {}
        self._metrics = MeanMetrics(self.weighted_by_key)
        self._under_way: dict[str, Asked] = {}
        self._resting: dict[int, int] = {}
        """Node -> model with which it was of no use."""

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 3,
        timeout: float = 3600,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """In place of Flower's loop over rounds. Clients evaluate nothing: there is no moment for it.

        Args:
            num_rounds: models to make.
            timeout: how long no client may send anything of use.

        Raises:
            EnvironmentFault: nothing of use came for so long.
        """
        del evaluate_config
        result = Result()

        def on_model(version: int, arrays: ArrayRecord, metrics: MetricRecord) -> None:
            result.train_metrics_clientapp[version] = metrics
            if evaluate_fn and (found := evaluate_fn(version, arrays)) is not None:
                result.evaluate_metrics_serverapp[version] = found

        waits_max = math.ceil(timeout / PULL_S)
        config = train_config or ConfigRecord()
        result.arrays = self.run_async(
            grid, initial_arrays, num_rounds, wait=time.sleep, waits_max=waits_max, config=config, on_model=on_model
        )
        return result

    def run_async(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_models: int,
        *,
        wait: Callable[[float], object],
        waits_max: int,
        config: ConfigRecord | None = None,
        on_model: Callable[[int, ArrayRecord, MetricRecord], None] = lambda _version, _arrays, _metrics: None,
    ) -> ArrayRecord:
        """Make `num_models` models.

        Args:
            wait: sleeps; given, so that a simulation can have its own time.
            waits_max: pauses of `PULL_S` without an update of use after which it gives up.
            config: what clients are told.
            on_model: called with each model, and the mean of what its clients measured.

        Raises:
            EnvironmentFault: nothing of use came for `waits_max` pauses.
        """
        arrays, version, folded, idle = initial_arrays, 0, 0, 0
        self.expect(arrays)
        self._begin(0, arrays)
        while version < num_models:
            self._ask(grid, version, arrays, config or ConfigRecord())
            replies = self._pull(grid)
            for reply, asked in replies:
                if not self.take(reply, asked.began, version):
                    self._resting[asked.node] = version
                    continue
                idle, folded = 0, folded + 1
                if folded == self.buffer:
                    version, folded = version + 1, 0
                    arrays = self._advance(version, arrays)
                    on_model(version, arrays, self._metrics.result())
                    self._metrics = MeanMetrics(self.weighted_by_key)
            if not replies:
                idle += 1
                wait(PULL_S)
            if idle > waits_max:
                raise EnvironmentFault("no client has sent an update for a while", "Are gateways online?")
        return arrays

    def take(self, reply: Message, began: int, version: int) -> bool:
        """Fold an update that began from model `began` while `version` is the newest."""
        if reply.has_error():
            return self._leave_out("failed", reply)
        if began not in self._versions:
            return self._leave_out("stale", reply)
        self._base = self._versions[began]  # a compressed update is a difference from the model it began from
        mean = self._sums.setdefault(began, self.empty_mean())
        return self.fold(reply, mean, self._metrics, 1.0 / np.sqrt(1.0 + version - began))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Not in rounds: see `start`."""
        raise NotImplementedError("an asynchronous strategy has no rounds; call start")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Not in rounds: see `start`."""
        raise NotImplementedError("an asynchronous strategy has no rounds; call start")

    def _ask(self, grid: Grid, version: int, arrays: ArrayRecord, config: ConfigRecord) -> None:
        """As many of those that are online and idle as may work."""
        busy, online = {asked.node for asked in self._under_way.values()}, list(grid.get_node_ids())
        idle = [node for node in online if node not in busy and self._resting.get(node, version - 1) < version]
        room = self.concurrency - len(busy.intersection(online))
        nodes = random.sample(idle, max(0, min(room, len(idle))))
        told = ConfigRecord({**config, "server-round": version + 1})
        content = RecordDict({self.arrayrecord_key: arrays, self.configrecord_key: told})
        messages = [Message(content, node, "train", ttl=self.answer_within_s) for node in nodes]
        self.counters["asked"] += len(messages)
        for node, name in zip(nodes, grid.push_messages(messages), strict=True):
            if name:
                self._under_way[name] = Asked(node, version, time.monotonic())
            else:  # it could not be sent
                self._resting[node] = version

    def _pull(self, grid: Grid) -> list[tuple[Message, Asked]]:
        """What has come; then who has had time enough is free again."""
        now_s = time.monotonic()  # before: what the grid took in time is pulled, and what comes later it refuses
        replies = list(grid.pull_messages(list(self._under_way)))
        found = [(reply, self._under_way.pop(reply.metadata.reply_to_message_id)) for reply in replies]
        for name in [n for n, asked in self._under_way.items() if now_s - asked.at_s >= self.answer_within_s]:
            del self._under_way[name]
            self.counters["silent"] += 1
        return found

    def _leave_out(self, kind: str, reply: Message) -> bool:
        self.counters[kind] += 1
        release(reply)
        return False

    def _begin(self, version: int, arrays: ArrayRecord) -> None:
        self._versions[version] = arrays
        while len(self._versions) > self.versions_max:
            self._versions.popitem(last=False)

    def _advance(self, version: int, arrays: ArrayRecord) -> ArrayRecord:
        """The next model: this one and the weighted mean difference of the buffered updates."""
        weight = sum(mean.weight for mean in self._sums.values())
        made = {name: array.numpy().astype(np.float64) for name, array in arrays.items()}
        for began, mean in self._sums.items():
            if not mean.folds:  # the only update of its model did not fit
                continue
            share = self.server_rate * mean.weight / weight
            start: dict[str, NDArray[np.generic]] = {n: a.numpy() for n, a in self._versions[began].items()}
            for name, values in mean.result().items():
                made[name] += share * (values.astype(np.float64) - start[name].astype(np.float64))
        self._sums.clear()
        record = ArrayRecord({n: Array(v.astype(self._forms[n].dtype)) for n, v in made.items()})
        self._begin(version, record)
        return record
