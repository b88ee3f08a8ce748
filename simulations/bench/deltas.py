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

from cloud.finetuning.graph import Depth
from cloud.finetuning.tuning import Recipe
from cloud.learning.datasets import Item, read_folder
from cloud.learning.export import export_default_backbone, export_head
from cloud.learning.heads import HeadWeights, calibrate, lift, principal_basis, solve_lda
from common.delta import apply_delta, make_delta
from common.ids import layer_hash
from common.statistics import Statistics
from common.weights import find_weights
from simulations.bench._tuning import embed, snap_tuned, tune
from simulations.bench._variants import Variants
from simulations.data import find_data

KINDS = {"adapter": Depth.ADAPTER, "last_block": Depth.BLOCK, "full": Depth.FULL}
EPOCHS, QUICK_EPOCHS = 12, 1
TRAIN_PX = 128  # a quarter of the work; what is measured here is bytes, and how near snapped is to unsnapped
CALIBRATION, QUICK_CALIBRATION = 260, 120
UNSEEN, QUICK_UNSEEN = 562, 140
RANGES, QUICK_RANGES = 128, 16
"""Pictures that set the ranges of int8 variants."""
JUDGED, QUICK_JUDGED = 200, 60
"""… and those that they are judged on."""
QUICK_BATCH = 8
QUICK_INT8 = "full"
"""The kind of which the quick form makes the int8 variant."""
SHRINKAGE = 0.1
DIMENSIONS = 512


def bench_deltas(*, quick: bool) -> dict[str, Any]:
    """Make the releases, their deltas and the comparators' deltas."""
    began_s = time.monotonic()
    data = find_data("belt-defects")
    train, held = _hold_out(_pictures(data, "train"))
    solving = train[:: 4 if quick else 1]
    known = {item.label for item in solving}  # a few rare classes are not in every fourth picture
    calibration = [item for item in held if item.label in known][: QUICK_CALIBRATION if quick else CALIBRATION]
    unseen = _pictures(data, "test")[: QUICK_UNSEEN if quick else UNSEEN]
    base = export_default_backbone()
    sizes: dict[str, float] = {}
    agreements: dict[str, float] = {}
    fractions: dict[str, float] = {}
    table: dict[str, dict[str, float]] = {}
    int8: dict[str, dict[str, float]] = {}
    exact = True
    old_head = _solve(base, solving[: len(solving) // 2])
    new_head = _solve(base, solving)
    before, after = (export_head(head, "belt-defect", layer_hash(base)) for head in (old_head, new_head))
    head_delta = make_delta(before, after, find_weights(before), find_weights(after))
    exact &= apply_delta(before, head_delta, len(after)) == after
    sizes["head"] = len(head_delta) / len(base)
    table["head"] = {"headframe": sizes["head"]} | _comparators(before, after, len(base), quick=quick)
    variants = Variants(
        base, train[: QUICK_RANGES if quick else RANGES], calibration[: QUICK_JUDGED if quick else JUDGED]
    )
    for kind, depth in KINDS.items():
        recipe = Recipe(depth, epochs=EPOCHS, input_px=TRAIN_PX)
        if quick:
            recipe = replace(recipe, epochs=QUICK_EPOCHS, batch=QUICK_BATCH)
        target = tune(base, train, recipe).data
        head = calibrate(_solve(target, solving), embed(target, calibration), [item.label for item in calibration])
        snapped = snap_tuned(base, target, head, calibration, train)
        delta = snapped.delta(base)
        exact &= apply_delta(base, delta, len(snapped.data)) == snapped.data
        sizes[kind] = len(delta) / len(base)
        fractions[kind] = snapped.fraction
        said = head.predict(embed(snapped.data, unseen))
        agreements[kind] = _agreement(head.predict(embed(target, unseen)), said)
        lossless = make_delta(base, target, find_weights(base), find_weights(target))
        exact &= apply_delta(base, lossless, len(target)) == target
        table[kind] = {"headframe": sizes[kind], "headframe, lossless": len(lossless) / len(base)}
        table[kind] |= _comparators(base, target, len(base), quick=quick)
        if quick and kind != QUICK_INT8:
            continue
        made = variants.succeed(snapped.data, head)
        exact &= made.bit_exact
        sizes[f"int8_{kind}"] = len(made.delta) / len(base)
        int8[kind] = {
            "share_of_int8_file": len(made.delta) / len(made.data),
            "code_step": made.step,
            "agreement": _agreement(said, head.predict(embed(made.data, unseen))),
            "agreement_from_scratch": _agreement(said, head.predict(embed(made.fresh, unseen))),
        }
        table[f"{kind}, int8"] = {
            "headframe": sizes[f"int8_{kind}"],
            "headframe, from scratch": len(made.fresh_delta) / len(base),
        } | _comparators(variants.published, made.fresh, len(base), quick=quick)
    return {
        **sizes,
        "agreement": min(agreements.values()),
        "agreement_by_kind": agreements,
        "bit_exact": exact,
        "step_fraction": fractions,
        "int8": int8,
        "table": {kind: {name: round(share, 5) for name, share in row.items()} for kind, row in table.items()},
        "model_bytes": len(base),
        "int8_model_bytes": len(variants.published),
        "pictures_unseen": len(unseen),
        "seconds": round(time.monotonic() - began_s, 1),
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
    classes = sorted({item.label for item in items}, key=lambda label: (label != "normal", label))
    statistics = Statistics.of(classes, embed(model, items), [item.label for item in items])
    basis = principal_basis(statistics, DIMENSIONS)
    return lift(solve_lda(statistics.project(basis), SHRINKAGE), basis)


def _agreement(one: list[str], other: list[str]) -> float:
    return float(np.mean([a == b for a, b in zip(one, other, strict=True)]))


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
