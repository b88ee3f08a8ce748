"""Two levels: a site's gateways are averaged first, then the sites.

With sites weighed by their samples this equals the flat average (a test says so); what it adds is a bound on a site's
weight, so that a site with fifty gateways, or one that claims a million samples, does not drown the others.

A site is closed, and its sum let go, when the last of its gateways has answered: memory is O(open sites x model).
Requests leave site by site, but nobody waits between two sites, so how many are open is up to how they answer; all of
them at worst. For the adapter (170 KB, 500 KB as a sum) that is 5 GB at 10,000 sites; for whole models use
`StreamingFedAvg`.
"""

from collections import Counter
from collections.abc import Callable, Iterable

from flwr.serverapp import Grid

from cloud.federation.averaging import MeanMetrics, StreamingFedAvg, to_record
from cloud.federation.folding import Mean
from common.flower import ArrayRecord, ConfigRecord, Message, MetricRecord


class TwoLevelFedAvg(StreamingFedAvg):
    """Averages within sites, then over sites.

    Args:
        site_of: node id -> site.
        site_weight_max: what a site counts at most, in samples.
    """

    def __init__(
        self, site_of: Callable[[int], str], *, site_weight_max: float = float("inf"), **averaging: object
    ) -> None:
        super().__init__(**averaging)  # type: ignore[arg-type]
        self._site_of, self._site_weight_max = site_of, site_weight_max

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg, in the order of sites."""
        messages = super().configure_train(server_round, arrays, config, grid)
        return sorted(messages, key=lambda message: self._site_of(message.metadata.dst_node_id))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold gateways into their site, and a site into the whole as soon as all its gateways have answered."""
        whole, metrics = self.empty_mean(), MeanMetrics(self.weighted_by_key)
        left = Counter(self._site_of(node) for node in self._asked)
        sites: dict[str, Mean] = {}
        folded = 0
        for reply in self.good(server_round, replies):
            site = self._site_of(reply.metadata.src_node_id)
            folded += self.fold(reply, sites.setdefault(site, self.empty_mean()), metrics)
            left[site] -= 1
            if not left[site]:
                self._close(sites.pop(site), whole)
            if folded >= self._wanted > 0:
                break  # the spare ones are stragglers now, as in `StreamingFedAvg`
        for mean in sites.values():  # whose gateways did not all answer
            self._close(mean, whole)
        self.check_quorum(folded)
        return (to_record(whole), metrics.result()) if whole.folds else (None, None)

    def _close(self, site: Mean, whole: Mean) -> None:
        if site.folds:
            whole.add_mean(site, min(site.weight, self._site_weight_max))
