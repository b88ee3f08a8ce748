"""`headframe bench installer`: what an install survives, and what it costs the frames.

Three parts: every file operation of an install fails in turn (`_install_faults`); errors, kills and hangs in every
state, for a delta, a full file and a roll-back (`_install_cases`); swaps on eight live streams (`_install_swap`).
"""

import shutil
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from common.manifest import decode_manifest, release_id
from common.messages import Desired
from simulations.bench._install_box import Depot, Gauge, Plan, start_box, warm_up, write_pictures
from simulations.bench._install_cases import Way, measure_cases
from simulations.bench._install_faults import measure_faults
from simulations.bench._install_swap import measure_swap
from simulations.processes import wait_for
from simulations.single_key import Signer

POINTS: Final = {True: 24, False: 2000}
CASES: Final = {True: 8, False: 72}
"""By `quick`."""


@dataclass(frozen=True, slots=True)
class Ground:
    """What all cases begin from: boxes on which a release is committed, and releases to install on them."""

    folder: Path
    plan: Plan
    """To install release 2, by deltas."""
    on_first: Path
    first: Desired
    ways: tuple[Way, ...]

    @classmethod
    def prepare(cls, folder: Path) -> "Ground":
        """Make everything in a folder; takes two installs."""
        for name in ("deltas", "depot"):
            (folder / name).mkdir()
        write_pictures(folder / "pictures")
        depot = Depot(folder / "depot", Signer.open(folder / "key"))
        with_deltas = Depot(folder / "deltas", depot.signer)
        first, second = depot.release(1, seed=1), depot.release(2, seed=2)
        plan = Plan(folder, depot.folder, folder / "pictures", depot.signer.public_hex, None)
        on_first = _installed(folder / "on-first", plan, first)
        on_second = _installed(folder / "on-second", replace(plan, folder=on_first), second)
        for path in depot.folder.iterdir():
            (with_deltas.folder / path.name).write_bytes(path.read_bytes())
        with_deltas.put_deltas(first, second)
        ways = (
            Way("delta", on_first, with_deltas.folder, first, second),
            Way("full", on_first, depot.folder, first, second),
            Way("roll-back", on_second, depot.folder, second, depot.again(first, sequence=3)),
        )
        return cls(folder, replace(plan, depot=with_deltas.folder, desired=second), on_first, first, ways)


def bench_installer(*, quick: bool) -> dict[str, Any]:
    """Measure."""
    began_s = time.monotonic()
    warm_up()
    with tempfile.TemporaryDirectory(prefix="headframe-installer-") as name:
        ground = Ground.prepare(Path(name))
        found = measure_faults(ground.on_first, ground.plan, ground.first, ground.folder, points_max=POINTS[quick])
        found |= measure_cases(ground.ways, ground.plan, ground.folder, cases_max=CASES[quick])
    return found | measure_swap(quick=quick) | {"seconds": round(time.monotonic() - began_s, 1)}


def _installed(folder: Path, plan: Plan, desired: Desired) -> Path:
    """A data_dir on which the release is committed, beside what was there."""
    if (plan.folder / "releases").exists():
        shutil.copytree(plan.folder, folder)
    folder.mkdir(exist_ok=True)
    gauge = Gauge()
    gauge.set("go", 1)
    process = start_box(replace(plan, folder=folder, desired=desired), gauge)
    try:
        name = release_id(decode_manifest(desired.manifest))
        wait_for(lambda: gauge.outcome == f"committed {name}", 30, f"release {name}", every_s=0.02)
    finally:
        process.kill()
        process.join()
    return folder
