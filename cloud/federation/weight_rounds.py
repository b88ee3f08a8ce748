"""Rounds of weight updates on any grid: a softmax head, or numbers of the backbone. Decides no strategy.

`cloud.federation.fleet_app` runs them by a run config; `headframe cloud finetune --federated` runs the second on the
production grid.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from common.errors import EnvironmentFault
from common.flower import Array, ArrayRecord
from common.training import HeadTask, Task, pack_task

NODES_LOOK_S = 0.5

OnRound = Callable[[int, ArrayRecord], None]
"""(how many rounds have made a model, the last one's)"""


@dataclass(frozen=True, slots=True)
class Learnt:
    """What rounds came to."""

    arrays: ArrayRecord
    curve: tuple[float, ...]
    """Mean loss that the clients of each round measured."""


def run_rounds(
    grid: Grid,
    strategy: Strategy,
    arrays: ArrayRecord,
    task: Task,
    *,
    rounds: int,
    deadline_s: float,
    on_round: OnRound = lambda _round, _arrays: None,
) -> Learnt:
    """Train by a strategy.

    Args:
        deadline_s: of a round; of the asynchronous strategy: how long nothing may come.

    Raises:
        EnvironmentFault: no client gave an update of use, or fewer than the strategy's quorum.
    """

    models, done = [arrays], [0]

    def after(_round: int, made: ArrayRecord) -> None:
        if made is not models[-1]:  # Flower also looks before the first round, and after one that gave nothing
            models[:] = [made]
            done[0] += 1
            on_round(done[0], made)

    result = strategy.start(
        grid, arrays, num_rounds=rounds, timeout=deadline_s, train_config=pack_task(task), evaluate_fn=after
    )
    if not len(result.arrays):
        raise EnvironmentFault(
            "no client gave an update of use", "What each said is in the log; `failed` ones have no data, app or torch."
        )
    measured = result.train_metrics_clientapp
    return Learnt(result.arrays, tuple(float(measured[n]["loss"]) for n in sorted(measured) if "loss" in measured[n]))


def blank_head(task: HeadTask, dimension: int) -> ArrayRecord:
    """The head that knows nothing."""
    classes = len(task.classes)
    return ArrayRecord(
        {"weight": Array(np.zeros((classes, dimension), np.float32)), "bias": Array(np.zeros(classes, np.float32))}
    )


def await_nodes(grid: Grid, nodes_min: int, deadline_s: float) -> list[int]:
    """The nodes, when there are enough.

    Raises:
        EnvironmentFault: there are not in time; Flower's strategies would wait without end.
    """
    deadline = time.monotonic() + deadline_s
    while len(nodes := list(grid.get_node_ids())) < nodes_min:
        if time.monotonic() > deadline:
            raise EnvironmentFault(
                f"{len(nodes)} of {nodes_min} nodes are there after {deadline_s:g} s", "Start more, or ask for fewer."
            )
        time.sleep(NODES_LOOK_S)
    return nodes
