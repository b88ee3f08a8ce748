"""The running sum of what sites brought, per scenario: kept between runs, so that one site leaves it by a subtraction.

A sum is kept with the version of every part in it. Where the parts of a run are those of the sum and perhaps some more,
the new ones are added; where one has changed or is gone, the sum is made anew from the parts. Leaving it
(`without`) is one subtraction, exact to rounding; after `SUBTRACTIONS_MAX` of them the next run makes it anew, so that
rounding does not add up. The file is a cache: without it the next run is slower.
"""

import io
import json
import logging
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cloud.learning.bounds import Size
from cloud.learning.parts import add_up
from common.errors import WireError
from common.files import write_atomically
from common.packing import Packed, Triangle, read_packed
from common.statistics import Statistics

log = logging.getLogger(__name__)

SUBTRACTIONS_MAX = 100  # each may lose a unit of the sum's last place: together 1e-14 of it


@dataclass(frozen=True, slots=True)
class Part:
    """What one gateway, or the samples of one site, bring; a new version whenever it is something else."""

    version: str
    packed: Packed
    members: int = 1
    """Gateways in it."""

    @property
    def size(self) -> Size:
        return Size(self.packed.total, self.members)


@dataclass(frozen=True, slots=True)
class _Sum:
    statistics: Statistics
    versions: dict[str, str]
    sizes: dict[str, Size]
    subtractions: int


class Ledger:
    """One file per scenario and backbone in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def total(
        self, scenario: str, backbone: str, classes: Sequence[str], dimension: int, parts: Mapping[str, Part]
    ) -> Statistics:
        """The sum of the parts over `classes`; kept."""
        kept = self._read(scenario, backbone)
        if kept is not None and _continues(kept, parts, dimension):
            new = [part.packed for key, part in parts.items() if key not in kept.versions]
            total = kept.statistics.over(classes)
            total = total + add_up(classes, dimension, new) if new else total
            subtractions = kept.subtractions
        else:
            total, subtractions = add_up(classes, dimension, (part.packed for part in parts.values())), 0
        versions = {key: part.version for key, part in parts.items()}
        if kept is None or kept.versions != versions:
            sizes = {key: part.size for key, part in parts.items()}
            self._write(scenario, backbone, _Sum(total, versions, sizes, subtractions))
        return total

    def without(self, scenario: str, backbone: str, gone: Mapping[str, Part]) -> Statistics | None:
        """The kept sum less these parts; kept.

        Args:
            gone: parts as they were when the sum was made; one that the sum does not have takes nothing from it.

        Returns:
            None where there is no sum, or one with another version of such a part: it has to be made anew.
        """
        kept = self._read(scenario, backbone)
        if kept is None or any(kept.versions.get(key, part.version) != part.version for key, part in gone.items()):
            return None
        leaving = {key: part for key, part in gone.items() if key in kept.versions}
        total = kept.statistics
        for part in leaving.values():
            total = total - part.packed.over(total.classes).statistics()
        versions = {key: version for key, version in kept.versions.items() if key not in leaving}
        sizes = {key: kept.sizes[key] for key in versions}
        self._write(scenario, backbone, _Sum(total, versions, sizes, kept.subtractions + len(leaving)))
        return total

    def sizes(self, scenario: str, backbone: str) -> dict[str, Size]:
        """What each part of the kept sum counts; empty where there is none."""
        kept = self._read(scenario, backbone)
        return kept.sizes if kept else {}

    def _path(self, scenario: str, backbone: str) -> Path:
        return self._folder / f"{scenario}.{backbone[:16]}.npz"

    def _read(self, scenario: str, backbone: str) -> _Sum | None:
        """None where there is none that can be read."""
        try:
            with np.load(self._path(scenario, backbone), allow_pickle=False) as arrays:
                meta = json.loads(str(arrays["meta"]))
                found = read_packed(tuple(meta["classes"]), {key: arrays[key] for key in ("counts", "sums", "moment")})
            sizes = {key: Size(*size) for key, size in meta["sizes"].items()}
            return _Sum(found.statistics(), dict(meta["versions"]), sizes, int(meta["subtractions"]))
        except FileNotFoundError:
            return None
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile, WireError) as error:
            log.warning("the kept sum of %s cannot be read and is made anew: %s", scenario, error)
            return None

    def _write(self, scenario: str, backbone: str, kept: _Sum) -> None:
        packed = Triangle.of(kept.statistics)
        meta = {
            "classes": packed.classes,
            "versions": kept.versions,
            "sizes": kept.sizes,
            "subtractions": kept.subtractions,
        }
        buffer = io.BytesIO()
        np.savez(buffer, meta=np.array(json.dumps(meta)), counts=packed.counts, sums=packed.sums, moment=packed.moment)
        write_atomically(self._path(scenario, backbone), buffer.getvalue())


def _continues(kept: _Sum, parts: Mapping[str, Part], dimension: int) -> bool:
    """Whether the kept sum is a sum of some of these parts, and not worn by subtractions."""
    known = {key: part.version for key, part in parts.items() if key in kept.versions}
    return known == kept.versions and kept.statistics.dimension == dimension and kept.subtractions <= SUBTRACTIONS_MAX
