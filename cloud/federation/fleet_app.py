"""The ServerApp that `flwr run` names, and that runs on any grid: one analytic round, summed and solved to a head.

Its run config (`[tool.flwr.app.config]` in pyproject.toml, `--run-config` on the command line) says which scenario; the
head is written to `out` as .npz, and its figures are left in the context for whoever runs the app from Python.
The centre itself runs rounds by `cloud.federation.server_app`, which keeps every contribution by itself.
"""

import io
import logging
from pathlib import Path

import numpy as np
from flwr.serverapp import Grid, ServerApp

from cloud.federation.strategy import AnalyticStrategy, Parts
from cloud.learning.heads import HeadWeights, solve_lda
from common.errors import ConfigError, EnvironmentFault
from common.files import READABLE, write_atomically
from common.flower import Array, ArrayRecord, Context, MetricRecord
from common.statistics import Statistics

log = logging.getLogger(__name__)

HEAD = "head"
"""Key of the solved head in the context's state."""

app = ServerApp()  # Flower finds it by reading this line's text: it must carry no type annotation


@app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """Ask all nodes for their statistics, sum them in order of node id, solve the head.

    Raises:
        ConfigError: the run config names no classes.
        EnvironmentFault: fewer nodes answered than the quorum.
    """
    config = context.run_config
    scenario, backbone = str(config["scenario"]), str(config["backbone"])
    classes = tuple(name for name in str(config["classes"]).split(",") if name)
    if len(classes) < 2:
        raise ConfigError("the run names fewer than two classes", "Give --run-config 'classes=\"normal,tear\"'.")
    found: dict[int, Statistics] = {}

    def keep(node_id: int, parts: Parts) -> None:
        if scenario in parts:
            found[node_id] = parts[scenario][0].statistics()

    strategy = AnalyticStrategy(backbone, {scenario: classes}, lambda _: {}, keep)
    strategy.start(grid, initial_arrays=ArrayRecord(), num_rounds=1, timeout=float(config["deadline-s"]))
    folded, asked = strategy.counters["folded"], strategy.counters["asked"]
    if not found or folded < float(config["quorum"]) * asked:
        raise EnvironmentFault(f"{folded} of {asked} nodes answered", "Start the run again when more are online.")
    total = found[min(found)]
    for node_id in sorted(found)[1:]:
        total = total + found[node_id]
    head = solve_lda(total, float(config["shrinkage"]))
    context.state[HEAD] = ArrayRecord({name: Array(values) for name, values in _arrays(head).items()})
    context.state["figures"] = MetricRecord({"nodes": len(found), "samples": int(total.total)})
    if out := str(config["out"]):
        buffer = io.BytesIO()
        np.savez(buffer, classes=np.array(head.classes), **_arrays(head))  # type: ignore[arg-type]
        write_atomically(Path(out), buffer.getvalue(), READABLE)
    log.info("solved %s from %d samples of %d nodes", scenario, int(total.total), len(found))


def _arrays(head: HeadWeights) -> dict[str, np.ndarray]:
    return {
        "directions": head.directions,
        "offsets": head.offsets,
        "constants": head.constants,
        "quadratic": head.quadratic,
    }
