"""Releases on the gateway: verify, fetch what is missing, load beside the running model, hand over, remember.

Decides which release runs here. Leaves who may sign to `edge.trust`, the layers' bytes to `edge.download`, the swap
itself to the agent (between two frames) and the moving of bytes to the link. A power cut at any instant leaves the old
or the new release: files are written whole or not at all, and `current` is replaced last.
"""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from common import AGENT_VERSION
from common.backbone import Opener, open_session
from common.clock import Clock
from common.errors import EnvironmentFault, HeadframeError, OperatorError, PeerError, TrustError, WireError
from common.files import write_atomically
from common.manifest import Layer, Manifest, Variant, release_id
from common.messages import Desired, LayerPart
from edge.download import Download, LayerFolder, Request
from edge.perception import Backbone, Model, load_model
from edge.trust import Trust
from edge.variants import VariantChoice, choose_variant

log = logging.getLogger(__name__)

LAYERS: Final = "layers"
"""Folder of the layers within the installer's own."""

LAYER_BYTES_MAX: Final = 2 * 1024**3
BUILT_AT_NS: Final = 1_767_225_600 * 10**9  # 2026-01-01: no clock of a working box is earlier


class Slot(msgspec.Struct, frozen=True):
    """What `current` and `previous` hold on disk."""

    manifest: bytes
    signature: bytes
    seen_at_ns: int
    """Latest trustworthy time: a clock that falls back behind it is not believed."""


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The release that is being brought here."""

    desired: Desired
    manifest: Manifest
    download: Download


class Installer:
    """Brings the gateway from the release it runs to the one the centre wants.

    Args:
        folder: holds `layers/<hash>`, `current` and `previous`.
        trust: says which manifests may be installed.
        request: publishes a Fetch; False when the link is down (asked again later).
        hand_over: called with the loaded model; the agent swaps it in between two frames.
        opener: opens backbones and detectors on what this box runs best.
        precision: which variant of a backbone to run: `auto`, or one by name.
    """

    def __init__(
        self,
        folder: Path,
        trust: Trust,
        site_id: str,
        clock: Clock,
        request: Request,
        hand_over: Callable[[Model], None],
        opener: Opener = open_session,
        precision: str = "auto",
    ) -> None:
        self._opener, self._precision = opener, precision
        self.variant = VariantChoice("", "no release yet")
        """Which variant of the backbone runs, and why."""
        self._variant_of: tuple[Layer, tuple[Variant, ...]] | None = None
        self._folder, self._trust, self._site_id, self._clock = folder, trust, site_id, clock
        self._request, self._hand_over = request, hand_over
        self._lock = threading.Lock()
        self._wanted: _Wanted | None = None
        self._running: Manifest | None = None
        self._backbone: Backbone | None = None
        self.outcome = ""
        """The last install in words, reported to the centre."""
        self.bytes_down = 0
        self._layers = LayerFolder(folder / LAYERS)

    def layer_path(self, name: str) -> Path:
        """Where a layer of this hash is, or will be."""
        return self._layers.path(name)

    def boot(self) -> Model | None:
        """Load the release that ran last, or the one before it when that one no longer loads; None on a new box."""
        for name in ("current", "previous"):
            path = self._folder / name
            if not path.exists():
                continue
            try:
                slot = msgspec.msgpack.decode(path.read_bytes(), type=Slot)
                model = self._load(self._recall(slot))
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
            if manifest is None or (self._wanted and self._wanted.manifest == manifest):
                return
            layers = manifest.layers_for(self._site_id)
            self._wanted = _Wanted(desired, manifest, Download(layers, self._layers, self._clock, self._request))
        self.step()

    def on_layer(self, part: LayerPart) -> None:
        """Take a part of the layer that is being fetched; anything else is ignored (late or duplicate)."""
        with self._lock:
            wanted = self._wanted
            if wanted is None:
                return
            try:
                self.bytes_down += wanted.download.take(part)
            except HeadframeError as error:
                self._refuse(release_id(wanted.manifest), error)
                return
        self.step()

    def step(self) -> None:
        """Ask for the next part when nothing is under way, install when all is there. Called at least each second."""
        with self._lock:
            wanted = self._wanted
            if wanted is None:
                return
            if wanted.download.done:
                self._install(wanted)
            else:
                wanted.download.step()

    def _check(self, desired: Desired) -> Manifest | None:
        """The manifest if it is to be installed, None if it runs already."""
        slot = self._slot("current")
        if slot and self._running and slot.manifest == desired.manifest:
            self._trust.recall(desired)
            return None
        manifest = self._trust.check(desired, self._believed_ns(slot))
        if self._running == manifest:
            return None
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

    def _believed_ns(self, slot: Slot | None) -> int:
        """The latest time there is reason to believe."""
        return max(self._clock.wall_ns(), BUILT_AT_NS, slot.seen_at_ns if slot else 0)

    def _recall(self, slot: Slot) -> Manifest:
        return self._trust.recall(Desired(manifest=slot.manifest, signature=slot.signature))

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

    def _install(self, wanted: _Wanted) -> None:
        """Load, hand over, remember. Nothing changes when it does not load."""
        name = release_id(wanted.manifest)
        try:
            model = self._load(wanted.manifest)
            self._remember(wanted)
        except (PeerError, OperatorError, EnvironmentFault) as error:
            self._refuse(name, error)
            return
        self._wanted, self._running = None, wanted.manifest
        self.outcome = f"installed {name}"
        log.info("installed release %s", name)
        self._hand_over(model)

    def _remember(self, wanted: _Wanted) -> None:
        slot = self._slot("current")
        if slot:
            write_atomically(self._folder / "previous", msgspec.msgpack.encode(slot))
        desired = wanted.desired
        new = Slot(desired.manifest, desired.signature, self._believed_ns(slot))
        write_atomically(self._folder / "current", msgspec.msgpack.encode(new))
        kept = [wanted.manifest, *([self._recall(slot)] if slot else [])]
        self._layers.sweep(layer.hash for manifest in kept for layer in manifest.layers_for(self._site_id))

    def _slot(self, name: str) -> Slot | None:
        path = self._folder / name
        try:
            return msgspec.msgpack.decode(path.read_bytes(), type=Slot)
        except (OSError, msgspec.DecodeError):
            return None

    def _refuse(self, what: str, error: HeadframeError) -> None:
        self._wanted = None
        self.outcome = f"refused {what}: {error}"
        log.error("%s", self.outcome)


def _version(text: str) -> tuple[int, ...]:
    """`1.2.10` as a tuple; a part that is no number counts as 0."""
    return tuple(int(part) if part.isdigit() else 0 for part in text.split("."))
