"""Runs the centre with a store that takes its time: `python -m simulations.chaos.slowed FILE MODULE ARGUMENTS…`.

`FILE` holds the seconds that each sample costs beyond its own, read again before every batch; the rest of the process
is as it is. So a slow database or disk can be had on a fast machine, and be taken away while the centre runs.
"""

import runpy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloud.store.samples import SampleTables
from common.messages import Sample


def main() -> None:
    """Slow the store, then be the module."""
    _, file, module, *arguments = sys.argv
    add_samples = SampleTables.add_samples

    def slowly(store: SampleTables, batch: Sequence[Sample], *others: Any) -> int:
        time.sleep(float(Path(file).read_text()) * len(batch))
        return add_samples(store, batch, *others)

    SampleTables.add_samples = slowly  # type: ignore[assignment, method-assign]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
