"""One federation round as a Flower ServerApp, on whichever grid it is given."""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from flwr.serverapp import Grid, ServerApp

from cloud.federation.grid import MqttGrid
from cloud.federation.strategy import AnalyticStrategy, Parts
from common.contribution import Labels
from common.errors import EnvironmentFault
from common.flower import ArrayRecord, Context, RecordDict, node_id_of

log = logging.getLogger(__name__)


OnAnswer = Callable[[str, Parts], None]
"""(gateway, its statistics and covered ids per scenario), as each reply arrives"""


@dataclass
class RoundResult:
    """What came of a round: per gateway and scenario the statistics and the sample ids they count."""

    contributions: dict[str, Parts] = field(default_factory=dict)
    """Empty when `on_answer` took them."""
    counters: Counter[str] = field(default_factory=Counter)


def run_round(
    grid: MqttGrid,
    backbone: str,
    scenarios: Mapping[str, Sequence[str]],
    labels_for: Callable[[str], Labels],
    *,
    deadline_s: float,
    quorum: float,
    on_answer: OnAnswer | None = None,
    answered: Collection[str] = (),
    bytes_max: int = 0,
    class_samples_min: int = 0,
) -> RoundResult:
    """Ask every gateway that is online; close at the deadline with whoever answered.

    Args:
        quorum: share of those asked that must have answered well.
        on_answer: keeps a gateway's answer for good; called before the next one is taken.
        answered: gateways whose answers were kept before a crash cut the round short: not asked again, and counted.
        bytes_max: bound on a gateway's statistics of a scenario; 0 loses nothing.
        class_samples_min: a class of which a gateway has fewer is not told of.

    Raises:
        EnvironmentFault: fewer answered than the quorum; says how many.
    """
    result = RoundResult()
    keep = on_answer or result.contributions.__setitem__
    before = {node_id_of(gateway_id) for gateway_id in answered}
    strategy = AnalyticStrategy(
        backbone,
        scenarios,
        lambda node_id: labels_for(grid.gateway_of(node_id)),
        lambda node_id, parts: keep(grid.gateway_of(node_id), parts) if parts else None,
        skip=before,
        bytes_max=bytes_max,
        class_samples_min=class_samples_min,
    )
    counted = Counter(grid.counters)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    make_server_app(strategy, deadline_s)(grid, context)
    result.counters = strategy.counters + (grid.counters - counted)
    asked, folded = strategy.counters["asked"] + len(before), strategy.counters["folded"] + len(before)
    check_quorum(folded, asked, quorum, deadline_s)
    return result


def check_quorum(folded: int, asked: int, quorum: float, deadline_s: float) -> None:
    """Raises:
    EnvironmentFault: fewer answered than the quorum.
    """
    if folded < quorum * asked:
        raise EnvironmentFault(
            f"{folded} of {asked} gateways answered in {deadline_s:g} s, the quorum is {quorum:.0%}",
            "Start the round again when more are online, or lower learning.quorum.",
        )


def make_server_app(strategy: AnalyticStrategy, deadline_s: float) -> ServerApp:
    """A ServerApp of one analytic round."""
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        del context
        strategy.start(grid, initial_arrays=ArrayRecord(), num_rounds=1, timeout=deadline_s)

    return app
