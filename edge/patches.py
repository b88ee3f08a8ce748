"""Where in the picture it is unlike this camera's own normal: a heat map over patches, and boxes from it. Pure.

A backbone may give its feature map before pooling as a second output. Per camera and patch a running mean and variance
of some of its channels are kept (a random subset is nearly as good as all: PaDiM, Defard et al. 2020, arXiv:2011.08785,
with a diagonal instead of the full covariance, so that it can be learnt as it runs and stays small). A patch's heat is
the root mean square of its standardised differences: about 1 is normal.

What is hot is learnt more slowly than what is not, so that a thing that stays does not become normal at once.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

CHANNELS: Final = 96
"""Channels kept: 7 x 7 patches of them are 38 kB a camera."""
MEMORY_LOOKS: Final = 600
"""Looks over which normal is averaged: minutes in Watch, an hour or more in Idle."""
WARM_LOOKS: Final = 12
"""Looks before anything is said."""
HOT_MIN: Final = 2.0
"""Heat from which a patch is hot. A fixed line: the heat is in units of the patch's own variation already, and a line
that followed the heat itself was raised by the first thing that came by."""
LEARN_MAX: Final = 1.5
"""A patch hotter than this is learnt at `HOT_RATE` only: what leads up to a thing must not prepare normal for it."""
HOT_RATE: Final = 0.005
"""Share of the usual rate; at a tenth, people who pass had become normal in a minute."""
SCENE_SHARE: Final = 0.5
SCENE_LOOKS: Final = 150
"""When more than this share of the picture is hot for so many looks, it is the scene that has changed (a camera turned,
a lamp lit), and it is learnt at the usual rate. Somebody close to the lens is gone by then."""
VARIANCE_FLOOR: Final = 1.0
"""Of the mean variance: what never moved must not be hot at the first breath of air."""
REGIONS_MAX: Final = 5
"""Regions of a look, the hottest: more say no more than that much is unusual."""


@dataclass(frozen=True, slots=True)
class Region:
    """Hot patches that touch each other: fractions 0..1 of what was looked at, and the highest heat in them."""

    left: float
    top: float
    right: float
    bottom: float
    heat: float


class PatchNormal:
    """The normal of one camera, patch by patch. Bounded: two arrays of the patch grid."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._channels: NDArray[np.intp] | None = None
        self._shape: tuple[int, ...] = ()
        self._seen = self._scene_looks = 0
        self._mean = self._variance = np.zeros(0, np.float32)

    def look(self, patches: Floats) -> tuple[Floats, NDArray[np.bool_]]:
        """Heat float32 (h, w) of a feature map float32 (d, h, w), and which patches are hot; then learn it.

        Both are empty for the first looks. Another shape (another backbone) begins anew.
        """
        if patches.shape != self._shape:
            self._begin(patches)
        difference = patches[self._channels] - self._mean
        # of each patch for itself, with what the whole picture varies by as its floor
        floor = VARIANCE_FLOOR * self._variance.mean() + np.float32(1e-9)
        heat: Floats = np.sqrt((difference**2 / (self._variance + floor)).mean(axis=0))
        if self._seen < WARM_LOOKS:
            self._learn(difference, np.zeros(heat.shape, dtype=bool))
            return np.zeros_like(heat), np.zeros(heat.shape, dtype=bool)
        hot = heat > HOT_MIN
        self._scene_looks = self._scene_looks + 1 if hot.mean() > SCENE_SHARE else 0
        self._learn(difference, (heat > LEARN_MAX) & (self._scene_looks <= SCENE_LOOKS))
        return heat, hot

    def _begin(self, patches: Floats) -> None:
        chosen = np.random.default_rng(self._seed).permutation(patches.shape[0])[:CHANNELS]
        self._channels, self._shape = np.sort(chosen), patches.shape
        self._seen = self._scene_looks = 0
        self._mean = patches[self._channels].copy()
        self._variance = np.zeros_like(self._mean)

    def _learn(self, difference: Floats, slowly: NDArray[np.bool_]) -> None:
        """Exponential mean and variance, the mean of all looks until the memory is full."""
        self._seen += 1
        rate = np.where(slowly, HOT_RATE, 1.0).astype(np.float32) * max(1.0 / (self._seen + 1), 1.0 / MEMORY_LOOKS)
        self._mean = self._mean + rate * difference
        self._variance = (1 - rate) * (self._variance + rate * difference**2)


def regions(heat: Floats, hot: NDArray[np.bool_]) -> list[Region]:
    """Hot patches (h, w) joined where they share an edge, hottest first, at most `REGIONS_MAX`."""
    rows, columns = hot.shape
    left = {(int(row), int(column)) for row, column in np.argwhere(hot)}
    found = []
    while left:
        waiting, joined = [left.pop()], []
        while waiting:
            row, column = waiting.pop()
            joined.append((row, column))
            for near in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                if near in left:
                    left.remove(near)
                    waiting.append(near)
        found.append(
            Region(
                min(column for _, column in joined) / columns,
                min(row for row, _ in joined) / rows,
                (max(column for _, column in joined) + 1) / columns,
                (max(row for row, _ in joined) + 1) / rows,
                max(float(heat[place]) for place in joined),
            )
        )
    return sorted(found, key=lambda region: -region.heat)[:REGIONS_MAX]
