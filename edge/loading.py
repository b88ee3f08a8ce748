"""From a release's layers on disk to a model that has shown that it runs here.

Decides which variant of the backbone runs, and whether the release answers on this box as it should. Leaves what
follows from that to the installer.
"""

import logging
from dataclasses import dataclass

from common.backbone import Opener
from common.errors import EnvironmentFault, OperatorError
from common.files import disk_fault
from common.ids import layer_hash
from common.manifest import Layer, Manifest, Variant, release_id
from edge.download import LayerFolder
from edge.perception import Model, load_model
from edge.selftest import check_pace, read_golden, self_test
from edge.settings import InstallSettings
from edge.variants import VariantChoice, choose_variant

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A release in memory."""

    model: Model
    variant: VariantChoice
    """Which variant of the backbone, and why."""


class Loader:
    """Loads releases from a folder of layers.

    Args:
        opener: opens backbones and detectors on what this box runs best.
        precision: which variant of a backbone to run: `auto`, or one by name.
    """

    def __init__(
        self, layers: LayerFolder, site_id: str, settings: InstallSettings, opener: Opener, precision: str
    ) -> None:
        self._layers, self._site_id, self._settings = layers, site_id, settings
        self._opener, self._precision = opener, precision
        self._measured: tuple[tuple[Layer, tuple[Variant, ...]], VariantChoice] | None = None

    def load(self, manifest: Manifest, running: Model | None) -> Loaded:
        """Load a release; a backbone that `running` has is shared with it.

        Raises:
            OperatorError, WireError: see `load_model`.
        """
        choice = self._choose(manifest)
        return Loaded(self._load(manifest, choice, running), choice)

    def prove(self, manifest: Manifest, running: Model | None) -> Loaded:
        """Load a release whose layers have just come, and try it: hashes, golden inputs, pace.

        Raises:
            EnvironmentFault: a layer cannot be read, or has rotted (then it is removed).
            OperatorError: it does not load or run here, answers wrongly, or is too slow.
            WireError: its golden layer is none.
        """
        self._verify(manifest)
        expected = read_golden(self._layers.path(manifest.golden.hash)) if manifest.golden else None
        loaded = self.load(manifest, running)
        try:
            self_test(loaded.model, expected, self._site_id, self._settings.tolerance)
        except OperatorError as error:
            if not loaded.variant.hash:
                raise
            log.warning("the variant is not used: %s", error)
            choice = VariantChoice("", f"its variant fails the self-test: {error.message}")
            loaded = Loaded(self._load(manifest, choice, running), choice)
            self_test(loaded.model, expected, self._site_id, self._settings.tolerance)
            self._measured = (manifest.backbone, manifest.variants), choice
        if running:
            check_pace(loaded.model, running, self._settings.latency_ratio)
        return loaded

    def _verify(self, manifest: Manifest) -> None:
        """The bytes on disk, once more before anything opens them: they may be older than this start."""
        for layer in manifest.layers_for(self._site_id):
            path = self._layers.path(layer.hash)
            try:
                right = layer_hash(path.read_bytes()) == layer.hash
                if not right:
                    path.unlink()
            except OSError as error:
                raise disk_fault(path, error) from error
            if not right:
                raise EnvironmentFault(
                    f"{path} does not match its hash", "It is fetched again when the release is desired again."
                )

    def _choose(self, manifest: Manifest) -> VariantChoice:
        among = manifest.backbone, manifest.variants
        if self._measured is None or self._measured[0] != among:  # a head-only release has the same: measured once
            choice = choose_variant(manifest, self._layers.path, self._opener, self._precision)
            self._measured = among, choice
        return self._measured[1]

    def _load(self, manifest: Manifest, choice: VariantChoice, running: Model | None) -> Model:
        return load_model(
            release_id(manifest),
            manifest,
            self._layers.path,
            self._site_id,
            running.backbone if running else None,
            opener=self._opener,
            variant=choice.hash,
        )
