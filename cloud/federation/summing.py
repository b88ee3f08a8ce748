"""The sum of a scenario's statistics over thousands of clients, folded as they arrive, in the memory of a few.

`cloud.federation.strategy` hands every contribution on by itself, because the centre keeps each (keyed, replaceable,
removable). Where only the sum is wanted, as in a site's own aggregator or a simulation of the fleet, the second moment
need not be unfolded from its packed triangle 12,000 times: it is summed packed, in one pass over the bytes. Factors
(`common.packing`) are stacked, and their second moments computed together, one product for thousands of rows.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cloud.federation.folding import Form, Mean, Misfit
from cloud.federation.kernels import fastest_kernel
from cloud.learning.parts import FactorStack
from common.errors import PeerError, WireError
from common.flower import RecordDict
from common.packing import CLASSES_MAX, Factor, Packed, read_packed
from common.statistics import Statistics

_FLOAT = np.dtype(np.float64)
_SLACK = 1e-6  # of rounding at the client, as `common.packing` allows


class StatisticsSum:
    """Sums contributions of one scenario.

    Args:
        classes: of the scenario, in the order of the result.
        dimension: of the embeddings.
    """

    def __init__(self, classes: Sequence[str], dimension: int) -> None:
        self.classes, self._dimension = tuple(classes), dimension
        self._counts = np.zeros(len(self.classes))
        self._sums = np.zeros((len(self.classes), dimension))
        self._packed_form = Form.of(_FLOAT, (dimension * (dimension + 1) // 2,))
        self._packed = Mean({"moment": self._packed_form}, fastest_kernel())
        steps = np.arange(dimension, 0, -1)
        self._diagonal = np.concatenate([[0], np.cumsum(steps)[:-1]])
        """Where the diagonal lies in a packed upper triangle."""
        self._factors = FactorStack(dimension)

    @property
    def contributions(self) -> int:
        return self._packed.folds + self._factors.count

    def add(self, content: RecordDict, scenario: str) -> None:
        """Add one reply's statistics of `scenario`, whole or not at all; one without any adds nothing.

        Raises:
            WireError: shapes, classes or values that cannot be.
        """
        key = f"statistics/{scenario}"
        if key not in content:
            return
        try:
            record = content[key]
            classes = tuple(str(label) for label in content["covered"][f"classes/{scenario}"])
            if "factor" in record:
                self.add_packed(read_packed(classes, {name: array.numpy() for name, array in record.items()}))
                return
            small = {name: np.asarray(record[name].numpy(), np.float64) for name in ("counts", "sums")}
            moment = record["moment"].data
        except (KeyError, TypeError, ValueError) as error:
            raise WireError(f"not a reply of a round: {error!r}") from error
        places, counts, sums = self._placed(classes, small["counts"], small["sums"])
        self._check_possible(counts, sums, moment)
        self._packed.add({"moment": moment}, 1.0)
        self._counts[places] += counts
        self._sums[places] += sums

    def add_packed(self, packed: Packed) -> None:
        """Add statistics that have been checked (`common.packing.read_packed`).

        Raises:
            WireError: another dimension, or classes that the scenario does not have.
        """
        places, counts, sums = self._placed(packed.classes, packed.counts, packed.sums)
        if isinstance(packed, Factor):
            self._factors.push(packed)
        else:
            moment = np.ascontiguousarray(packed.moment)
            self._packed.add({"moment": self._packed_form.header + moment.tobytes()}, 1.0)
        self._counts[places] += counts
        self._sums[places] += sums

    def statistics(self) -> Statistics:
        """Raises:
        PeerError: nothing was added.
        """
        if not self.contributions:
            raise PeerError("no client contributed statistics")
        moment = self._factors.moment()
        if self._packed.folds:
            upper = np.zeros((self._dimension, self._dimension))
            upper[np.triu_indices(self._dimension)] = self._packed.totals()["moment"]
            moment += upper + np.triu(upper, 1).T
        return Statistics(self.classes, self._counts.copy(), self._sums.copy(), moment)

    def _placed(
        self, classes: tuple[str, ...], counts: NDArray[np.float64], sums: NDArray[np.float64]
    ) -> tuple[list[int], NDArray[np.float64], NDArray[np.float64]]:
        """Where each of a client's classes belongs; classes without samples may be any."""
        if len(classes) > CLASSES_MAX or len(set(classes)) != len(classes):
            raise WireError(f"{len(classes)} classes are too many, or one comes twice")
        if counts.shape != (len(classes),) or sums.shape != (len(classes), self._dimension):
            raise WireError(f"statistics of {len(classes)} classes have shapes {counts.shape}, {sums.shape}")
        if not (np.isfinite(counts).all() and np.isfinite(sums).all()):
            raise WireError("statistics hold values that are not finite")
        if (counts < 0).any() or (counts != np.round(counts)).any():
            raise WireError("counts must be whole and not negative")
        used = np.flatnonzero(counts)
        missing = [classes[row] for row in used if classes[row] not in self.classes]
        if missing:
            raise WireError(f"statistics hold classes that the scenario does not have: {', '.join(missing)}")
        return [self.classes.index(classes[row]) for row in used], counts[used], sums[used]

    def _check_possible(
        self, counts: NDArray[np.float64], sums: NDArray[np.float64], moment: bytes | memoryview
    ) -> None:
        """A second moment's trace is at least what the sums' lengths need (Cauchy-Schwarz)."""
        trace = self._packed_form.values("moment", moment)[self._diagonal].sum()
        power = float(((sums**2).sum(axis=1) / counts).sum()) if len(counts) else 0.0
        if not trace >= power * (1 - _SLACK) - _SLACK:
            raise Misfit("malformed", "the second moment is smaller than the sums allow")
