"""Federated averaging whose replies are folded as they arrive: memory is O(model), not O(clients x model).

`StreamingFedAvg` and `StreamingFedProx` take the place of Flower's FedAvg and FedProx (same messages, same result to
rounding, any Grid). Median, trimmed mean and Krum need all replies at once and stay Flower's own.

A reply that is wrong is counted under its reason and left out: `failed` (the client said so), `malformed`, `shape`,
`dtype`, `not-finite`, `weight`, `oversize`, `duplicate` (a node's second reply in a round), `stale` (of another round).
`unasked`, `late` and `foreign` ones never come this far: see `cloud.federation.grid`.
"""

import logging
import math
import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from flwr.serverapp import Grid
from flwr.serverapp.strategy import FedAvg

from cloud.federation.folding import Buffer, Form, Mean, Misfit
from cloud.federation.kernels import fastest_kernel
from common.compression import decode
from common.errors import EnvironmentFault, WireError
from common.flower import COMPRESSED, Array, ArrayRecord, ConfigRecord, Message, MetricRecord, release

log = logging.getLogger(__name__)

OVERSIZE_FACTOR = 2  # of the model's own bytes; an honest update has as many as the model


def forms_of(arrays: ArrayRecord) -> dict[str, Form]:
    """What the arrays of a model look like."""
    return {name: Form.of(np.dtype(array.dtype), tuple(array.shape)) for name, array in arrays.items()}


def to_record(mean: Mean) -> ArrayRecord:
    """The mean as Flower carries it."""
    return ArrayRecord({name: Array(np.asarray(values)) for name, values in mean.result().items()})


class StreamingFedAvg(FedAvg):  # type: ignore[misc]  # flwr is not typed for us
    """FedAvg in constant memory. Takes FedAvg's arguments (but not its metrics functions) and these:

    Args:
        quorum: share of those asked that must have been folded, or the round fails.
        spare: share of more clients to ask than `fraction_train` says (over-selection), so that stragglers are not
            waited for: the round closes when as many as were wanted have been folded.
    """

    def __init__(
        self, *, quorum: float = 0.0, spare: float = 0.0, weighted_by_key: str = "num-examples", **fedavg: object
    ) -> None:
        super().__init__(weighted_by_key=weighted_by_key, **fedavg)
        self.quorum, self.spare = quorum, spare
        self.counters: Counter[str] = Counter()
        self._forms: dict[str, Form] = {}
        self._base = ArrayRecord()
        self._asked: dict[int, int] = {}
        """Node -> round it was asked in."""
        self._wanted = 0
        self._kernel = fastest_kernel()

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask FedAvg's sample of clients, and `spare` more of the others, drawn as FedAvg draws."""
        wanted = list(super().configure_train(server_round, arrays, config, grid))
        self._wanted = len(wanted)
        self.expect(arrays)
        asked = {message.metadata.dst_node_id for message in wanted}
        left = [node for node in grid.get_node_ids() if node not in asked]
        others = random.sample(left, min(len(left), math.ceil(self.spare * len(wanted))))
        messages = [*wanted, *self._construct_messages(wanted[0].content, others, "train")] if wanted else []
        self._asked = {message.metadata.dst_node_id: server_round for message in messages}
        for message in messages:
            message.metadata.group_id = str(server_round)
        self.counters["asked"] += len(messages)
        return messages

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold each reply as it comes.

        Raises:
            EnvironmentFault: fewer were folded than the quorum.
        """
        mean, metrics = self.empty_mean(), MeanMetrics(self.weighted_by_key)
        for reply in self.good(server_round, replies):
            self.fold(reply, mean, metrics)
            if mean.folds >= self._wanted > 0:
                break  # the spare ones are stragglers now; the grid counts what still comes as late
        self.check_quorum(mean.folds)
        return (to_record(mean), metrics.result()) if mean.folds else (None, None)

    def empty_mean(self) -> Mean:
        """A mean of this round's model, with nothing folded."""
        return Mean(self._forms, self._kernel)

    def expect(self, arrays: ArrayRecord) -> None:
        """Say what updates look like, where no round of this strategy has asked for them."""
        self._forms, self._base = forms_of(arrays), arrays

    def mean_of(self, replies: Iterable[Message]) -> ArrayRecord:
        """The mean of replies that somebody else collected."""
        mean, metrics = self.empty_mean(), MeanMetrics(self.weighted_by_key)
        for reply in replies:
            self.fold(reply, mean, metrics)
        return to_record(mean)

    def check_quorum(self, folded: int) -> None:
        """Raises:
        EnvironmentFault: fewer were folded than the quorum.
        """
        if folded < self.quorum * self._wanted:
            raise EnvironmentFault(
                f"{folded} of {self._wanted} clients gave a usable update, the quorum is {self.quorum:.0%}",
                "Start the round again when more are online, or lower learning.quorum.",
            )

    def good(self, server_round: int, replies: Iterable[Message]) -> Iterator[Message]:
        """The replies that belong to this round, each node's first; others are counted."""
        seen: set[int] = set()
        for reply in replies:
            node = reply.metadata.src_node_id
            if reply.has_error():
                self.counters["failed"] += 1
                log.warning("client %d failed: %s", node, reply.error.reason)
            elif reply.metadata.group_id != str(server_round) or node not in self._asked:
                self.counters["stale"] += 1
            elif node in seen:
                self.counters["duplicate"] += 1
            else:
                seen.add(node)
                yield reply
                continue
            release(reply)

    def fold(self, reply: Message, mean: Mean, metrics: "MeanMetrics", scale: float = 1.0) -> bool:
        """Fold one reply with its weight times `scale`, and let go of its bytes; a wrong one is counted, and False."""
        try:
            (record,) = reply.content.array_records.values()
            (measured,) = reply.content.metric_records.values()
            weight = float(measured[self.weighted_by_key]) * scale
            buffers = {name: self._opened(name, array) for name, array in record.items()}
            self._check_size(sum(map(len, buffers.values())))
            mean.add(buffers, weight)
        except (ValueError, KeyError, TypeError) as error:
            kind, reason = "malformed", repr(error)
        except Misfit as error:
            kind, reason = error.kind, str(error)
        else:
            metrics.add(measured, weight)
            self.counters["folded"] += 1
            return True
        finally:
            release(reply)
        self.counters[kind] += 1
        log.warning("the update of client %d was left out: %s", reply.metadata.src_node_id, reason)
        return False

    def _opened(self, name: str, array: Array) -> Buffer:
        """An array's bytes; of a compressed difference, those of the model and the difference together."""
        if not array.stype.startswith(COMPRESSED):
            data: Buffer = array.data
            return data
        shape = tuple(array.shape)
        if name not in self._forms or shape != self._forms[name].shape:
            raise Misfit("shape", f"a compressed {name} has shape {shape}, the model has another")
        try:
            difference = decode(array.data, array.stype.removeprefix(COMPRESSED), shape)
        except WireError as error:
            raise Misfit("malformed", str(error)) from error
        whole: bytes = Array(self._base[name].numpy() + difference).data
        return whole

    def _check_size(self, nbytes: int) -> None:
        bound = OVERSIZE_FACTOR * sum(f.size * f.dtype.itemsize + len(f.header) for f in self._forms.values())
        if nbytes > bound:
            raise Misfit("oversize", f"an update of {nbytes} bytes is over the bound of {bound}")


class StreamingFedProx(StreamingFedAvg):
    """FedProx (Li et al. 2020, arXiv:1812.06127): FedAvg, and clients are told how hard to hold on to the model."""

    def __init__(self, proximal_mu: float = 0.0, **averaging: object) -> None:
        super().__init__(**averaging)  # type: ignore[arg-type]
        self.proximal_mu = proximal_mu

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg, with `proximal-mu` in the config, as Flower's FedProx writes it."""
        config["proximal-mu"] = self.proximal_mu
        return super().configure_train(server_round, arrays, config, grid)


class MeanMetrics:
    """Weighted means of what clients measured; a metric that only some have is the mean over those."""

    def __init__(self, weighted_by_key: str) -> None:
        self._key = weighted_by_key
        self._sums: dict[str, float] = {}
        self._weights: dict[str, float] = {}

    def add(self, metrics: Mapping[str, float | int | Sequence[float]], weight: float) -> None:
        """Lists and values that are not finite are passed over: they must not spoil the others."""
        for name, value in metrics.items():
            if name != self._key and isinstance(value, float | int) and math.isfinite(value):
                self._sums[name] = self._sums.get(name, 0.0) + weight * value
                self._weights[name] = self._weights.get(name, 0.0) + weight

    def result(self) -> MetricRecord:
        return MetricRecord({name: total / self._weights[name] for name, total in self._sums.items()})
