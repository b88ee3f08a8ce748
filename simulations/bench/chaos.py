"""`headframe bench chaos`: is anything lost, or stored twice, when everything fails?

Real processes: one mosquitto, one centre, four agents (and for a time a fifth with the identity of another) whose
cameras are replaced by made pictures. A seeded plan kills them, spoils their links, fills their disks, steps their
clocks (`simulations.chaos`). Then the ledger of what was accepted is compared with the store.

Killing a process does not lose what the operating system holds; a power cut does. So the spool also lives on a disk of
ours that keeps, loses or tears what was not synced (`simulations.powercut`), beside the same with synchronous=NORMAL.
"""

import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from simulations.chaos.run import Chaos
from simulations.powercut.run import run_powercuts

SECONDS: Final = {True: 22.0, False: 600.0}
"""By `quick`."""
PER_S: Final = {True: 4.0, False: 2.0}
SEED: Final = 4
POWERCUT_SEEDS: Final = {True: 100, False: 500}
NORMAL_SEEDS: Final = 20

console = Console(stderr=True)


def bench_chaos(*, quick: bool) -> dict[str, Any]:
    """Samples lost and stored twice, of those accepted, and what was done meanwhile.

    Raises:
        EnvironmentFault: mosquitto is not installed, or something does not start.
    """
    with tempfile.TemporaryDirectory(prefix="headframe-chaos-") as name, console.status("chaos") as status:
        run = Chaos(
            Path(name) / "run", SECONDS[quick], SEED, PER_S[quick], lambda text: status.update(f"chaos: {text}")
        )
        figures = run.run().figures()
        status.update("chaos: power cuts")
        cuts, weaker = run_powercuts(range(POWERCUT_SEEDS[quick])), run_powercuts(range(NORMAL_SEEDS), "NORMAL")
    return {
        **figures,
        "powercut_seeds": cuts.seeds,
        "powercut_cuts": cuts.cuts,
        "powercut_accepted": cuts.accepted,
        "powercut_lost": cuts.lost,
        "powercut_corrupt": cuts.corrupt,
        "powercut_lost_if_normal": weaker.lost,
    }
