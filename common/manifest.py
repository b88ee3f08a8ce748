"""The release manifest: which layers a release is made of. Its bytes are what is signed.

Layers are named by the hash of their bytes (`common.ids.layer_hash`). A layer is an ONNX file that carries, as ONNX
metadata properties, the keys below; so a file says by itself what it is and on which backbone a head stands.
"""

from collections.abc import Iterator
from typing import Final

import msgspec

from common.errors import WireError
from common.ids import is_layer_hash

# Keys of the ONNX metadata properties.
KIND: Final = "headframe.kind"  # "backbone", "head" or "detector"
BACKBONE: Final = "headframe.backbone"  # on a head: layer hash of the backbone it stands on
SCENARIO: Final = "headframe.scenario"  # on a head
CLASSES: Final = "headframe.classes"  # on a head or detector: JSON list; the order of the probabilities or scores
PRECISION: Final = "headframe.precision"  # on a variant of a backbone: "int8"; without it "float"
STANDS_FOR: Final = "headframe.stands_for"  # on a variant of a backbone: layer hash of the float one
FORM: Final = "headframe.form"  # on a head: how it was solved, where a gateway may answer many of the form at once
INPUT_PX: Final = "headframe.input_px"  # on a backbone or detector: side of the square input
PIXEL_MEAN: Final = "headframe.pixel_mean"  # on a backbone: (pixel - mean) / scale, RGB, 0..255
PIXEL_SCALE: Final = "headframe.pixel_scale"
DECODER: Final = "headframe.decoder"  # on a detector: what its outputs mean, one of DECODERS
LETTERBOX: Final = "headframe.letterbox"  # on a detector: how a picture is put into the square, one of LETTERBOXES
CHANNELS: Final = "headframe.channels"  # on a detector: order of the colours, "rgb" or "bgr"
SCORE_MIN: Final = "headframe.score_min"  # on a detector: what counts as found
OVERLAP_MAX: Final = "headframe.overlap_max"  # on a detector: of two boxes of a class that overlap more, one goes

DECODERS: Final = {"yolox": "corner", "yolov8": "centre", "ssd": "stretch"}
"""Each with the letterbox that its family is trained with; what they mean is in `edge.decoders`."""
LETTERBOXES: Final = ("corner", "centre", "stretch")

# Tensor names: backbone `image` float32 (n, 3, px, px) RGB -> `embedding` float32 (n, d), and perhaps
# `patches` float32 (n, d, h, w), the feature map whose mean that is;
# head `embedding` float32 (n, d) -> `probabilities` float32 (n, classes), `novelty` float32 (n,);
# detector `image` float32 (1, 3, px, px), pixels 0..255 -> `detections`, or `boxes` and `scores`, by its decoder.
IMAGE: Final = "image"
EMBEDDING: Final = "embedding"
PATCHES: Final = "patches"
PROBABILITIES: Final = "probabilities"
NOVELTY: Final = "novelty"
DETECTIONS: Final = "detections"
BOXES: Final = "boxes"
SCORES: Final = "scores"

ANALYTIC: Final = "analytic-1"
"""Form of the heads of `cloud.learning.export`: the float32 weights `directions` (d, c), `offsets`, `constants` (c,),
`quadratic` (c, c) and `temperature` say all that the graph computes (`cloud.learning.heads`)."""
RIDGE: Final = "ridge-1"
"""The same weights, and another reading of them. A gateway that does not know it runs the graph."""

FLOAT: Final = "float"
INT8: Final = "int8"

SHARED: Final = "*"
"""Key of the head that every site without a head of its own runs."""


class Layer(msgspec.Struct, frozen=True):
    """A content-addressed file."""

    hash: str
    size_bytes: int


class Scenario(msgspec.Struct, frozen=True):
    """One thing to watch for, and its heads: one shared, and personal ones for sites that do better with their own."""

    name: str
    classes: tuple[str, ...]
    normal: str
    """The class that needs no attention."""
    heads: dict[str, Layer]

    def head_for(self, site_id: str) -> Layer:
        """The site's personal head, else the shared one."""
        return self.heads.get(site_id) or self.heads[SHARED]


class Variant(msgspec.Struct, frozen=True):
    """The backbone once more in another precision, for hardware that runs it faster.

    Heads, samples and statistics name the float backbone; a variant is in a release only while the centre's gate finds
    that the release's heads say the same on it (`cloud.learning.quantise`).
    """

    layer: Layer
    precision: str


class DetectorLayer(msgspec.Struct, frozen=True):
    """A model of the group's own that finds boxes, run beside the backbone."""

    name: str
    layer: Layer
    scenario: str = ""
    """Whose head it is compared with: where the two disagree, the frame is worth a label. Empty: none."""
    alarms: tuple[str, ...] = ()
    """Labels that raise an event; empty: all of them."""

    def raises(self, label: str) -> bool:
        """Whether finding this is an event."""
        return not self.alarms or label in self.alarms


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """An immutable, signed set of layers for some scenarios."""

    sequence: int
    """Grows with every release of the group; an edge refuses one that is lower than what it has seen."""
    created_at_ns: int
    expires_at_ns: int
    minimum_agent: str
    backbone: Layer
    scenarios: tuple[Scenario, ...]
    note: str = ""
    detectors: tuple[DetectorLayer, ...] = ()
    variants: tuple[Variant, ...] = ()
    golden: Layer | None = None
    """Inputs and what the models answer to them (`common.golden`), for a gateway to try before it installs."""

    def layers(self) -> Iterator[Layer]:
        """Every layer of every site."""
        yield self.backbone
        for scenario in self.scenarios:
            yield from scenario.heads.values()
        yield from (variant.layer for variant in self.variants)
        yield from (detector.layer for detector in self.detectors)
        if self.golden:
            yield self.golden

    def layers_for(self, site_id: str) -> tuple[Layer, ...]:
        """Everything a gateway of this site needs, backbone first."""
        heads = (scenario.head_for(site_id) for scenario in self.scenarios)
        variants, detectors = (v.layer for v in self.variants), (d.layer for d in self.detectors)
        return (self.backbone, *heads, *variants, *detectors, *([self.golden] if self.golden else []))


ADDED_LATER: Final = ("detectors", "variants", "golden")
"""Fields that are left out of the bytes when empty: a manifest without them keeps the bytes, and so the release id,
that it had before they existed."""


def encode_manifest(manifest: Manifest) -> bytes:
    """The canonical bytes: MessagePack with fields in order and heads sorted by site."""
    scenarios = tuple(
        msgspec.structs.replace(scenario, heads=dict(sorted(scenario.heads.items()))) for scenario in manifest.scenarios
    )
    fields = msgspec.structs.asdict(msgspec.structs.replace(manifest, scenarios=scenarios))
    return msgspec.msgpack.encode({key: value for key, value in fields.items() if value or key not in ADDED_LATER})


def decode_manifest(data: bytes) -> Manifest:
    """Read a manifest.

    Raises:
        WireError: not a manifest, a scenario without a shared head, or a layer that has no hash for its name.
    """
    try:
        manifest = msgspec.msgpack.decode(data, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise WireError(f"not a release manifest: {error}") from error
    for scenario in manifest.scenarios:
        if SHARED not in scenario.heads:
            raise WireError(f"scenario {scenario.name!r} of the manifest has no shared head")
    for layer in manifest.layers():
        if not is_layer_hash(layer.hash) or layer.size_bytes < 1:
            raise WireError(f"the manifest names a layer {layer.hash[:64]!r} of {layer.size_bytes} bytes")
    return manifest


def release_id(manifest: Manifest) -> str:
    """Readable and content-addressed: `r<sequence>-<first 8 hex digits of the manifest's hash>`."""
    from common.ids import layer_hash

    return f"r{manifest.sequence}-{layer_hash(encode_manifest(manifest))[:8]}"
