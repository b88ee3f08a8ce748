"""Virtual gateways that a release can be rolled out to: the wire of real ones, with layers of a release in memory.

Each takes `Desired`, fetches the layers that it lacks in parts (by delta where the centre has one), reports, and counts
frames under what it runs. Every so-manieth checks the TUF metadata and its assignment with the product's own code; all
doing that would be a bench of one process's python-tuf, which 12,000 boxes have each for themselves.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from common import AGENT_VERSION, codec, topics
from common.delta import apply_delta
from common.errors import HeadframeError
from common.ids import layer_hash
from common.manifest import Layer, Manifest, decode_manifest, release_id
from common.messages import CameraState, Desired, Fetch, LayerPart, ReleaseHealth, State
from common.metadata import TrustedMetadata
from simulations.lightclient import LightClient

PART_BYTES: Final = 256 * 1024  # as edge.download asks for
FRAMES_A_REPORT: Final = 100
FLAGGED_A_REPORT: Final = 5
SCORE: Final = 0.9
LATENCY_MS: Final = 20.0


@dataclass
class Shared:
    """What all gateways of the process know, each thing once."""

    layers: dict[str, bytes]
    """By hash: whole files that some gateway has made."""
    manifests: dict[bytes, Manifest] = field(default_factory=dict)
    made: dict[tuple[str, str, bytes], bytes] = field(default_factory=dict)
    bytes_down: int = 0
    """Of messages from the broker, payload and topic."""
    delta_bytes: int = 0
    refused: list[str] = field(default_factory=list)
    """What the product's trust said against a release."""

    def manifest(self, data: bytes) -> Manifest:
        if data not in self.manifests:
            self.manifests[data] = decode_manifest(data)
        return self.manifests[data]

    def complete(self, layer: Layer, base: str, data: bytes) -> bytes | None:
        """The layer's file of what was fetched; None when it is not what was signed."""
        key = layer.hash, base, data
        if key not in self.made:
            whole = apply_delta(self.layers[base], data, layer.size_bytes) if base else data
            if layer_hash(whole) != layer.hash:
                return None
            self.made[key] = self.layers[layer.hash] = whole
        return self.made[key]


class RollingGateway:
    """One of them.

    Args:
        fails: takes a new release back after the swap, as one does on whose cameras it does not work.
        trust: checks what it is told; None believes it.
        on_news: called with itself when there is something to report at once.
    """

    __slots__ = (
        "_base", "_data", "_frames", "_held", "_missing", "_on_news", "_shared", "_target", "client", "fails",
        "gateway_id", "gone_back", "runs", "site_id", "trust",
    )  # fmt: skip

    def __init__(
        self,
        gateway_id: str,
        site_id: str,
        first: Manifest,
        shared: Shared,
        on_news: Callable[["RollingGateway"], None],
        *,
        fails: bool = False,
        trust: TrustedMetadata | None = None,
    ) -> None:
        self.gateway_id, self.site_id, self.fails, self.trust = gateway_id, site_id, fails, trust
        self._shared, self._on_news = shared, on_news
        self.runs, self._frames = release_id(first), 10 * FRAMES_A_REPORT
        self._held = {layer.hash for layer in first.layers_for(site_id)}
        self._target: Manifest | None = None
        self._missing: list[Layer] = []
        self._data, self._base = b"", ""
        self.gone_back = ""
        """The release that it went back from."""
        will = State(gateway_id=gateway_id, site_id=site_id, at_ns=0, agent_version="", release_id="", online=False)
        self.client = LightClient(
            f"headframe-{gateway_id}",
            (topics.down_filter(gateway_id),),
            self._on_message,
            will=(topics.up(gateway_id, "state"), codec.encode(will)),
            on_up=lambda: on_news(self),
        )

    def report(self, at_ns: int) -> bool:
        """A heartbeat; more frames have been looked at since the last."""
        self._frames += FRAMES_A_REPORT
        health = [self._health(self.runs, "committed", self._frames)]
        if self.gone_back:
            health.append(self._health(self.gone_back, "rolled-back", 0, "its looks failed after the swap"))
        state = State(
            gateway_id=self.gateway_id,
            site_id=self.site_id,
            at_ns=at_ns,
            agent_version=AGENT_VERSION,
            release_id=self.runs,
            looks=self._frames,
            cameras=(CameraState(camera_id="belt", state="live", frames=self._frames, fps=25.0),),
            health=tuple(health),
        )
        return self.client.publish(topics.up(self.gateway_id, "state"), codec.encode(state))

    def fetch(self) -> None:
        """Ask for the next part of what is missing; again when no answer came."""
        if self._target is None or not self._missing:
            return
        bases = (self._base,) if self._data and self._base else tuple(sorted(self._held)) if not self._data else ()
        ask = Fetch(layer=self._missing[0].hash, offset=len(self._data), length=PART_BYTES, bases=bases)
        self.client.publish(topics.up(self.gateway_id, "fetch"), codec.encode(ask))

    def _health(self, release: str, phase: str, frames: int, reason: str = "") -> ReleaseHealth:
        return ReleaseHealth(
            release_id=release,
            phase=phase,
            reason=reason,
            frames=frames,
            flagged=frames * FLAGGED_A_REPORT // FRAMES_A_REPORT,
            score_sum=SCORE * frames,
            score_squares=SCORE**2 * frames,
            latency_ms=LATENCY_MS,
        )

    def _on_message(self, topic: str, payload: bytes) -> None:
        self._shared.bytes_down += len(payload) + len(topic)
        message = codec.decode(payload)
        if isinstance(message, Desired):
            self._on_desired(message)
        elif isinstance(message, LayerPart):
            self._on_part(message)

    def _on_desired(self, desired: Desired) -> None:
        manifest = self._shared.manifest(desired.manifest)
        name = release_id(manifest)
        if name in (self.runs, self.gone_back) or (self._target and self._target == manifest):
            return
        if self.trust:
            try:
                self.trust.check(desired, manifest.created_at_ns)
            except HeadframeError as error:
                self._shared.refused.append(str(error))
                return
        self._target = manifest
        self._missing = [layer for layer in manifest.layers_for(self.site_id) if layer.hash not in self._held]
        self._data, self._base = b"", ""
        self._go_on()

    def _on_part(self, part: LayerPart) -> None:
        if not self._missing or part.layer != self._missing[0].hash or part.offset != len(self._data):
            return
        if not part.total_bytes:
            return
        self._data, self._base = self._data + part.data, part.base
        if len(self._data) == part.total_bytes:
            self._shared.delta_bytes += len(self._data) if part.base else 0
            layer = self._missing[0]
            if self._shared.complete(layer, part.base, self._data) is not None:
                self._held.add(layer.hash)
                self._missing.pop(0)
            self._data, self._base = b"", ""
        self._go_on()

    def _go_on(self) -> None:
        if self._missing:
            self.fetch()
        elif self._target:
            name, self._target = release_id(self._target), None
            if self.fails:
                self.gone_back = name
            else:
                self.runs, self._frames = name, -FRAMES_A_REPORT
            self._on_news(self)


def trust_of(folder: Path, root: bytes, gateway_id: str) -> TrustedMetadata:
    """The product's own check, on a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return TrustedMetadata(folder, root, gateway_id)
