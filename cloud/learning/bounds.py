"""How much one contributor may count: at most so many times the median one. Decides weights, and solves nothing.

A gateway says itself how many samples it counted, and what a site counts that shares updates only nobody can look at.
So one that claims a hundred thousand could move a class wherever it likes, with statistics that fit each other. A
contribution over the bound is therefore scaled as a whole: what it says stays, its say shrinks. Where nobody is over
it, nothing is changed. It bounds each one and no conspiracy: of liars that are many, `cloud.learning.robustness` names
those whose labels do not fit.
"""

from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

CONTRIBUTORS_MIN: Final = 4  # as for quarantine: of fewer there is no middle


class Size(NamedTuple):
    """What a contribution counts."""

    samples: float
    members: int = 1
    """Gateways in it: several where they were summed under masks."""


def weights_within(sizes: Mapping[str, Size], ratio_max: float) -> dict[str, float]:
    """The contributors over the bound, each with the weight, 0..1, that its samples have left.

    Args:
        sizes: of all that count; one without samples has none.
        ratio_max: a gateway counts for so many times the median one; 0: no bound.
    """
    each = {name: size.samples / size.members for name, size in sizes.items() if size.samples}
    if not ratio_max or len(each) < CONTRIBUTORS_MIN:
        return {}
    most = ratio_max * float(np.median(list(each.values())))
    return {name: most / samples for name, samples in sorted(each.items()) if samples > most}
