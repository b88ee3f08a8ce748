"""One federation round as a Flower ServerApp, on whichever grid it is given."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.serverapp import Grid, ServerApp

from cloud.federation.grid import MqttGrid
from cloud.federation.strategy import AnalyticStrategy
from common.contribution import Labels
from common.errors import EnvironmentFault
from common.flower import ArrayRecord, Context, RecordDict
from common.statistics import Statistics

log = logging.getLogger(__name__)

Parts = dict[str, tuple[Statistics, set[bytes]]]


@dataclass
class RoundResult:
    """What came of a round: per gateway and scenario the statistics and the sample ids they count."""

    contributions: dict[str, Parts] = field(default_factory=dict)
    counters: Counter[str] = field(default_factory=Counter)


def run_round(
    grid: MqttGrid,
    backbone: str,
    scenarios: Mapping[str, Sequence[str]],
    labels_for: Callable[[str], Labels],
    *,
    deadline_s: float,
    quorum: float,
) -> RoundResult:
    """Ask every gateway that is online; close at the deadline with whoever answered.

    Args:
        quorum: share of those asked that must have answered well.

    Raises:
        EnvironmentFault: fewer answered than the quorum; says how many.
    """
    result = RoundResult()

    def keep(node_id: int, scenario: str, statistics: Statistics, covered: set[bytes]) -> None:
        result.contributions.setdefault(grid.gateway_of(node_id), {})[scenario] = statistics, covered

    strategy = AnalyticStrategy(backbone, scenarios, lambda node_id: labels_for(grid.gateway_of(node_id)), keep)
    before = Counter(grid.counters)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    make_server_app(strategy, deadline_s)(grid, context)
    result.counters = strategy.counters + (grid.counters - before)
    asked, folded = strategy.counters["asked"], strategy.counters["folded"]
    if folded < quorum * asked:
        raise EnvironmentFault(
            f"{folded} of {asked} gateways answered in {deadline_s:g} s, the quorum is {quorum:.0%}",
            "Start the round again when more are online, or lower learning.quorum.",
        )
    return result


def make_server_app(strategy: AnalyticStrategy, deadline_s: float) -> ServerApp:
    """A ServerApp of one analytic round."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy.start(grid, initial_arrays=ArrayRecord(), num_rounds=1, timeout=deadline_s)

    return app
