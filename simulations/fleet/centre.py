"""What the centre of a virtual fleet does with the sums of a round: quarantine, solve, gate, personal heads.

Every decision is the product's own: `cloud.learning.robustness`, `heads` and `gates`. Pure.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloud.learning.gates import compare_classes
from cloud.learning.heads import HeadWeights, solve_lda
from cloud.learning.robustness import Trusted, judge
from common.statistics import Array, Statistics
from simulations.fleet.pool import Pool
from simulations.fleet.scenario import Fleet

GOLD_EVERY = 2
"""Of the held-out rows every second one is gold where there is a gate; measured is on the others."""


def believed(fleet: Fleet, total: Statistics, by_site: Sequence[Statistics]) -> tuple[Statistics, list[int]]:
    """The sum without the sites under suspicion, and which those are."""
    if not fleet.quarantine:
        return total, []
    nobody = Trusted(Statistics.empty(total.classes, total.dimension), np.empty((0, total.dimension)), ())
    sent = {str(site): part for site, part in enumerate(by_site) if part.total}
    accused = [int(suspicion.gateway) for suspicion in judge(sent, nobody).suspects]
    for site in accused:
        total = total - by_site[site]
    return total, sorted(accused)


def gold_rows(fleet: Fleet, pool: Pool) -> NDArray[np.int64]:
    """Numbers of the rows that the gate compares on."""
    held_out: NDArray[np.int64] = np.flatnonzero(pool.held_out)
    return held_out[::GOLD_EVERY] if fleet.gate else held_out[:0]


def may_replace(fleet: Fleet, pool: Pool, running: HeadWeights | None, candidate: HeadWeights) -> bool:
    """Whether the candidate passes the gate against the running head, overall and for each class."""
    rows = gold_rows(fleet, pool)
    if running is None or not len(rows):
        return True
    x = pool.rows[rows]
    truth = [pool.classes[k] for k in pool.labels[rows]]
    compared = compare_classes("gold", truth, running.predict(x), candidate.predict(x), fleet.gate)
    return all(comparison.passed for comparison in compared)


def right_at_home(total: Statistics, own: Statistics, fleet: Fleet, x: Array, truth: Sequence[str]) -> float:
    """Share of a site's rows (n, d) that a head of its own gets right: its own samples count `personal` times."""
    head = solve_lda(total + own * (fleet.personal - 1), fleet.shrinkage)
    return share_right(head, x, truth)


def share_right(head: HeadWeights, x: Array, truth: Sequence[str]) -> float:
    return float(np.mean([said == name for said, name in zip(head.predict(x), truth, strict=True)]))
