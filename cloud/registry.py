"""Releases at the centre: layers by hash in a folder, signed manifests in the store, parts of layers on request."""

import logging
from collections.abc import Mapping
from pathlib import Path

import msgspec

from cloud.learning.export import default_backbone, set_default_backbone
from cloud.store import Store
from common.clock import Clock
from common.delta import make_delta
from common.errors import OperatorError, WireError
from common.files import write_atomically
from common.ids import is_layer_hash, layer_hash
from common.manifest import (
    DetectorLayer,
    Layer,
    Manifest,
    Scenario,
    Variant,
    decode_manifest,
    encode_manifest,
    release_id,
)
from common.messages import Desired, Fetch, LayerPart
from common.signing import Signer
from common.weights import find_weights

log = logging.getLogger(__name__)

LIFETIME_NS = 400 * 24 * 3600 * 10**9
PART_BYTES_MAX = 1024 * 1024
OFFSET_MAX = 2**40  # larger than any file of ours; beyond 2**63 a seek raises
BASES_MAX = 16  # of what a gateway names
DELTA_LAYER_BYTES_MAX = 1024 * 1024
SIZE_RATIO_MAX = 2  # layers further apart in size have nothing in common
WORTHWHILE = 0.9
MINIMUM_AGENT = "0.1.0"
DETECTORS = "detectors"  # a file in the folder of the layers: what the next release carries
DETECTORS_MAX = 8  # each runs on every look


def delta_of(base: bytes, target: bytes) -> bytes:
    """The exact delta between two ONNX files."""
    return make_delta(base, target, find_weights(base), find_weights(target))


class Registry:
    """All releases of the group, and their layers.

    Args:
        folder: layers, one file each, named by hash.
    """

    def __init__(self, folder: Path, store: Store, signer: Signer, clock: Clock) -> None:
        self._folder, self._store, self._signer, self._clock = folder, store, signer, clock
        folder.mkdir(parents=True, exist_ok=True)

    def backbone(self) -> tuple[Layer, Path]:
        """The backbone of the active release, or the default one before the first."""
        active = self.active()
        if active:
            return active.backbone, self.layer_path(active.backbone.hash)
        name, path = default_backbone(self._folder)
        return Layer(name, path.stat().st_size), path

    def set_backbone(self, data: bytes) -> Layer:
        """Make a layer the backbone of the first release.

        Raises:
            OperatorError: a release is active: its heads, datasets and samples stand on the backbone it has.
        """
        if self.active():
            raise OperatorError(
                "a release is active, and everything learnt so far stands on its backbone",
                "Set the backbone in a new data_dir, before the first release.",
            )
        layer = self.put(data)
        set_default_backbone(self._folder, layer.hash)
        return layer

    def detectors(self) -> tuple[DetectorLayer, ...]:
        """The detectors that the next release carries."""
        path = self._folder / DETECTORS
        return msgspec.json.decode(path.read_bytes(), type=tuple[DetectorLayer, ...]) if path.exists() else ()

    def set_detectors(self, detectors: tuple[DetectorLayer, ...], note: str) -> str:
        """Choose the detectors; with a release active, it is published again with them. Returns its id, or nothing.

        Raises:
            OperatorError: too many, or two of one name.
        """
        names = [detector.name for detector in detectors]
        if len(set(names)) < len(names) or len(names) > DETECTORS_MAX:
            raise OperatorError(
                f"{len(names)} detectors: {', '.join(names)}", f"At most {DETECTORS_MAX}, each with a name of its own."
            )
        write_atomically(self._folder / DETECTORS, msgspec.json.encode(detectors))
        active = self.active()
        if active is None or active.detectors == detectors:
            return ""
        gate = next(release.gate for release in self._store.releases() if release.status == "active")
        return self.publish(active.scenarios, active.backbone, gate, note, active.variants, active.golden)

    def layer_path(self, name: str) -> Path:
        return self._folder / name

    def put(self, data: bytes) -> Layer:
        """Keep a layer's bytes; the same bytes are kept once."""
        name = layer_hash(data)
        if not self.layer_path(name).exists():
            write_atomically(self.layer_path(name), data)
        return Layer(name, len(data))

    def active(self) -> Manifest | None:
        """The release that every gateway should run; None before the first."""
        for release in self._store.releases():
            if release.status == "active":
                return decode_manifest(release.manifest)
        return None

    def publish(
        self,
        scenarios: tuple[Scenario, ...],
        backbone: Layer,
        gate: Mapping[str, object],
        note: str,
        variants: tuple[Variant, ...] = (),
        golden: Layer | None = None,
    ) -> str:
        """Sign a release, make it the active one, and return its id; it carries the detectors that are chosen now.

        Args:
            variants: of the backbone, those on which these heads have passed the drift gate.
            golden: what its models answer to drawn inputs (`cloud.learning.golden`).
        """
        releases = self._store.releases()
        now_ns = self._clock.wall_ns()
        manifest = Manifest(
            sequence=1 + max((release.sequence for release in releases), default=0),
            created_at_ns=now_ns,
            expires_at_ns=now_ns + LIFETIME_NS,
            minimum_agent=MINIMUM_AGENT,
            backbone=backbone,
            scenarios=scenarios,
            note=note,
            detectors=self.detectors(),
            variants=variants,
            golden=golden,
        )
        data, name = encode_manifest(manifest), release_id(manifest)
        self._store.add_release(
            name, manifest.sequence, data, self._signer.sign(data), dict(gate), status="active", at_ns=now_ns
        )
        return name

    def roll_back(self, name: str, note: str) -> str:
        """Publish an earlier release's layers again, under a new sequence number.

        Raises:
            OperatorError: no such release.
        """
        earlier = next((release for release in self._store.releases() if release.release_id == name), None)
        if earlier is None:
            raise OperatorError(f"there is no release {name}", "`headframe cloud releases` lists them.")
        manifest = decode_manifest(earlier.manifest)
        write_atomically(self._folder / DETECTORS, msgspec.json.encode(manifest.detectors))
        gate = {**earlier.gate, "rolled_back_to": name}
        return self.publish(manifest.scenarios, manifest.backbone, gate, note, manifest.variants, manifest.golden)

    def desired(self) -> Desired | None:
        """What gateways are told to run."""
        for release in self._store.releases():
            if release.status == "active":
                return Desired(manifest=release.manifest, signature=release.signature)
        return None

    def part(self, fetch: Fetch) -> LayerPart:
        """Answer a gateway's request, by a delta where there is one; what is not held is said by `total_bytes` 0."""
        known = is_layer_hash(fetch.layer) and self.layer_path(fetch.layer).is_file()
        path, base = self.layer_path(fetch.layer), ""
        if not known or not 0 <= fetch.offset < OFFSET_MAX or fetch.length < 1:
            return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=0, data=b"")
        for held in fetch.bases[:BASES_MAX]:
            delta = self._delta(held, path)
            if delta is not None:
                path, base = delta, held
                break
        with path.open("rb") as file:
            file.seek(fetch.offset)
            data = file.read(min(fetch.length, PART_BYTES_MAX))
        total = path.stat().st_size
        return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=total, data=data, base=base)

    def _delta(self, base: str, target: Path) -> Path | None:
        """The delta from a layer, made when it is first asked for; None when it would save too little.

        Only small layers (heads) are made here, on the link's thread: milliseconds. Both ends' files must be ours.
        """
        origin = self.layer_path(base)
        if base == target.name or not is_layer_hash(base) or not origin.is_file():
            return None
        path = self._folder / "deltas" / f"{base}.{target.name}"
        if not path.is_file():
            before, after = origin.stat().st_size, target.stat().st_size
            if max(before, after) > DELTA_LAYER_BYTES_MAX or max(before, after) > SIZE_RATIO_MAX * min(before, after):
                return None
            try:
                delta = delta_of(origin.read_bytes(), target.read_bytes())
            except WireError as error:  # a layer of a kind that has no weights to read: it travels whole
                log.warning("no delta of layer %s: %s", target.name[:12], error)
                return None
            write_atomically(path, delta)
        return path if path.stat().st_size < WORTHWHILE * target.stat().st_size else None
