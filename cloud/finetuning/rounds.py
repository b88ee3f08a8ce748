"""A fine-tune at the sites that have torch: rounds over the production grid, gone on with after a crash.

Decides who is asked and keeps the weights after each round. Leaves training to `cloud.finetuning.site_app`, averaging
to the strategy, and what becomes of the tuned backbone to `cloud.finetuning.run`.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from cloud.federation.caller import Caller
from cloud.federation.strategies import check_compression, make_strategy
from cloud.federation.weight_rounds import Learnt, run_rounds
from cloud.finetuning.federated import adapter_arrays, layer_with, task_of
from cloud.finetuning.tuning import Recipe, Tuned
from common.errors import EnvironmentFault
from common.files import write_atomically
from common.flower import Array, ArrayRecord
from common.ids import layer_hash

HEARD_S = 25.0
"""Two and a half heartbeats: so long sites that train are waited for."""

Progress = Callable[[int, int], None]
"""(rounds done, rounds in all)"""


@dataclass(frozen=True, slots=True)
class Averaging:
    """How the rounds go."""

    strategy: str = "fedavg"
    arguments: str = ""
    """JSON of what the strategy takes beside."""
    compression: str = ""
    sites_min: int = 2
    """Gateways that must be there; the average of one is its own update, for all to see."""
    deadline_s: float = 1800.0
    """Of a round."""

    def check(self) -> None:
        """Raises:
        ConfigError: no such strategy or compression, or one that it does not take.
        """
        make_strategy(self.strategy, self.arguments)
        check_compression(self.strategy, self.compression)


class FederatedTuning:
    """One fine-tune of a backbone by several sites.

    Args:
        layer: the backbone that runs.
        folder: for the weights between rounds.
    """

    def __init__(self, layer: bytes, recipe: Recipe, averaging: Averaging, folder: Path) -> None:
        averaging.check()
        self._layer, self._recipe, self._averaging = layer, recipe, averaging
        digest = hashlib.blake2b(repr((layer_hash(layer), asdict(recipe), asdict(averaging))).encode(), digest_size=16)
        self._file = folder / f"{digest.hexdigest()}.rounds.npz"

    def run(self, caller: Caller, expected: list[str], progress: Progress) -> Tuned:
        """Train to the end, from the last round where there is one.

        Args:
            expected: gateways that were known to train: waited for, for a while.

        Raises:
            EnvironmentFault: too few sites are there, or gave nothing of use; the same command goes on.
        """
        arrays, done = self._resume()
        curve: tuple[float, ...] = ()
        progress(done, self._recipe.epochs)
        if done < self._recipe.epochs:
            with caller.connected():
                there = caller.gather(expected, HEARD_S)
                if len(there) < self._averaging.sites_min:
                    raise EnvironmentFault(
                        f"{len(there)} of {self._averaging.sites_min} gateways that train are online",
                        "They name an app under [training] in edge.toml: docs/federation.md.",
                    )
                learnt = self._train(caller, arrays, done, progress)
                arrays, curve = learnt.arrays, learnt.curve
        return Tuned(layer_with(self._layer, self._recipe, arrays), curve)

    def forget(self) -> None:
        """Remove what was kept: the run is over."""
        self._file.unlink(missing_ok=True)

    def _train(self, caller: Caller, arrays: ArrayRecord, before: int, progress: Progress) -> Learnt:
        averaging = self._averaging
        strategy = make_strategy(
            averaging.strategy,
            averaging.arguments,
            nodes_min=averaging.sites_min,
            deadline_s=averaging.deadline_s,
            site_of=caller.site_of,
        )

        def on_round(number: int, made: ArrayRecord) -> None:
            self._keep(made, before + number)
            progress(before + number, self._recipe.epochs)

        return run_rounds(
            caller.grid,
            strategy,
            arrays,
            task_of(layer_hash(self._layer), self._recipe, averaging.compression, before),
            rounds=self._recipe.epochs - before,
            deadline_s=averaging.deadline_s,
            on_round=on_round,
        )

    def _keep(self, arrays: ArrayRecord, done: int) -> None:
        buffer = io.BytesIO()
        values = {f"array/{name}": array.numpy() for name, array in arrays.items()}
        np.savez(buffer, done=np.array(done), **values)
        write_atomically(self._file, buffer.getvalue())

    def _resume(self) -> tuple[ArrayRecord, int]:
        """The weights so far, and how many rounds made them."""
        if not self._file.is_file():
            return adapter_arrays(self._layer, self._recipe), 0
        with np.load(self._file, allow_pickle=False) as kept:
            names = [name for name in kept.files if name.startswith("array/")]
            arrays = ArrayRecord({name.removeprefix("array/"): Array(kept[name]) for name in names})
            return arrays, int(kept["done"])
