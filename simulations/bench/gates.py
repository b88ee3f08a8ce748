"""`headframe bench gates`: who stops a bad release, after how many sites, and who lets a good one through?

3,000 sites of one gateway. The product's engine and gates, and beside them the threshold rules of hawkBit and of AWS
IoT Jobs on the same simulated sites. `exposed` counts the sites that were told the release before it was stopped.
"""

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from typing import Any, Final

import numpy as np

from cloud.rollout.plan import Plan
from cloud.rollout.rules import Report
from cloud.rollout.state import Phase
from common.messages import ReleaseHealth
from simulations.bench._rollouts import BEGIN_NS, NEW, OLD, SimulatedFleet
from simulations.bench._thresholds import run_aws, run_hawkbit

SITES: Final = 3_000
RUNS, QUICK_RUNS = 200, 25
PLAN: Final = Plan(healthy_frames=200, soak_s=600, deadline_s=1800)
HEALTHY_S: Final = (120.0, 400.0)
"""From being told to having looked at enough frames."""
FAILS_BY_ITSELF: Final = 0.003
"""Of sites, a good release too: disks, memory, cameras."""
LOSES_LINK: Final = 0.003
"""Of sites, within a deadline, and is back within hours."""
UNTIL_S, TICK_S = 2 * 86_400.0, 120.0


@dataclass(frozen=True, slots=True)
class Case:
    """What the release is like, and the fleet."""

    name: str
    bad: float = 0.0
    """Share of sites that it hurts."""
    silent: float = 0.8
    """Share of those from which nothing is heard any more."""
    offline: tuple[float, float] = (0.05, 0.05)
    """Share of sites that are away at the start, from .. to; half of them come back."""
    fails: float = FAILS_BY_ITSELF
    """Share of sites on which it runs, fails and goes back, whatever the release."""


CASES: Final = (
    Case("bad on 30 %, 80 % of them silent", 0.30),
    Case("bad on 5 %, 80 % of them silent", 0.05),
    Case("good, 12-30 % offline", offline=(0.12, 0.30)),
    Case("good, 2 % fail and go back", fails=0.02),
)
ENGINES: Final = ("headframe", "hawkbit", "aws")


@dataclass(frozen=True, slots=True)
class Run:
    """How one run ended."""

    outcome: str
    """aborted, completed, or stuck"""
    exposed: int


class Sites:
    """What sites do with the release, drawn once per run."""

    def __init__(self, case: Case, seed: int) -> None:
        rng = np.random.default_rng([seed, 6])
        self.names = [f"site-{number:04d}" for number in range(SITES)]
        self.offline = rng.random(SITES) < rng.uniform(*case.offline)
        bad = rng.random(SITES) < case.bad
        self.silent = (bad & (rng.random(SITES) < case.silent)) | (rng.random(SITES) < LOSES_LINK)
        self.failing = (bad & ~self.silent) | (rng.random(SITES) < case.fails)
        self.lost = self.silent & ~bad
        """Silent because of the link, not of the release: back later."""
        self.after_s = rng.uniform(*HEALTHY_S, SITES)
        self.back_s = np.where(rng.random(SITES) < 0.5, rng.uniform(0, 86_400, SITES), np.inf)
        self.number = {name: index for index, name in enumerate(self.names)}

    def told(self, name: str, now_s: float) -> list[tuple[float, Callable[[Report], Report]]]:
        index, at_ns = self.number[name], BEGIN_NS + int(now_s * 1e9)
        after_s = float(self.after_s[index])
        seen_ns = at_ns + int(after_s * 1e9)
        if self.silent[index]:
            gone: list[tuple[float, Callable[[Report], Report]]] = [(10.0, lambda r: replace(r, online=False))]
            if self.lost[index]:
                gone.append((after_s + 7200.0, lambda r: _healthy(r, seen_ns)))
            return gone
        if self.failing[index]:
            return [(after_s, lambda r: replace(r, health=(_FAILED,), seen_ns=seen_ns))]
        return [(after_s, lambda r: _healthy(r, seen_ns))]


_GOOD = ReleaseHealth(
    release_id=NEW, phase="committed", frames=400, score_sum=360.0, score_squares=330.0, latency_ms=20.0
)
_FAILED = ReleaseHealth(release_id=NEW, phase="rolled-back", frames=60, reason="error budget spent")


def _healthy(report: Report, seen_ns: int) -> Report:
    return replace(report, release_id=NEW, health=(_GOOD,), online=True, seen_ns=max(report.seen_ns, seen_ns))


def run_headframe(case: Case, seed: int) -> Run:
    """One rollout by the product's engine."""
    sites = Sites(case, seed)
    fleet = {
        name: Report(name, name, BEGIN_NS, not sites.offline[number], OLD) for number, name in enumerate(sites.names)
    }
    simulated = SimulatedFleet(fleet, sites)
    for number in np.flatnonzero(sites.offline & np.isfinite(sites.back_s)):
        simulated.plan_change(float(sites.back_s[number]), sites.names[number], lambda r: replace(r, online=True))
    rollout = simulated.run(PLAN, UNTIL_S, TICK_S)
    outcome = {Phase.ABORTED: "aborted", Phase.COMPLETED: "completed"}.get(rollout.phase, "stuck")
    return Run(outcome, len(rollout.members))


def _one(task: tuple[str, int, int]) -> Run:
    engine, number, seed = task
    case = CASES[number]
    if engine == "headframe":
        return run_headframe(case, seed)
    sites = Sites(case, seed)
    rng = np.random.default_rng([seed, 7])
    rule = run_hawkbit if engine == "hawkbit" else run_aws
    return Run(*rule(rng.permutation(SITES), sites.offline, sites.silent, sites.failing))


def bench_gates(*, quick: bool) -> dict[str, Any]:
    """All cases by all engines."""
    began_s = time.monotonic()
    runs = QUICK_RUNS if quick else RUNS
    table, found = [], {}
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        for number, case in enumerate(CASES):
            for engine in ENGINES:
                made = list(pool.map(_one, [(engine, number, seed) for seed in range(runs)], chunksize=4))
                found[number, engine] = made
                exposed = [run.exposed for run in made]
                table.append(
                    {
                        "case": case.name,
                        "engine": engine,
                        **{name: _share(made, name) for name in ("aborted", "completed", "stuck")},
                        "exposed_p50": float(np.percentile(exposed, 50)),
                        "exposed_p95": float(np.percentile(exposed, 95)),
                    }
                )
    return {
        "bad30_aborted": _share(found[0, "headframe"], "aborted"),
        "bad30_exposed_p95": float(np.percentile([run.exposed for run in found[0, "headframe"]], 95)),
        "bad5_aborted": _share(found[1, "headframe"], "aborted"),
        "bad5_exposed_p95": float(np.percentile([run.exposed for run in found[1, "headframe"]], 95)),
        "good_aborted": _share(found[2, "headframe"], "aborted"),
        "good_stuck": _share(found[2, "headframe"], "stuck"),
        "failing_aborted": _share(found[3, "headframe"], "aborted"),
        "failing_stuck": _share(found[3, "headframe"], "stuck"),
        "sites": SITES,
        "runs": runs,
        "table": table,
        "seconds": round(time.monotonic() - began_s, 1),
    }


def _share(runs: list[Run], outcome: str) -> float:
    return sum(run.outcome == outcome for run in runs) / len(runs)
