"""Releases on the gateway: verify, fetch what is missing, load beside the running model, hand over, remember.

Decides which release runs here. Leaves the swap itself to the agent (between two frames) and the moving of bytes to
the link. A power cut at any instant leaves the old or the new release: files are written whole or not at all, and
`current` is replaced last.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from common import AGENT_VERSION
from common.backbone import Opener, open_session
from common.clock import Clock
from common.delta import apply_delta
from common.errors import EnvironmentFault, HeadframeError, OperatorError, PeerError, TrustError, WireError
from common.files import disk_fault, write_atomically
from common.ids import layer_hash
from common.manifest import Layer, Manifest, Variant, decode_manifest, release_id
from common.messages import Desired, Fetch, LayerPart
from common.signing import verify
from edge.perception import Backbone, Model, load_model
from edge.variants import VariantChoice, choose_variant

log = logging.getLogger(__name__)

LAYERS = "layers"
"""Folder of the layers within the installer's own."""

PART_BYTES = 256 * 1024
BASES_MAX = 16  # layers named as bases for a delta: those of the running and of the previous release
STALL_S = 5.0
LAYER_BYTES_MAX = 2 * 1024**3
BUILT_AT_NS = 1_767_225_600 * 10**9  # 2026-01-01: no clock of a working box is earlier


class Slot(msgspec.Struct, frozen=True):
    """What `current` and `previous` hold on disk."""

    manifest: bytes
    signature: bytes
    seen_at_ns: int
    """Latest trustworthy time: a clock that falls back behind it is not believed."""


@dataclass
class _Download:
    desired: Desired
    manifest: Manifest
    missing: list[Layer]
    base: str = ""
    """What the layer under way is a delta of; empty while its whole file is fetched."""
    whole: set[str] = field(default_factory=set)
    """Layers whose delta did not work out here."""
    offset: int = 0
    asked_at_s: float = float("-inf")


class Installer:
    """Brings the gateway from the release it runs to the one the centre wants.

    Args:
        folder: holds `layers/<hash>`, `current` and `previous`.
        release_key: public key (hex) that manifests must be signed with.
        request: publishes a Fetch; False when the link is down (asked again later).
        hand_over: called with the loaded model; the agent swaps it in between two frames.
        opener: opens backbones and detectors on what this box runs best.
        precision: which variant of a backbone to run: `auto`, or one by name.
    """

    def __init__(
        self,
        folder: Path,
        release_key: str,
        site_id: str,
        clock: Clock,
        request: Callable[[Fetch], bool],
        hand_over: Callable[[Model], None],
        opener: Opener = open_session,
        precision: str = "auto",
    ) -> None:
        self._opener, self._precision = opener, precision
        self.variant = VariantChoice("", "no release yet")
        """Which variant of the backbone runs, and why."""
        self._variant_of: tuple[Layer, tuple[Variant, ...]] | None = None
        self._folder, self._key, self._site_id, self._clock = folder, release_key, site_id, clock
        self._request, self._hand_over = request, hand_over
        self._lock = threading.Lock()
        self._download: _Download | None = None
        self._running: Manifest | None = None
        self._backbone: Backbone | None = None
        self.outcome = ""
        """The last install in words, reported to the centre."""
        self.bytes_down = 0
        (folder / LAYERS).mkdir(parents=True, exist_ok=True)

    def layer_path(self, name: str) -> Path:
        """Where a layer of this hash is, or will be."""
        return self._folder / LAYERS / name

    def boot(self) -> Model | None:
        """Load the release that ran last, or the one before it when that one no longer loads; None on a new box."""
        for name in ("current", "previous"):
            path = self._folder / name
            if not path.exists():
                continue
            try:
                slot = msgspec.msgpack.decode(path.read_bytes(), type=Slot)
                verify(slot.manifest, slot.signature, self._key)
                model = self._load(decode_manifest(slot.manifest))
            except (HeadframeError, msgspec.DecodeError, OSError) as error:
                self.outcome = f"could not start from {path}: {error}"
                log.error("%s", self.outcome)
                continue
            self._running = model.manifest
            return model
        return None

    def on_desired(self, desired: Desired) -> None:
        """Take a signed manifest. A wrong one is refused with its reason; what runs goes on."""
        with self._lock:
            try:
                manifest = self._check(desired)
            except HeadframeError as error:
                self._refuse("a manifest", error)
                return
            if manifest is None or (self._download and self._download.manifest == manifest):
                return
            missing = [layer for layer in manifest.layers_for(self._site_id) if not self._holds(layer)]
            self._download = _Download(desired, manifest, missing)
            self._resume_part()
        self.step()

    def on_layer(self, part: LayerPart) -> None:
        """Take a part of the layer that is being fetched; anything else is ignored (late or duplicate)."""
        with self._lock:
            download = self._download
            if download is None or not download.missing or part.layer != download.missing[0].hash:
                return
            if part.offset != download.offset:
                return
            try:
                if part.offset and part.base != download.base:
                    self._begin_again(download)  # the centre no longer has the delta that was under way
                else:
                    download.base = part.base
                    self._append(download, part)
            except HeadframeError as error:
                self._refuse(release_id(download.manifest), error)
                return
        self.step()

    def step(self) -> None:
        """Ask for the next part when nothing is under way, install when all is there. Called at least each second."""
        with self._lock:
            download = self._download
            if download is None:
                return
            if not download.missing:
                self._install(download)
                return
            now_s = self._clock.monotonic_s()
            if now_s - download.asked_at_s < STALL_S:
                return
            layer = download.missing[0]
            fetch = Fetch(layer=layer.hash, offset=download.offset, length=PART_BYTES, bases=self._bases(download))
            if self._request(fetch):
                download.asked_at_s = now_s

    def _check(self, desired: Desired) -> Manifest | None:
        """The manifest if it is to be installed, None if it runs already."""
        verify(desired.manifest, desired.signature, self._key)
        manifest = decode_manifest(desired.manifest)
        if self._running == manifest:
            return None
        slot = self._slot("current")
        now_ns = max(self._clock.wall_ns(), BUILT_AT_NS, slot.seen_at_ns if slot else 0)
        if manifest.expires_at_ns < now_ns:
            raise TrustError(f"release {release_id(manifest)} has expired", "Publish it again at the centre.")
        if self._running and manifest.sequence <= self._running.sequence:
            raise TrustError(
                f"release {release_id(manifest)} is older than the running {release_id(self._running)}",
                "A roll-back is published as a new release with the old layers.",
            )
        if _version(manifest.minimum_agent) > _version(AGENT_VERSION):
            raise OperatorError(
                f"release {release_id(manifest)} needs agent {manifest.minimum_agent}, this is {AGENT_VERSION}",
                "Update the agent on this gateway.",
            )
        oversize = [layer for layer in manifest.layers_for(self._site_id) if layer.size_bytes > LAYER_BYTES_MAX]
        if oversize:
            raise WireError(f"layer {oversize[0].hash[:12]} of {oversize[0].size_bytes} bytes is over the bound")
        return manifest

    def _holds(self, layer: Layer) -> bool:
        path = self.layer_path(layer.hash)
        return path.is_file() and path.stat().st_size == layer.size_bytes

    def _bases(self, download: _Download) -> tuple[str, ...]:
        """Layers to start from: the one that the delta under way needs, at its beginning any that is here."""
        if download.offset:
            return (download.base,) if download.base else ()
        if download.missing[0].hash in download.whole:
            return ()
        return self._held()[:BASES_MAX]

    def _held(self) -> tuple[str, ...]:
        return tuple(sorted(path.name for path in (self._folder / "layers").iterdir() if not path.suffix))

    def _part_path(self, layer: Layer, base: str) -> Path:
        return self.layer_path(f"{layer.hash}.{base}.part" if base else f"{layer.hash}.part")

    def _resume_part(self) -> None:
        """Go on behind the bytes that an earlier attempt left, of a delta or of the whole file."""
        download = self._download
        if download and download.missing:
            layer = download.missing[0]
            download.base, download.offset, download.asked_at_s = "", 0, float("-inf")
            for part in sorted((self._folder / "layers").glob(f"{layer.hash}*.part")):
                base = part.name.removeprefix(layer.hash).removesuffix(".part").strip(".")
                usable = not base or (self.layer_path(base).is_file() and layer.hash not in download.whole)
                if usable and part.stat().st_size > download.offset:
                    download.base, download.offset = base, part.stat().st_size

    def _append(self, download: _Download, part: LayerPart) -> None:
        layer = download.missing[0]
        if part.total_bytes == 0:
            raise WireError(f"the centre does not hold layer {layer.hash[:12]}")
        if part.base and part.base not in self._held():
            raise WireError(f"layer {layer.hash[:12]} came as a delta of {part.base[:12]!r}, which is not here")
        fits = 0 < part.total_bytes <= layer.size_bytes if part.base else part.total_bytes == layer.size_bytes
        if not fits or part.offset + len(part.data) > part.total_bytes or not part.data:
            raise WireError(f"layer {layer.hash[:12]} came with another size than the manifest declares")
        path = self._part_path(layer, part.base)
        try:
            with path.open("ab") as file:
                file.write(part.data)
        except OSError as error:
            raise disk_fault(path, error) from error
        download.offset += len(part.data)
        self.bytes_down += len(part.data)
        download.asked_at_s = float("-inf")
        if download.offset < part.total_bytes:
            return
        try:
            data = self._complete(path, layer, part.base)
        except WireError as error:
            if not part.base:
                raise
            log.warning("the delta of layer %s does not work here (%s); fetching the file", layer.hash[:12], error)
            self._begin_again(download)
            return
        write_atomically(self.layer_path(layer.hash), data)
        download.missing.pop(0)
        self._resume_part()

    def _begin_again(self, download: _Download) -> None:
        """Fetch the whole file of the layer under way instead of its delta."""
        layer = download.missing[0]
        self._part_path(layer, download.base).unlink(missing_ok=True)
        download.whole.add(layer.hash)
        self._resume_part()

    def _complete(self, path: Path, layer: Layer, base: str) -> bytes:
        """The layer's bytes of what was fetched into `path`, checked against the hash that was signed."""
        data = path.read_bytes()
        path.unlink()
        if base:
            data = apply_delta(self.layer_path(base).read_bytes(), data, layer.size_bytes)
        if layer_hash(data) != layer.hash:
            raise WireError(f"layer {layer.hash[:12]} does not match its hash")
        return data

    def _load(self, manifest: Manifest) -> Model:
        among = manifest.backbone, manifest.variants
        if self._variant_of != among:  # a head-only release has the same: it is measured once
            self.variant = choose_variant(manifest, self.layer_path, self._opener, self._precision)
            self._variant_of = among
        model = load_model(
            release_id(manifest),
            manifest,
            self.layer_path,
            self._site_id,
            self._backbone,
            opener=self._opener,
            variant=self.variant.hash,
        )
        self._backbone = model.backbone
        return model

    def _install(self, download: _Download) -> None:
        """Load, hand over, remember. Nothing changes when it does not load."""
        name = release_id(download.manifest)
        try:
            model = self._load(download.manifest)
            self._remember(download)
        except (PeerError, OperatorError, EnvironmentFault) as error:
            self._refuse(name, error)
            return
        self._download, self._running = None, download.manifest
        self.outcome = f"installed {name}"
        log.info("installed release %s", name)
        self._hand_over(model)

    def _remember(self, download: _Download) -> None:
        slot = self._slot("current")
        if slot:
            write_atomically(self._folder / "previous", msgspec.msgpack.encode(slot))
        seen_at_ns = max(self._clock.wall_ns(), BUILT_AT_NS, slot.seen_at_ns if slot else 0)
        write_atomically(
            self._folder / "current",
            msgspec.msgpack.encode(Slot(download.desired.manifest, download.desired.signature, seen_at_ns)),
        )
        self._sweep(download.manifest, slot)

    def _sweep(self, manifest: Manifest, previous: Slot | None) -> None:
        """Remove layers that neither the new nor the previous release needs."""
        wanted = {layer.hash for layer in manifest.layers_for(self._site_id)}
        if previous:
            wanted |= {layer.hash for layer in decode_manifest(previous.manifest).layers_for(self._site_id)}
        for path in (self._folder / LAYERS).iterdir():
            if path.name not in wanted:
                path.unlink(missing_ok=True)

    def _slot(self, name: str) -> Slot | None:
        path = self._folder / name
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=Slot)
        except (OSError, msgspec.DecodeError):
            return None

    def _refuse(self, what: str, error: HeadframeError) -> None:
        self._download = None
        self.outcome = f"refused {what}: {error}"
        log.error("%s", self.outcome)


def _version(text: str) -> tuple[int, ...]:
    """`1.2.10` as a tuple; a part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))
