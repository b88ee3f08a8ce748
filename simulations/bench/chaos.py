"""`headframe bench chaos`: is anything lost, or stored twice, when everything fails?

Real processes: one mosquitto, one centre, four agents (and for a time a fifth with the identity of another) whose
cameras are replaced by made pictures. A seeded plan kills them, spoils their links, fills their disks, steps their
clocks (`simulations.chaos`). Then the ledger of what was accepted is compared with the store.
"""

import tempfile
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from simulations.chaos.run import Chaos

SECONDS: Final = {True: 22.0, False: 600.0}
"""By `quick`."""
PER_S: Final = {True: 4.0, False: 2.0}
SEED: Final = 4

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
        return run.run().figures()
