"""Two clocks: the centre moves to a new backbone at once, sites count their samples on it when they get to it.

Brings everything that the centre can see onto a backbone: pictures of datasets and labelled samples are embedded again,
what is there already is left. What it cannot see, statistics of gateways whose pixels stay at their site, is carried
over by a linear map (`cloud.learning.carrying`) and marked; what the gateway counts itself replaces it.
"""

import io
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cloud.learning.carrying import LinearMap, learn_map
from cloud.learning.datasets import Catalogue
from cloud.store import SUM, Contribution, Store
from common.backbone import Backbone
from common.errors import EnvironmentFault
from common.files import write_atomically
from common.packing import Packed, Triangle, read_packed
from common.pictures import decode_picture
from common.statistics import Statistics

log = logging.getLogger(__name__)

CARRIED: Final = "carried_from"
"""Key in a contribution's record: the backbone on which the gateway counted it."""
OF_A_ROUND: Final = ("round", "parts")
"""Keys in it that say which round it answered: carried statistics answer none."""
OWN_SHARE: Final = 0.9
"""A gateway's own statistics replace carried ones when they count at least this share of the samples: a gateway that is
in the middle of counting again is not taken at a tenth of its word."""
PAIRS_MAX: Final = 2_000  # pictures that a map is learnt from: its cost grows with the cube
UNLABELLED: Final = 1_000  # samples without a label teach a map as well
BATCH: Final = 256  # embeddings per commit: what a crash costs

Progress = Callable[[str, int, int], None]
"""(what, done, in all)"""


def _report(progress: Progress, what: str, total: int, done: int) -> None:
    progress(what, done, total)


def silent(what: str, done: int, total: int) -> None:
    """No progress."""
    del what, done, total


def unpacked(contribution: Contribution) -> Packed:
    """As it is kept; before there were packed forms, the whole second moment was."""
    classes, arrays = tuple(contribution.meta["classes"]), contribution.arrays
    if "moment" in arrays and arrays["moment"].ndim == 2:
        counts, sums, moment = (np.asarray(arrays[key], np.float64) for key in ("counts", "sums", "moment"))
        return Triangle.of(Statistics(classes, counts, sums, moment))
    return read_packed(classes, arrays)


def supersedes(own: int, meta: Mapping[str, Any] | None) -> bool:
    """Whether what a gateway counted itself, so many samples, replaces what is kept of it."""
    return meta is None or CARRIED not in meta or own >= OWN_SHARE * len(meta["covered"])


class Clocks:
    """Brings store and catalogue onto backbones.

    Args:
        folder: where maps are kept, one file each.
    """

    def __init__(self, store: Store, catalogue: Catalogue, folder: Path) -> None:
        self._store, self._catalogue, self._folder = store, catalogue, folder

    def bring(self, name: str, path: Path, progress: Progress = silent, *, unlabelled: int = 0) -> None:
        """Embed what has no embedding on the backbone `name`, which lies at `path`; resumable.

        Args:
            unlabelled: so many samples without a label as well.

        Raises:
            OperatorError: a dataset's picture is not where it was.
        """
        datasets = self._catalogue.lacking(name)
        samples = self._store.unembedded(name, unlabelled=unlabelled)
        if not datasets and not samples:
            return
        backbone = Backbone.open(path)
        for dataset in datasets:
            what = f"dataset {dataset.name} of {dataset.scenario}"
            self._catalogue.embed_again(dataset, backbone, partial(_report, progress, what, len(dataset.ids)))
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            self._store.put_embeddings(name, dict(self._embedded(backbone, batch)))
            progress("samples", start + len(batch), len(samples))

    def learn(self, old: str, new: str, *, akin: bool = True) -> LinearMap:
        """The map between two backbones, from all pictures that both have seen; kept.

        Args:
            akin: see `learn_map`.
        """
        before, after, sites = self._pairs(old, new)
        found = learn_map(before, after, sites, akin=akin)
        buffer = io.BytesIO()
        np.savez(buffer, matrix=found.matrix, offset=found.offset, unexplained=found.unexplained)
        write_atomically(self._path(old, new), buffer.getvalue())
        return found

    def carry(self, scenario: str, backbone: str) -> int:
        """Carry over what gateways counted on the backbones that a map leads from; returns of how many gateways.

        Left out are those that have counted on the new one themselves, and those whose samples are all at the centre,
        which counts them itself.
        """
        there = self._store.contribution_records(scenario, backbone)
        own = {m for client, meta in there.items() if CARRIED not in meta for m in meta.get("members", (client,))}
        carried = 0
        for old, found in self._maps(backbone):
            for row in self._store.contributions(scenario, old):
                if not own.isdisjoint(row.members) or self._counts_itself(row):
                    continue
                packed, known = unpacked(row), there.get(row.client)
                if packed.dimension != len(found.matrix):
                    log.warning("the statistics of %s are of another size than its backbone's", row.client)
                    continue
                carried += 1
                if known is None or known["covered"] != row.meta["covered"]:
                    packed = found.carry(packed)
                    meta = {key: value for key, value in row.meta.items() if key not in OF_A_ROUND}
                    meta |= {"classes": list(packed.classes), CARRIED: row.meta.get(CARRIED, old)}
                    self._store.put_contribution(scenario, backbone, row.client, packed.arrays(), meta, row.at_ns)
        return carried

    def _counts_itself(self, row: Contribution) -> bool:
        """Whether the centre has every sample that is counted there; what is in a masked sum nobody knows."""
        covered = {bytes.fromhex(name) for name in row.meta["covered"]}
        return not row.client.startswith(SUM) and self._store.known_ids(list(covered)) >= covered

    def forget(self, backbone: str) -> None:
        """Remove everything that was made for a backbone that no release has."""
        self._store.forget_backbone(backbone)
        self._catalogue.forget(backbone)
        for path in (*self._folder.glob(f"*.{backbone}.npz"), *self._folder.glob(f"{backbone}.*.npz")):
            path.unlink()

    def _embedded(self, backbone: Backbone, names: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
        """Embeddings of samples; one whose picture is damaged is left out, and named."""
        for name in names:
            try:
                picture = decode_picture(self._store.jpeg(name))
            except EnvironmentFault as error:
                log.warning("sample %s stays behind: %s", name.hex(), error)
                continue
            if picture is None:
                log.warning("sample %s stays behind: its picture does not decode", name.hex())
                continue
            yield name, backbone.embed(picture).astype("<f2").tobytes()

    def _pairs(self, old: str, new: str) -> tuple[NDArray[np.floating], NDArray[np.floating], list[str]]:
        """Embeddings (n, d) of the same pictures on both, and their sites. Gold is left out: it judges."""
        found: dict[bytes, tuple[str, NDArray[np.floating], NDArray[np.floating]]] = {}
        on_new = {(d.name, d.scenario): d for d in self._catalogue.datasets() if d.backbone == new}
        for first in self._catalogue.datasets():
            second = on_new.get((first.name, first.scenario))
            if first.backbone == old and second is not None and second.ids == first.ids:
                for row in np.flatnonzero(~first.is_gold):
                    found[first.ids[row]] = first.sites[row], first.embeddings[row], second.embeddings[row]
        uploaded = self._store.pairs(old, new, PAIRS_MAX)
        sizes = Counter(len(one) for *_, one, _ in uploaded)
        for name, site, one, other in uploaded:
            if len(one) == sizes.most_common(1)[0][0]:  # a gateway may have sent anything
                before, after = (np.frombuffer(data, "<f2").astype(np.float32) for data in (one, other))
                found[name] = site, before, after
        chosen = list(found.values())[:: max(1, -(-len(found) // PAIRS_MAX))]
        if not chosen:
            return np.zeros((0, 0)), np.zeros((0, 0)), []
        return np.stack([x for _, x, _ in chosen]), np.stack([y for _, _, y in chosen]), [site for site, _, _ in chosen]

    def _path(self, old: str, new: str) -> Path:
        return self._folder / f"{old}.{new}.npz"

    def _maps(self, new: str) -> Iterator[tuple[str, LinearMap]]:
        for path in sorted(self._folder.glob(f"*.{new}.npz")):
            with np.load(path, allow_pickle=False) as arrays:
                yield path.name.split(".")[0], LinearMap(arrays["matrix"], arrays["offset"], arrays["unexplained"])
