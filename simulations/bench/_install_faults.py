"""Every file operation of an install fails, one after the other: killed at it, or refused with EIO or ENOSPC.

Part of `headframe bench installer`. `strace` is attached to the main thread of a box (`_install_box`) before it boots;
that thread boots from release 1 and installs release 2. First a run is only traced, which gives the operations; then
each operation of each kind is a run of its own, in which strace kills the process on entry to the call or makes the
call return the error. Afterwards a box without strace starts on what the run has left: it must look within five seconds
with release 1 or 2, all layers on disk must have their hashes, and the install must go through (or be remembered as
refused with its reason).
"""

import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from rich.progress import track

from common.errors import EnvironmentFault
from common.manifest import decode_manifest, release_id
from common.messages import Desired
from simulations.bench._install_box import Gauge, Plan, layers_whole, start_box
from simulations.processes import wait_for

CALLS: Final = (
    "openat",
    "read",
    "write",
    "pwrite64",
    "close",
    "fsync",
    "rename",
    "unlink",
    "mkdir",
    "fchmod",
    "getdents64",
    "newfstatat",
    "fstat",
    "statfs",
    "ioctl",
    "lseek",
)
"""What an install may do to files, by the names of the system."""
FULL_AT: Final = ("openat", "write", "fsync", "rename", "mkdir")
"""Calls that say ENOSPC when a disk is full."""
RESUME_S: Final = 5.0
SETTLE_S: Final = 12.0
AT_ONCE: Final = 4
"""Runs side by side: most of their time is waiting for frames."""


@dataclass(frozen=True, slots=True)
class Point:
    """One operation that goes wrong."""

    call: str
    number: int
    """The how manieth of its kind."""
    fault: str
    """kill, EIO or ENOSPC."""

    @property
    def injection(self) -> str:
        what = "signal=KILL" if self.fault == "kill" else f"error={self.fault}"
        return f"inject={self.call}:{what}:when={self.number}"


@dataclass(frozen=True, slots=True)
class Left:
    """What a point left behind."""

    point: Point
    died: bool
    running: str
    whole: bool
    resumed_s: float
    healed: str
    """How the install ended in the end."""

    def good(self, allowed: Sequence[str]) -> bool:
        """The old or the new release, whole, and looking in time."""
        return (
            self.running in allowed
            and self.whole
            and self.resumed_s <= RESUME_S
            and not self.healed.startswith("still")
        )


def why_no_strace() -> str:
    """Empty when strace can trace here."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    tried = subprocess.run(
        ["strace", "-qq", "-o", "/dev/null", "true"], capture_output=True, text=True, timeout=20, check=False
    )
    return "" if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()[:200]}"


def measure_faults(template: Path, plan: Plan, old: Desired, folder: Path, *, points_max: int) -> dict[str, Any]:
    """Run the points.

    Args:
        template: a data_dir on which release 1 is installed.
        points_max: of all, so many evenly spread ones.
    """
    if why := why_no_strace():
        return {"fault_points": 0, "faults": f"not measured: {why}"}
    if plan.desired is None:
        raise ValueError("the plan has a release to install")
    allowed = [release_id(decode_manifest(item.manifest)) for item in (old, plan.desired)]
    runner = Runner(template, plan, folder, allowed)
    counts = runner.count()
    points = _points(counts)
    if len(points) > points_max:
        points = [points[index] for index in np.linspace(0, len(points) - 1, points_max).round().astype(int)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = list(track(pool.map(runner.run, points), "faults", len(points), transient=True))
    bad = [item for item in found if not item.good(allowed)]
    return {
        "fault_points": len(points),
        "fault_points_bad": len(bad),
        "resume_s_max": round(max(item.resumed_s for item in found), 2),
        "faults": {
            "operations": dict(counts),
            "by_fault": {
                fault: {
                    "points": sum(item.point.fault == fault for item in found),
                    "process_died": sum(item.died for item in found if item.point.fault == fault),
                    "started_on_new": sum(item.running == allowed[1] for item in found if item.point.fault == fault),
                    "installed_afterwards": sum(
                        item.healed.startswith("committed") for item in found if item.point.fault == fault
                    ),
                }
                for fault in ("kill", "EIO", "ENOSPC")
            },
            "bad": [str(item) for item in bad[:10]],
        },
    }


def _points(counts: Counter[str]) -> list[Point]:
    found = []
    for call, times in sorted(counts.items()):
        faults = ("kill", "EIO", "ENOSPC") if call in FULL_AT else ("kill", "EIO")
        found += [Point(call, number, fault) for number in range(1, times + 1) for fault in faults]
    return found


class Runner:
    """Runs points, each on a copy of the template.

    Args:
        allowed: ids of the old and the new release.
    """

    def __init__(self, template: Path, plan: Plan, folder: Path, allowed: Sequence[str]) -> None:
        self._template, self._plan, self._folder, self._allowed = template, plan, folder, allowed

    def count(self) -> Counter[str]:
        """One run, traced only: how often each call is made until the release is committed."""
        plan, gauge = self._fresh("count"), Gauge()
        log = self._folder / "trace"
        process = start_box(plan, gauge)
        try:
            tracer = _attach(process.pid, gauge, ["-o", str(log)])
            wait_for(lambda: gauge.outcome == f"committed {self._allowed[1]}", 30, "the traced install", every_s=0.01)
            _detach(tracer)
        finally:
            process.kill()
            process.join()
        lines = log.read_text(errors="replace").splitlines()
        calls = [match[1] for match in (re.match(r"(\w+)\(", line) for line in lines) if match]
        return Counter(call for call in calls if call in CALLS)

    def run(self, point: Point) -> Left:
        """The point, then a start on what it left."""
        plan, gauge = self._fresh(f"{point.call}-{point.number}-{point.fault}"), Gauge()
        process = start_box(plan, gauge)
        try:
            tracer = _attach(process.pid, gauge, ["-e", point.injection, "-o", "/dev/null"])
            _settle(process, gauge, self._allowed[1])
            died = not process.is_alive()
            _detach(tracer)
        finally:
            process.kill()
            process.join()
        try:
            return self._after(point, plan, died=died)
        finally:
            shutil.rmtree(plan.folder, ignore_errors=True)

    def _after(self, point: Point, plan: Plan, *, died: bool) -> Left:
        gauge = Gauge()
        began_s = time.monotonic()
        gauge.set("go", 1)
        process = start_box(plan, gauge)
        try:
            while not gauge.get("looks") and time.monotonic() - began_s < 2 * RESUME_S:
                time.sleep(0.005)
            resumed_s = time.monotonic() - began_s
            wait_for(lambda: bool(gauge.running), 5, "the box to say what it runs", every_s=0.01)
            running = gauge.running
            healed = _settle(process, gauge, self._allowed[1])
            whole = layers_whole(plan.folder, gauge.running)
        finally:
            process.kill()
            process.join()
        return Left(point, died, running, whole, resumed_s, healed)

    def _fresh(self, name: str) -> Plan:
        folder = self._folder / name
        shutil.copytree(self._template, folder)
        plan = self._plan
        return Plan(folder, plan.depot, plan.pictures, plan.key, plan.desired, aside=False)


def _settle(process: Any, gauge: Gauge, new: str) -> str:
    """Wait until the install has ended one way or the other, or the process; returns how, empty when it did not."""
    deadline_s = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline_s and process.is_alive():
        outcome = gauge.outcome
        if outcome.startswith((f"committed {new}", f"rolled back {new}")) or "is not installed" in outcome:
            return outcome
        if gauge.running == new and not outcome and time.monotonic() > deadline_s - SETTLE_S + 0.3:
            return f"committed {new}"  # it was so before this start
        time.sleep(0.01)
    return "" if not process.is_alive() else f"still: {gauge.outcome}"


def _attach(pid: int, gauge: Gauge, options: Sequence[str]) -> subprocess.Popen[bytes]:
    """Trace the main thread of a box that waits, then let it go."""
    wait_for(lambda: bool(gauge.get("ready")), 20, "the box", every_s=0.005)
    tracer = subprocess.Popen(
        ["strace", "-qq", "-p", str(pid), "-e", f"trace={','.join(CALLS)}", *options],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    status = Path(f"/proc/{pid}/status")
    deadline_s = time.monotonic() + 10
    while "TracerPid:\t0" in status.read_text():
        if time.monotonic() > deadline_s or tracer.poll() is not None:
            raise EnvironmentFault("strace could not be attached", "Is tracing of processes allowed?")
        time.sleep(0.005)
    gauge.set("go", 1)
    return tracer


def _detach(tracer: subprocess.Popen[bytes]) -> None:
    tracer.terminate()
    with suppress(subprocess.TimeoutExpired):
        tracer.wait(5)
    if tracer.poll() is None:
        tracer.kill()
        tracer.wait()
