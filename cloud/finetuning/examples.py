"""What a fine-tune learns from: labelled pictures that the centre holds, and those kept back to judge it by.

Gold pictures are never trained on. Of the others whole sites are kept back, by their names: of two pictures of one
scene, one trained on and one judged by, the second measures memory. Where there are too few sites, pictures are.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
HELD_SHARE: Final = 0.2
SITES_MIN: Final = 5
"""With fewer, a site is too much to keep back."""


@dataclass(frozen=True, slots=True)
class Example:
    """A labelled picture; it is read when it is needed."""

    id: bytes
    scenario: str
    label: str
    site: str
    read: Callable[[], Picture]

    @property
    def target(self) -> tuple[str, str]:
        """What the network is to say: a label means something in its scenario only."""
        return self.scenario, self.label


def hold_back(examples: Sequence[Example]) -> tuple[list[Example], list[Example]]:
    """Those to train on, and those to judge by; a class that would be judged only is trained on.

    The names decide, so what is kept back stays kept back from one fine-tune to the next.
    """
    by_site = len({example.site for example in examples}) >= SITES_MIN
    held = [_is_held(example.site.encode() if by_site else example.id) for example in examples]
    trained = {example.target for example, out in zip(examples, held, strict=True) if not out}
    train = [e for e, out in zip(examples, held, strict=True) if not out or e.target not in trained]
    return train, [e for e, out in zip(examples, held, strict=True) if out and e.target in trained]


def _is_held(name: bytes) -> bool:
    return hashlib.blake2b(name, digest_size=8, person=b"held back").digest()[0] < 256 * HELD_SHARE


def draw(examples: Sequence[Example], count: int, rng: np.random.Generator) -> NDArray[np.integer]:
    """Rows (count,) of examples: every class as often as the others, every site of a class as often as its others.

    So what was learnt before is rehearsed however few of its pictures there are, and a site of many pictures does not
    drown the others.
    """
    places: dict[tuple[str, str], dict[str, list[int]]] = {}
    for row, example in enumerate(examples):
        places.setdefault(example.target, {}).setdefault(example.site, []).append(row)
    classes = [list(sites.values()) for _, sites in sorted(places.items())]
    rows = np.empty(count, dtype=np.int64)
    for number in range(count):
        sites = classes[rng.integers(len(classes))]
        rows[number] = rng.choice(sites[rng.integers(len(sites))])
    return rows
