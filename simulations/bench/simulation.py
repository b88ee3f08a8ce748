"""`headframe bench simulation`: how many sites can be tried on one machine before a mine sees a change?

12,000 virtual sites over ten rounds with embeddings of real belts, many sites in one task. The comparator does the same
work (`simulations.fleet.sites.step`, the same statistics and head) in Flower's simulation engine on Ray with one task
per site, as Flower does it; fewer sites, since it is slower, and its start is not counted. At the end both must have
the same sums.
"""

import os
import tempfile
import time
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from cloud.federation.summing import StatisticsSum
from cloud.learning.heads import HeadWeights, solve_lda
from common.contribution import pack_reply
from common.errors import EnvironmentFault
from common.flower import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from common.statistics import Statistics
from simulations.bench._process import alone
from simulations.data import find_data
from simulations.fleet.cli import open_pool
from simulations.fleet.engine import Processes, Simulation
from simulations.fleet.pool import Pool
from simulations.fleet.scenario import Fleet
from simulations.fleet.sites import NONE, Memory, step

FLEET = Fleet(sites=12_000, rounds=10, data="belt-defects", phases=3, outage=0.1, label_delay=1)
QUICK_SITES = 3_000
QUICK_EVERY = 5
"""Of the pictures; embedding them all takes longer than the simulation."""
WORKERS = 2
RAY_SITES, QUICK_RAY_SITES = 200, 60
RAY_ROUNDS, QUICK_RAY_ROUNDS = 5, 3
_POOL, _TOTAL = "HEADFRAME_BENCH_POOL", "HEADFRAME_BENCH_TOTAL"


def bench_simulation(*, quick: bool) -> dict[str, object]:
    """Measure ours, then Flower's engine on fewer sites, then ours on those few for the sums."""
    find_data("belt-defects")  # says early what is missing
    fleet = msgspec.structs.replace(FLEET, sites=QUICK_SITES) if quick else FLEET
    few = msgspec.structs.replace(
        FLEET,
        sites=QUICK_RAY_SITES if quick else RAY_SITES,
        rounds=QUICK_RAY_ROUNDS if quick else RAY_ROUNDS,
    )
    with tempfile.TemporaryDirectory(prefix="headframe-bench-") as name:
        began = time.monotonic()
        pool = open_pool(fleet, Path(name), QUICK_EVERY if quick else 1)
        embedding_s = time.monotonic() - began
        path = Path(name) / "pool.npz"
        np.savez(path, classes=pool.classes, rows=pool.rows, labels=pool.labels, held_out=pool.held_out)
        ours = alone(_ours, str(path), fleet)
        rays = alone(_on_ray, str(path), few)
        check = alone(_ours, str(path), few)
    difference = float(abs(check["moment"] - rays["moment"]).max())
    if difference or (check["counts"] != rays["counts"]).any():
        raise EnvironmentFault(f"the two engines' sums differ by {difference}", "This is a defect; please report it.")
    return {
        "site_rounds_per_s": ours["site_rounds_per_s"],
        "ray_site_rounds_per_s": rays["site_rounds_per_s"],
        "ratio_to_ray_per_site": ours["site_rounds_per_s"] / rays["site_rounds_per_s"],
        "sites": fleet.sites,
        "rounds": fleet.rounds,
        "seconds": round(ours["seconds"], 2),
        "embedding_seconds": round(embedding_s, 1),
        "ray_sites": few.sites,
        "ray_rounds": few.rounds,
        "accuracy": ours["accuracy"],
        "sums_differ_by": difference,
    }


@lru_cache(maxsize=1)
def _pool(path: str) -> Pool:
    with np.load(path) as file:
        return Pool(tuple(map(str, file["classes"])), file["rows"], file["labels"], file["held_out"])


def _ours(path: str, fleet: Fleet) -> dict[str, Any]:
    simulation = Simulation("bench", fleet, _pool(path))
    with ExitStack() as stack:
        crew = Processes(fleet, simulation.pool, WORKERS, stack)
        list(crew.run([_nothing(fleet, worker) for worker in range(WORKERS)]))  # starting is not counted, as with Ray
        began = time.monotonic()
        simulation.run(crew, lambda _: None)
        seconds = time.monotonic() - began
    return {
        "seconds": seconds,
        "site_rounds_per_s": fleet.sites * fleet.rounds / seconds,
        "accuracy": simulation.figures[-1].accuracy,
        "moment": simulation.total.moment,
        "counts": simulation.total.counts,
    }


def _nothing(fleet: Fleet, worker: int) -> tuple[object, ...]:
    """A task whose result is not used."""
    return np.array([worker]), 0, None, Memory(np.full((1, fleet.rounds, fleet.budget), NONE), np.full(1, -1))


def _on_ray(path: str, fleet: Fleet) -> dict[str, Any]:
    """The same fleet by Flower's engine. Its own output goes nowhere."""
    from flwr.simulation import run_simulation

    os.environ[_POOL] = path
    os.environ[_TOTAL] = f"{path}.total.npz"
    run_simulation(
        server_app=_server(fleet),
        client_app=_client(fleet, path),
        num_supernodes=fleet.sites,
        backend_config={"client_resources": {"num_cpus": 1}, "init_args": {"include_dashboard": False}},
    )
    with np.load(os.environ[_TOTAL]) as file:
        return {name: file[name] if file[name].ndim else float(file[name]) for name in file.files}


def _client(fleet: Fleet, path: str) -> ClientApp:
    """One virtual site: what it remembers is in its context, as with any Flower client."""
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]
    def train(message: Message, context: Context) -> Message:
        pool, moment = _pool(path), int(message.content["round"]["round"])
        site = np.array([int(context.node_config["partition-id"])])
        if "memory" in context.state:
            chosen, sent = (context.state["memory"][name].numpy() for name in ("chosen", "sent"))
        else:
            chosen, sent = np.full((1, fleet.rounds, fleet.budget), NONE), np.full(1, -1)
        done = step(fleet, pool, site, moment, _head_of(message.content, pool.classes), Memory(chosen, sent))
        context.state["memory"] = ArrayRecord({"chosen": Array(done.memory.chosen), "sent": Array(done.memory.sent)})
        parts: dict[str, tuple[Statistics, list[bytes]]] = {}
        if done.statistics:
            parts["fleet"] = done.statistics, []
        return Message(pack_reply(parts), reply_to=message)

    return app


def _server(fleet: Fleet) -> ServerApp:
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]
    def main(grid: Grid, context: Context) -> None:
        del context
        pool = _pool(os.environ[_POOL])
        total = StatisticsSum(pool.classes, pool.rows.shape[1])
        content, summed, seconds = RecordDict(), None, 0.0
        for moment in range(fleet.rounds):
            while len(nodes := list(grid.get_node_ids())) < fleet.sites:
                time.sleep(0.1)
            began = time.monotonic()
            content["round"] = ConfigRecord({"round": moment})
            messages = [Message(content, node, "train", group_id=str(moment)) for node in nodes]
            for reply in grid.send_and_receive(messages, timeout=600):
                total.add(reply.content, "fleet")
            if total.contributions:
                summed = total.statistics()
                content["head"] = _record_of(solve_lda(summed, fleet.shrinkage))
            if moment:  # the first round also starts the actors
                seconds += time.monotonic() - began
        if summed is None:
            raise EnvironmentFault("no site contributed", "This is a defect; please report it.")
        _save(summed, fleet.sites * (fleet.rounds - 1) / seconds)

    return app


def _save(total: Statistics, rate: float) -> None:
    np.savez(os.environ[_TOTAL], moment=total.moment, counts=total.counts, site_rounds_per_s=rate)


_PARTS = ("directions", "offsets", "constants", "quadratic")


def _record_of(head: HeadWeights) -> ArrayRecord:
    return ArrayRecord({name: Array(getattr(head, name)) for name in _PARTS})


def _head_of(content: RecordDict, classes: tuple[str, ...]) -> HeadWeights | None:
    if "head" not in content:
        return None
    return HeadWeights(classes, *(content["head"][name].numpy() for name in _PARTS))
