"""The rules of two common engines, as their documentation gives them, for `headframe bench gates`.

Both are simulated by counts: what a site reports is drawn beforehand, and it is counted as these engines count it.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

Flags = NDArray[np.bool_]
GROUPS: Final = (1, 5, 30, 150, 750)
"""Cumulative ends of the deployment groups, the same stages as ours; then all."""
TRIGGER, ERROR = 0.8, 0.1
"""hawkBit: the next group starts at this share of finished actions; the rollout pauses at this share of errors."""
AWS_BASE, AWS_FACTOR = 50, 2.0
"""AWS IoT Jobs: exponential rate, things told at once at first, and its growth when they have succeeded."""
AWS_ABORT, AWS_EXECUTED_MIN = 0.10, 100
"""Abort at this share of failed or timed-out executions, once so many have ended."""


def run_hawkbit(order: NDArray[np.integer], offline: Flags, silent: Flags, failing: Flags) -> tuple[str, int]:
    """Groups in order. Neither silence nor absence is an error, and the group's size is the denominator of both."""
    begin = 0
    for end in (*GROUPS, len(order)):
        group = order[begin:end]
        errors = (failing & ~silent & ~offline)[group].mean()
        finished = (~failing & ~silent & ~offline)[group].mean()
        if errors >= ERROR:
            return "aborted", end
        if finished < TRIGGER:
            return "stuck", end  # the trigger is never reached
        begin = end
    return "completed", len(order)


def run_aws(order: NDArray[np.integer], offline: Flags, silent: Flags, failing: Flags) -> tuple[str, int]:
    """Batches that grow. An execution times out when it has begun and nothing more is heard; absent things wait."""
    reachable = order[~offline[order]]
    told, batch, bad = 0, float(AWS_BASE), 0
    while told < len(reachable):
        group = reachable[told : told + int(batch)]
        told += len(group)
        bad += int((failing | silent)[group].sum())
        if told >= AWS_EXECUTED_MIN and bad / told >= AWS_ABORT:
            return "aborted", told
        batch *= AWS_FACTOR
    return "completed", told
