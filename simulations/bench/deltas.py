"""`headframe bench deltas`: what a new release costs on the wire, beside the tools that everyone has.

Four releases are made on real belts: heads solved again on the same backbone, and fine-tunes of the adapter (scale and
shift of every batch-norm), of the last block, and of every weight. The fine-tunes are snapped to the coarsest steps
whose predictions agree with the unsnapped model on calibration pictures (`cloud.learning.snapping`); agreement is then
measured on pictures of scenes that neither training nor calibration saw. Of each, the int8 variant is made in the
numbers of the base's (`cloud.learning.requantise`), and from scratch. Every delta is applied and compared bit by bit
with what was judged.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import bsdiff4
import numpy as np
import pyxdelta
import zstandard
from numpy.typing import NDArray

from cloud.finetuning.graph import Depth
from cloud.finetuning.tuning import Recipe
from cloud.learning.datasets import Item, order_classes, read_folder
from cloud.learning.export import export_default_backbone, export_head
from cloud.learning.heads import HeadWeights, calibrate, lift, principal_basis, solve_lda
from cloud.registry import delta_of
from common.delta import apply_delta
from common.ids import layer_hash
from common.statistics import Statistics
from simulations.bench._tuning import embed, snap_tuned, tune
from simulations.bench._variants import Variants
from simulations.data import find_data

KINDS = {"adapter": Depth.ADAPTER, "last_block": Depth.BLOCK, "full": Depth.FULL}
QUICK_KINDS = ("last_block", "full")
EPOCHS, QUICK_EPOCHS = 12, 1
TRAIN_PX = 128  # a quarter of the work; what is measured here is bytes, and how near snapped is to unsnapped
CALIBRATION, QUICK_CALIBRATION = 260, 120
UNSEEN, QUICK_UNSEEN = 562, 140
RANGES, QUICK_RANGES = 128, 16
"""Pictures that set the ranges of int8 variants."""
JUDGED, QUICK_JUDGED = 200, 60
"""… and those that they are judged on."""
QUICK_INT8 = ("full",)
QUICK_BATCH = 8
QUICK_SEEN = 32
"""Pictures whose feature maps say which weights matter."""
SHRINKAGE = 0.1
DIMENSIONS = 512


def bench_deltas(*, quick: bool) -> dict[str, Any]:
    """Make the releases, their deltas and the comparators' deltas."""
    began_s = time.monotonic()
    run = _Run(quick=quick)
    run.solve_again()
    for kind in QUICK_KINDS if quick else KINDS:
        run.fine_tune(kind, KINDS[kind])
    return run.figures() | {"seconds": round(time.monotonic() - began_s, 1)}


class _Run:
    """One run: pictures, the backbone that gateways have, and what was found so far."""

    def __init__(self, *, quick: bool) -> None:
        data = find_data("belt-defects")
        self._quick = quick
        self._train, held = _hold_out(_pictures(data, "train"))
        self._solving = self._train[:: 4 if quick else 1]
        known = {item.label for item in self._solving}  # a few rare classes are not in every fourth picture
        calibration = [item for item in held if item.label in known]
        self._calibration = calibration[: QUICK_CALIBRATION if quick else CALIBRATION]
        self._unseen = _pictures(data, "test")[: QUICK_UNSEEN if quick else UNSEEN]
        self._base = export_default_backbone()
        ranges, judged = (QUICK_RANGES, QUICK_JUDGED) if quick else (RANGES, JUDGED)
        self._variants = Variants(self._base, self._train[:ranges], self._calibration[:judged])
        self._shares: dict[str, float] = {}
        self._table: dict[str, dict[str, float]] = {}
        self._agreements: dict[str, float] = {}
        self._fractions: dict[str, float] = {}
        self._int8: dict[str, dict[str, float]] = {}
        self._exact = True

    def solve_again(self) -> None:
        """Heads from twice as many pictures, on the same backbone."""
        old, new = (_solve(self._base, items) for items in (self._solving[: len(self._solving) // 2], self._solving))
        before, after = (export_head(head, "belt-defect", layer_hash(self._base)) for head in (old, new))
        self._compare("head", before, after, {"headframe": (delta_of(before, after), after)})
        self._shares["head"] = self._table["head"]["headframe"]

    def fine_tune(self, kind: str, depth: Depth) -> None:
        """A backbone, snapped, and its int8 variant."""
        recipe = Recipe(depth, epochs=EPOCHS, input_px=TRAIN_PX)
        if self._quick:
            recipe = replace(recipe, epochs=QUICK_EPOCHS, batch=QUICK_BATCH)
        target = tune(self._base, self._train, recipe).data
        labels = [item.label for item in self._calibration]
        head = calibrate(_solve(target, self._solving), embed(target, self._calibration), labels)
        seen = self._train[:QUICK_SEEN] if self._quick else self._train
        snapped = snap_tuned(self._base, target, head, self._calibration, seen)
        deltas = {"headframe": (snapped.delta(self._base), snapped.data)}
        if not self._quick:
            deltas["headframe, lossless"] = delta_of(self._base, target), target
        self._compare(kind, self._base, target, deltas)
        self._shares[kind], self._fractions[kind] = self._table[kind]["headframe"], snapped.fraction
        said = self._ask(head, snapped.data)
        self._agreements[kind] = float(np.mean(said == self._ask(head, target)))
        if not self._quick or kind in QUICK_INT8:
            self._quantise(kind, snapped.data, head, said)

    def _quantise(self, kind: str, tuned: bytes, head: HeadWeights, said: NDArray[np.str_]) -> None:
        """The variant of a backbone on which a head stands that said this of the unseen pictures."""
        published, made = self._variants.published, self._variants.succeed(tuned, head)
        row = f"{kind}, int8"
        deltas = {"headframe": (made.delta, made.data), "headframe, from scratch": (made.fresh_delta, made.fresh)}
        self._compare(row, published, made.fresh, deltas)
        self._shares[f"int8_{kind}"] = self._table[row]["headframe"]
        self._int8[kind] = {
            "share_of_int8_file": len(made.delta) / len(made.data),
            "code_step": made.step,
            "agreement": float(np.mean(said == self._ask(head, made.data))),
            "agreement_from_scratch": float(np.mean(said == self._ask(head, made.fresh))),
        }

    def _compare(self, row: str, base: bytes, target: bytes, ours: dict[str, tuple[bytes, bytes]]) -> None:
        """Shares of the fp32 backbone's bytes of our deltas, each with what it makes, and of the usual tools' for the
        same target before it is made small."""
        self._exact &= all(apply_delta(base, delta, len(made)) == made for delta, made in ours.values())
        shares = {name: len(delta) / len(self._base) for name, (delta, _) in ours.items()}
        self._table[row] = shares | _comparators(base, target, len(self._base), quick=self._quick)

    def _ask(self, head: HeadWeights, model: bytes) -> NDArray[np.str_]:
        """What the head says of the unseen pictures on a backbone."""
        return np.array(head.predict(embed(model, self._unseen)))

    def figures(self) -> dict[str, Any]:
        """What was found."""
        return {
            **self._shares,
            "agreement": min(self._agreements.values()),
            "agreement_by_kind": self._agreements,
            "bit_exact": self._exact,
            "step_fraction": self._fractions,
            "int8": self._int8,
            "table": {
                kind: {name: round(share, 5) for name, share in row.items()} for kind, row in self._table.items()
            },
            "model_bytes": len(self._base),
            "int8_model_bytes": len(self._variants.published),
            "pictures_unseen": len(self._unseen),
        }


def _pictures(data: Path, split: str) -> list[Item]:
    """The pictures of a split in an order that mixes scenes and classes, always the same."""
    items = read_folder(data, split)
    return [items[row] for row in np.random.default_rng(0).permutation(len(items))]


def _hold_out(items: list[Item]) -> tuple[list[Item], list[Item]]:
    """Every fourth scene is kept from training, to calibrate on."""
    scenes = set(sorted({item.site for item in items})[::4])
    return [i for i in items if i.site not in scenes], [i for i in items if i.site in scenes]


def _solve(model: bytes, items: Sequence[Item]) -> HeadWeights:
    """The head that a training run would solve on this backbone."""
    classes = order_classes(item.label for item in items)
    statistics = Statistics.of(classes, embed(model, items), [item.label for item in items])
    basis = principal_basis(statistics, DIMENSIONS)
    return lift(solve_lda(statistics.project(basis), SHRINKAGE), basis)


def _comparators(base: bytes, target: bytes, whole: int, *, quick: bool) -> dict[str, float]:
    """Shares of the fp32 backbone's bytes that the usual tools need for the same target, before it is made small."""
    patch = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    level = 3 if quick else 19
    window = zstandard.ZstdCompressionParameters.from_level(level, window_log=25, enable_ldm=True)
    patched = zstandard.ZstdCompressor(dict_data=patch, compression_params=window).compress(target)
    sizes = {
        f"zstd -{level}": len(zstandard.compress(target, level)),
        f"zstd --patch-from -{level}": len(patched),
    }
    if not quick:
        sizes |= {"bsdiff4": len(bsdiff4.diff(base, target)), "xdelta3": _xdelta(base, target)}
    return {name: size / whole for name, size in sizes.items()}


def _xdelta(base: bytes, target: bytes) -> int:
    """Bytes of xdelta3's patch."""
    with TemporaryDirectory(prefix="headframe-bench-") as folder:
        old, new, patch = (Path(folder) / name for name in ("old", "new", "patch"))
        old.write_bytes(base)
        new.write_bytes(target)
        pyxdelta.run(infile=str(old), outfile=str(new), patchfile=str(patch))
        return patch.stat().st_size
