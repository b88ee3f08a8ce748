"""An int8 variant of a backbone, and whether it may stand for the float one. Part of building a release.

Static quantisation in QDQ form, unsigned activations and signed weights per channel: the form that was fast on common
processors, twice the speed of float. What int8 costs in accuracy differs from model to model, so nothing is taken on
trust: per release, every head is asked about the gold pictures on both embeddings, and a variant on which one of them
says something else too often is left out of the release. Heads are solved on float embeddings only: one family of
statistics, whatever the gateways run.
"""

import io
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import onnx
from numpy.typing import NDArray

from cloud.learning.gates import Comparison, compare_classes
from cloud.learning.heads import HeadWeights
from common import manifest as keys
from common.backbone import Backbone
from common.errors import OperatorError
from common.files import write_atomically
from common.manifest import SHARED

CALIBRATION_MIN: Final = 16
CALIBRATION_MAX: Final = 128
"""Pictures whose activations set the ranges; more changed nothing that was measured."""
TRIED: Final = 32
"""Pictures on which the embeddings are compared while quantising."""
EARLY_FLOAT: Final = (0, 3, 6, 10)
"""Leading convolutions left in float, tried in turn: few channels of wide range, which lose most and cost little."""
COSINE_MIN: Final = 0.99
"""Mean cosine to the float embeddings that is good enough; the last of `EARLY_FLOAT` is taken if none is."""
POOLING: Final = {"ReduceMean", "GlobalAveragePool", "Flatten"}
"""The embedding itself stays float."""
AGREEMENT_MIN: Final = 0.95
"""Share of gold pictures on which a head must name the same class on both. Solving a head from other nine tenths of the
same data changes more than this (docs/benchmarks.md, `quantise`)."""
CROSSING_MAX: Final = 0.05
"""Share of gold pictures whose attention may cross one half: the line that thresholds for events stand around."""
GOLD_MIN: Final = 20
"""Fewer pictures than this say nothing about drift, and a variant that cannot be judged does not go out."""
VARIANTS: Final = "variants"
"""Folder of the gold embeddings of variants, within that of the datasets."""


def quantise(float_layer: bytes, pictures: Sequence[NDArray[np.uint8]], backbone: Backbone) -> bytes:
    """The int8 layer of a backbone.

    Args:
        float_layer: the backbone's file.
        pictures: uint8 (H, W, 3) BGR, of what it will see; none of the gold set.
        backbone: the same, loaded: its preprocessing makes the tensors.

    Raises:
        OperatorError: no pictures to calibrate with.
    """
    if len(pictures) < CALIBRATION_MIN:
        raise OperatorError(
            f"{len(pictures)} pictures are too few to calibrate with", f"Give at least {CALIBRATION_MIN} labelled ones."
        )
    tensors = [backbone.tensor(picture) for picture in pictures[:CALIBRATION_MAX]]
    tried = pictures[:TRIED]
    wanted = embed_all(backbone, tried)
    metadata = {item.key: item.value for item in onnx.load_model_from_string(float_layer).metadata_props}
    metadata |= {keys.PRECISION: keys.INT8, keys.STANDS_FOR: backbone.hash}
    data = b""
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the quantiser advises what has been done
        folder = Path(name)
        prepared, made = folder / "prepared.onnx", folder / "int8.onnx"
        prepared.write_bytes(fold(float_layer))
        for early in EARLY_FLOAT:
            _quantise_file(prepared, made, tensors, early)
            data = _with_metadata(made, metadata)
            made.write_bytes(data)
            if mean_cosine(wanted, embed_all(Backbone.open(made), tried)) >= COSINE_MIN:
                break
    return data


def fold(float_layer: bytes) -> bytes:
    """A backbone's file as it is quantised: batch norms folded into the convolutions before them."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as name:
        source, prepared = Path(name) / "float.onnx", Path(name) / "prepared.onnx"
        source.write_bytes(float_layer)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        return prepared.read_bytes()


def _quantise_file(prepared: Path, made: Path, tensors: Sequence[NDArray[np.float32]], early: int) -> None:
    """Write the quantised model, its first `early` convolutions left in float."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # ONNX Runtime has no types
        """One picture at a time; None at the end."""

        def __init__(self) -> None:
            self._rest = iter(tensors)

        def get_next(self) -> dict[str, NDArray[np.float32]] | None:
            tensor = next(self._rest, None)
            return None if tensor is None else {keys.IMAGE: tensor}

    nodes = onnx.load(prepared).graph.node
    quantize_static(
        str(prepared),
        str(made),
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=sorted({node.op_type for node in nodes} - POOLING),
        nodes_to_exclude=[node.name for node in nodes if node.op_type == "Conv"][:early],
    )


def _with_metadata(path: Path, metadata: Mapping[str, str]) -> bytes:
    model = onnx.load(path)
    del model.metadata_props[:]
    for key, value in sorted(metadata.items()):
        model.metadata_props.add(key=key, value=value)
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def mean_cosine(a: NDArray[np.float32], b: NDArray[np.float32]) -> float:
    """Mean cosine of embeddings (n, d), row by row."""
    lengths = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    return float(((a * b).sum(axis=1) / np.maximum(lengths, 1e-12)).mean())


@dataclass(frozen=True, slots=True)
class GoldEmbeddings:
    """What a variant says of gold pictures: the other half of the comparison is in the datasets."""

    layer: str
    size_bytes: int
    precision: str
    backbone: str
    ids: tuple[bytes, ...]
    embeddings: NDArray[np.float32]

    def of(self, ids: Sequence[bytes]) -> tuple[NDArray[np.integer], NDArray[np.float32]]:
        """Rows of `ids` that are known, and their embeddings."""
        place = {name: row for row, name in enumerate(self.ids)}
        rows = [row for row, name in enumerate(ids) if name in place]
        return np.array(rows, dtype=np.int64), self.embeddings[[place[ids[row]] for row in rows]]


def write_gold(folder: Path, gold: GoldEmbeddings) -> None:
    """Keep them in the datasets' folder, one file a variant."""
    buffer = io.BytesIO()
    np.savez(
        buffer,
        header=np.array([gold.layer, str(gold.size_bytes), gold.precision, gold.backbone]),
        ids=np.frombuffer(b"".join(gold.ids), np.uint8).reshape(-1, 16),
        embeddings=gold.embeddings,
    )
    (folder / VARIANTS).mkdir(parents=True, exist_ok=True)
    write_atomically(folder / VARIANTS / f"{gold.layer}.npz", buffer.getvalue())


def read_gold(folder: Path, backbone: str) -> list[GoldEmbeddings]:
    """Those of the variants of a backbone."""
    found = []
    for path in sorted((folder / VARIANTS).glob("*.npz")):
        with np.load(path, allow_pickle=False) as arrays:
            layer, size, precision, stands_for = (str(item) for item in arrays["header"])
            if stands_for == backbone:
                ids = tuple(row.tobytes() for row in arrays["ids"])
                found.append(GoldEmbeddings(layer, int(size), precision, stands_for, ids, arrays["embeddings"]))
    return found


@dataclass(frozen=True, slots=True)
class Drift:
    """How a head differs between a backbone and its variant, on the gold pictures."""

    samples: int
    agreement: float
    crossing: float
    comparisons: tuple[Comparison, ...]

    @property
    def passed(self) -> bool:
        """Enough pictures, the same said of nearly all, and no class that loses."""
        enough = self.samples >= GOLD_MIN
        same = self.agreement >= AGREEMENT_MIN and self.crossing <= CROSSING_MAX
        return enough and same and all(item.passed for item in self.comparisons)

    def summary(self) -> dict[str, object]:
        """Plain values, for the record of a run."""
        return {
            "passed": self.passed,
            "samples": self.samples,
            "agreement": round(self.agreement, 4),
            "crossing": round(self.crossing, 4),
            "balanced_accuracy": [round(self.comparisons[0].running, 4), round(self.comparisons[0].candidate, 4)]
            if self.comparisons
            else [],
        }


def measure_drift(
    head: HeadWeights,
    normal: str,
    labels: Sequence[str],
    on_float: NDArray[np.floating],
    on_variant: NDArray[np.floating],
    tolerance: float,
) -> Drift:
    """Ask a head about the same pictures (n,) embedded by both.

    Args:
        normal: its class that needs no attention.
        tolerance: how far a class may drop, as for a candidate head.
    """
    if not len(labels):
        return Drift(0, 0.0, 1.0, ())
    before, after = head.predict(on_float), head.predict(on_variant)
    column = head.classes.index(normal) if normal in head.classes else 0
    above = [head.probabilities(rows)[:, column] < 0.5 for rows in (on_float, on_variant)]
    return Drift(
        len(labels),
        float(np.mean([a == b for a, b in zip(before, after, strict=True)])),
        float(np.mean(above[0] != above[1])),
        compare_classes("gold", labels, before, after, tolerance),
    )


def judge_variant(
    gold: GoldEmbeddings,
    heads: Mapping[str, HeadWeights],
    normal: str,
    ids: Sequence[bytes],
    labels: Sequence[str],
    on_float: NDArray[np.floating],
    tolerance: float,
) -> dict[str, Drift]:
    """The drift of each head of a scenario, `*` the shared one.

    A personal head need not be good on the gold pictures of other sites, but it must say the same on both.
    """
    rows, embeddings = gold.of(ids)
    known = [labels[row] for row in rows]
    return {
        key: measure_drift(head, normal, known, on_float[rows], embeddings, tolerance if key == SHARED else 1.0)
        for key, head in heads.items()
    }


Progress = Callable[[int], None]


def embed_all(
    backbone: Backbone, pictures: Sequence[NDArray[np.uint8]], progress: Progress = lambda _: None
) -> NDArray[np.float32]:
    """Embeddings float32 (n, d) of pictures."""
    found = np.zeros((len(pictures), backbone.dimension), np.float32)
    for row, picture in enumerate(pictures):
        found[row] = backbone.embed(picture)
        progress(row + 1)
    return found
