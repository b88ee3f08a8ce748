"""{error, kill, hang, kill for good} x every state x {delta, full, roll-back}: what comes back, and how soon.

Part of `headframe bench installer`. Each case is a box (`_install_box`) under a supervisor such as systemd is: started
again when it dies, killed when it no longer steps. Measured is the longest time without a look from the first look to
the end, and what runs in the end. `kill for good` kills the process each time it comes to the state.
"""

import shutil
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import track

from common.manifest import decode_manifest, release_id
from common.messages import Desired
from simulations.bench._install_box import KINDS, STATES, Fault, Gauge, Plan, layers_whole, start_box

RESUME_S: Final = 5.0
WATCHDOG_S: Final = 2.0
"""A box that has not stepped for so long is killed (an agent: `WatchdogSec` of its unit)."""
RESTART_S: Final = 0.1  # systemd's own default
QUIET_S: Final = 3.5
"""Without change for so long, a case has ended: longer than the hangs of `HURRIED` take."""
CASE_S: Final = 25.0
AT_ONCE: Final = 4


@dataclass(frozen=True, slots=True)
class Way:
    """A way to install: what is on the box, what is desired, and whether the centre has deltas."""

    name: str
    template: Path
    depot: Path
    old: Desired
    new: Desired


@dataclass(frozen=True, slots=True)
class Ended:
    """How a case ended."""

    way: str
    fault: Fault
    running: str
    """old, new, or what it is else."""
    whole: bool
    gap_s: float
    starts: int
    outcome: str

    @property
    def good(self) -> bool:
        return self.running in ("old", "new") and self.whole and self.gap_s <= RESUME_S


def measure_cases(ways: Sequence[Way], plan: Plan, folder: Path, *, cases_max: int) -> dict[str, Any]:
    """Run the table, or so many evenly spread cases of it."""
    cases = [(way, Fault(state, kind)) for way in ways for state in STATES for kind in KINDS]
    if len(cases) > cases_max:
        cases = [cases[index] for index in np.linspace(0, len(cases) - 1, cases_max).round().astype(int)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        running = pool.map(lambda case: run_case(case[0], case[1], plan, folder), cases)
        found = list(track(running, "cases", len(cases), transient=True))
    return {
        "cases": len(found),
        "cases_bad": sum(not item.good for item in found),
        "case_gap_s_max": round(max(item.gap_s for item in found), 2),
        "case_table": [
            {
                "way": item.way,
                "state": item.fault.state,
                "fault": item.fault.kind,
                "runs": item.running,
                "whole": item.whole,
                "gap_s": round(item.gap_s, 2),
                "starts": item.starts,
                "outcome": item.outcome.replace(str(folder), "")[:100],
            }
            for item in found
        ],
    }


def run_case(way: Way, fault: Fault, plan: Plan, folder: Path) -> Ended:
    """One case, from the template to its end."""
    place = folder / f"{way.name}-{fault.state}-{fault.kind.replace(' ', '-')}"
    shutil.copytree(way.template, place)
    box = Plan(place, way.depot, plan.pictures, plan.key, way.new, fault)
    try:
        seen, gap_s, starts = _supervise(box)
        names = {
            release_id(decode_manifest(item.manifest)): name for name, item in (("old", way.old), ("new", way.new))
        }
        whole = layers_whole(place, seen.running)
        running = names.get(seen.running, seen.running)
        return Ended(way.name, fault, running, whole, gap_s, starts, seen.outcome)
    finally:
        shutil.rmtree(place, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class _Said:
    """What a box said of itself last."""

    running: str = ""
    outcome: str = ""
    starts: int = 0


def _supervise(box: Plan) -> tuple[_Said, float, int]:
    """Keep the box alive until nothing changes any more: what it said last, longest time without a look, and starts."""
    began_s = time.monotonic()
    looked_s, gap_s, starts = began_s, 0.0, 0
    changed_s, last = began_s, _Said()
    gauge, process = Gauge(), None
    first = True
    try:
        while time.monotonic() - began_s < CASE_S:
            if process is None or not process.is_alive():
                if process is not None:
                    time.sleep(RESTART_S)
                gauge, starts = Gauge(), starts + 1
                gauge.set("go", 1)
                process = start_box(box, gauge)
            now_s = time.monotonic()
            if gauge.get("looked_s") > looked_s:
                looked_s, first = gauge.get("looked_s"), False
            gap_s = 0.0 if first else max(gap_s, now_s - looked_s)
            if gauge.get("stepped_s") and now_s - gauge.get("stepped_s") > WATCHDOG_S:
                process.kill()
                process.join()
                continue
            seen = _Said(gauge.running or last.running, gauge.outcome or last.outcome, starts)
            if seen != last:  # a box that was only just started has said nothing yet
                changed_s, last = now_s, seen
            settled = gauge.outcome.startswith("committed") or "is not installed" in gauge.outcome
            if gauge.get("looks") > 5 and now_s - changed_s > (0.7 if settled else QUIET_S):
                break
            time.sleep(0.01)
        return last, gap_s, starts
    finally:
        if process is not None:
            process.kill()
            process.join()
