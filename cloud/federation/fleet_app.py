"""The ServerApp that `flwr run` names, and that runs on any grid.

Its run config (`[tool.flwr.app.config]` in pyproject.toml, `--run-config` on the command line) says what is learnt:
`strategy = "analytic"` sums statistics in one round and solves the head; any other name trains by weight updates, the
`task` of them a `head` or an `adapter` of the backbone. What comes of it is written to `out` (a head as .npz, an
adapter as the backbone's .onnx), and left in the context for whoever runs the app from Python.

The centre's own rounds (`cloud.federation.server_app`) are the same strategy asked with another aim: they keep each
gateway's contribution by itself, for unlearning and quarantine, and training follows.
"""

import io
import logging
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid, ServerApp

from cloud.federation.server_app import check_quorum
from cloud.federation.strategies import NAMES, check_compression, make_strategy
from cloud.federation.strategy import AnalyticStrategy, Parts
from cloud.federation.weight_rounds import Learnt, await_nodes, blank_head, run_rounds
from cloud.learning.heads import solve_lda
from common.errors import ConfigError, EnvironmentFault
from common.files import READABLE, write_atomically
from common.flower import Array, ArrayRecord, Context, MetricRecord
from common.statistics import Statistics
from common.training import HeadTask, Task

log = logging.getLogger(__name__)

HEAD = "head"
"""Key in the context's state of what was learnt."""
FIGURES = "figures"
ANALYTIC = "analytic"
TASKS = ("head", "adapter")

Config = dict[str, bool | float | int | str]

app = ServerApp()  # Flower finds it by reading this line's text: it must carry no type annotation


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Learn what the run config says.

    Raises:
        ConfigError: it says what there is not.
        EnvironmentFault: too few nodes are there, or answered.
    """
    config: Config = context.run_config
    check_run(config)
    await_nodes(grid, int(config["nodes-min"]), float(config["deadline-s"]))
    learn = _solve if config["strategy"] == ANALYTIC else _train_head if config["task"] == "head" else _train_adapter
    learn(grid, context, config)


def check_run(config: Config) -> None:
    """Raises:
    ConfigError: it names no strategy or task that there is, what the strategy does not take, or too few classes.
    """
    strategy, task = str(config["strategy"]), str(config["task"])
    if strategy not in (ANALYTIC, *NAMES):
        raise ConfigError(f"there is no strategy {strategy!r}", f"There are {', '.join((ANALYTIC, *NAMES))}.")
    if strategy != ANALYTIC:
        make_strategy(strategy, str(config["strategy-args"]))
        check_compression(strategy, str(config["compression"]))
    if task not in TASKS:
        raise ConfigError(f"there is no task {task!r}", f"There are {', '.join(TASKS)}.")
    if task == "adapter" and strategy == ANALYTIC:
        raise ConfigError("an adapter is not solved but trained", "Name a strategy for weights, such as fedavg.")
    if task == "head" and len(_classes(config)) < 2:
        raise ConfigError("the run names fewer than two classes", "Give --run-config 'classes=\"normal,tear\"'.")


def _solve(grid: Grid, context: Context, config: Config) -> None:
    """Ask all nodes for their statistics, sum them in order of node id, solve the head."""
    scenario = str(config["scenario"])
    found: dict[int, Statistics] = {}

    def keep(node_id: int, parts: Parts) -> None:
        if scenario in parts:
            found[node_id] = parts[scenario][0].statistics()

    strategy = AnalyticStrategy(str(config["backbone"]), {scenario: _classes(config)}, lambda _: {}, keep)
    strategy.start(grid, initial_arrays=ArrayRecord(), num_rounds=1, timeout=float(config["deadline-s"]))
    folded, asked = strategy.counters["folded"], strategy.counters["asked"]
    check_quorum(folded, asked, float(config["quorum"]), float(config["deadline-s"]))
    if not found:
        raise EnvironmentFault(
            f"none of {folded} nodes has samples of {scenario} on this backbone", "Check `scenario` and `backbone`."
        )
    total = found[min(found)]
    for node_id in sorted(found)[1:]:
        total = total + found[node_id]
    head = solve_lda(total, float(config["shrinkage"]))
    arrays = {
        "directions": head.directions,
        "offsets": head.offsets,
        "constants": head.constants,
        "quadratic": head.quadratic,
    }
    context.state[HEAD] = ArrayRecord({name: Array(values) for name, values in arrays.items()})
    context.state[FIGURES] = MetricRecord({"nodes": len(found), "samples": int(total.total)})
    _write_head(config, tuple(head.classes), arrays)
    log.info("solved %s from %d samples of %d nodes", scenario, int(total.total), len(found))


def _train_head(grid: Grid, context: Context, config: Config) -> None:
    """A softmax head by weight updates."""
    task = HeadTask(
        backbone=str(config["backbone"]),
        scenario=str(config["scenario"]),
        classes=_classes(config),
        steps=int(config["steps"]),
        rate=float(config["rate"]),
        compression=str(config["compression"]),
    )
    learnt = _rounds(grid, context, config, task, blank_head(task, int(config["dimension"])))
    _write_head(config, task.classes, {name: array.numpy() for name, array in learnt.arrays.items()})


def _train_adapter(grid: Grid, context: Context, config: Config) -> None:
    """Numbers of the backbone in `layer`, at nodes that have pictures and torch."""
    from cloud.finetuning.federated import adapter_arrays, layer_with, task_of
    from cloud.finetuning.tuning import Recipe
    from common.ids import layer_hash

    path = Path(str(config["layer"]))
    if not path.is_file():
        raise ConfigError(f"there is no backbone {path}", "Give --run-config 'layer=\"/path/to/backbone.onnx\"'.")
    data = path.read_bytes()
    recipe = Recipe(epochs=int(config["rounds"]), rate=float(config["rate"]))
    task = task_of(layer_hash(data), recipe, str(config["compression"]))
    learnt = _rounds(grid, context, config, task, adapter_arrays(data, recipe))
    if out := str(config["out"]):
        write_atomically(Path(out), layer_with(data, recipe, learnt.arrays), READABLE)


def _rounds(grid: Grid, context: Context, config: Config, task: Task, arrays: ArrayRecord) -> Learnt:
    name = str(config["strategy"])
    rounds, deadline_s, nodes_min = int(config["rounds"]), float(config["deadline-s"]), int(config["nodes-min"])
    strategy = make_strategy(name, str(config["strategy-args"]), nodes_min=nodes_min, deadline_s=deadline_s)
    learnt = run_rounds(grid, strategy, arrays, task, rounds=rounds, deadline_s=deadline_s)
    context.state[HEAD] = learnt.arrays
    context.state[FIGURES] = MetricRecord({"loss": list(learnt.curve)})
    log.info("%s: losses %s", name, ", ".join(f"{loss:.3f}" for loss in learnt.curve))
    return learnt


def _classes(config: Config) -> tuple[str, ...]:
    return tuple(name for name in str(config["classes"]).split(",") if name)


def _write_head(config: Config, classes: tuple[str, ...], arrays: dict[str, np.ndarray]) -> None:
    if out := str(config["out"]):
        buffer = io.BytesIO()
        np.savez(buffer, classes=np.array(classes), **arrays)  # type: ignore[arg-type]
        write_atomically(Path(out), buffer.getvalue(), READABLE)
