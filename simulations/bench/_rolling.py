"""Virtual gateways that a release can be rolled out to: the wire of real ones, with layers of a release in memory.

Each takes `Desired`, fetches the layers that it lacks (as what is published once for all, by delta where the centre has
one; or in parts, as an agent of before), reports, and counts frames under what it runs. Every so-manieth checks the TUF
metadata and its assignment with the product's own code; all doing that would be a bench of one process's python-tuf,
which 12,000 boxes have each for themselves.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Final

import msgspec

from common import AGENT_VERSION, codec, topics
from common.compression import decompress
from common.delta import apply_delta
from common.errors import HeadframeError, WireError
from common.ids import layer_hash
from common.manifest import Layer, Manifest, decode_manifest, release_id
from common.messages import CameraState, Desired, Fetch, LayerPart, ReleaseHealth, Shelved, State
from common.metadata import TrustedMetadata
from common.parcels import Unpacking
from edge.proofs import PROOF_BYTES_MAX
from simulations.lightclient import LightClient

PART_BYTES: Final = 256 * 1024  # as edge.download asks for
FRAMES_A_REPORT: Final = 100
FLAGGED_A_REPORT: Final = 5
SCORE: Final = 0.9
LATENCY_MS: Final = 20.0
HURT_REPORTS: Final = 1
"""Heartbeats of a release that fails here after the swap, before the gateway goes back from it."""


class Fails(StrEnum):
    """What becomes of a release with a new layer on a gateway."""

    NEVER = "never"
    AT_TEST = "at its self-test"
    AFTER_SWAP = "after the swap"


@dataclass
class Shared:
    """What all gateways of the process know, each thing once."""

    layers: dict[str, bytes]
    """By hash: whole files that some gateway has made."""
    manifests: dict[bytes, Manifest] = field(default_factory=dict)
    made: dict[tuple[str, str, bytes], bytes] = field(default_factory=dict)
    proofs: dict[bytes, Desired] = field(default_factory=dict)
    """What is the same for all, by its bytes."""
    bytes_down: Counter[str] = field(default_factory=Counter)
    """Of messages from the broker, payload and topic, by kind."""
    messages_down: Counter[str] = field(default_factory=Counter)
    delta_bytes: int = 0
    refused: list[str] = field(default_factory=list)
    """What the product's trust said against a release, and pieces that were not what their name says."""

    def proof(self, data: bytes) -> Desired:
        if data not in self.proofs:
            found = codec.decode(decompress(data, PROOF_BYTES_MAX))
            if not isinstance(found, Desired):
                raise WireError("a proof holds something else")
            self.proofs[data] = found
        return self.proofs[data]

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
        fails: what becomes here of what has a layer that the first release has not. What the centre signs anew of the
            old layers, it runs.
        trust: checks what it is told; None believes it.
        on_news: called with itself when there is something to report at once.
        shares: takes what is published for all.
    """

    __slots__ = (
        "_asked_for", "_base", "_data", "_desired", "_first", "_first_release", "_frames", "_held", "_hurts",
        "_listening", "_missing", "_on_news", "_shared", "_shares", "_target", "_unpacking", "client", "fails",
        "gateway_id", "gone_back", "gone_frames", "runs", "site_id", "trust",
    )  # fmt: skip

    def __init__(
        self,
        gateway_id: str,
        site_id: str,
        first: Manifest,
        shared: Shared,
        on_news: Callable[["RollingGateway"], None],
        *,
        fails: Fails = Fails.NEVER,
        trust: TrustedMetadata | None = None,
        shares: bool = True,
    ) -> None:
        self.gateway_id, self.site_id, self.fails, self.trust = gateway_id, site_id, fails, trust
        self._shared, self._on_news, self._shares = shared, on_news, shares
        self.runs = self._first_release = release_id(first)
        self._frames, self._hurts = 10 * FRAMES_A_REPORT, 0
        self._first = frozenset(layer.hash for layer in first.layers_for(site_id))
        self._held = set(self._first)
        self._target: Manifest | None = None
        self._missing: list[Layer] = []
        self._data, self._base = b"", ""
        self._desired: Desired | None = None
        """Its proof is on its way."""
        self._unpacking: Unpacking | None = None
        self._asked_for = ""
        """What the parcel under way is: a layer, or the root of a proof."""
        self._listening: frozenset[str] = frozenset()
        self.gone_back, self.gone_frames = "", 0
        """The release that it went back from, and how many frames it had looked at by it."""
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
        if self._hurts:
            self._hurt()
        health = [self._health(self.runs, "probation" if self._hurts else "committed", self._frames)]
        if self.gone_back:
            health.append(self._health(self.gone_back, "rolled-back", self.gone_frames, f"it fails {self.fails}"))
        state = State(
            gateway_id=self.gateway_id,
            site_id=self.site_id,
            at_ns=at_ns,
            agent_version=AGENT_VERSION,
            release_id=self.runs,
            looks=self._frames,
            cameras=(CameraState(camera_id="belt", state="live", frames=self._frames, fps=25.0),),
            health=tuple(health),
            shared=self._shares,
        )
        return self.client.publish(topics.up(self.gateway_id, "state"), codec.encode(state))

    def fetch(self) -> None:
        """Ask for what is missing; again when no answer came."""
        if self._desired and self._unpacking:
            ask = Fetch(layer=self._asked_for, offset=self._unpacking.offset, length=1, shared=True, silent=True)
        elif self._target and self._missing:
            bases = (self._base,) if self._data and self._base else tuple(sorted(self._held)) if not self._data else ()
            ask = Fetch(
                layer=self._missing[0].hash,
                offset=len(self._data),
                length=PART_BYTES,
                bases=bases,
                shared=self._shares,
                silent=self._unpacking is not None,
            )
        else:
            return
        self.client.publish(topics.up(self.gateway_id, "fetch"), codec.encode(ask))

    def _hurt(self) -> None:
        """The release that runs does not work on these cameras: after a while the gateway goes back by itself."""
        self._hurts -= 1
        if not self._hurts:
            self.gone_back, self.gone_frames = self.runs, max(1, self._frames)
            self.runs, self._frames = self._first_release, 10 * FRAMES_A_REPORT

    def _health(self, release: str, phase: str, frames: int, reason: str = "") -> ReleaseHealth:
        frames = max(0, frames)
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
        piece = topics.parse_release(topic)
        kind = "release" if piece else topic.rpartition("/")[2]
        self._shared.bytes_down[kind] += len(payload) + len(topic)
        self._shared.messages_down[kind] += 1
        if piece:
            self._on_piece(piece, payload)
        else:
            match codec.decode(payload):
                case Desired() as message:
                    self._on_desired(message)
                case LayerPart() as message:
                    self._on_part(message)
                case Shelved() as message:
                    self._on_shelved(message)
        self._listen()

    def _listen(self) -> None:
        """To what is needed now."""
        needed = self._unpacking.wanted() if self._unpacking else frozenset()
        if gone := [topics.release(name) for name in self._listening - needed]:
            self.client.unsubscribe(gone)
        if new := [topics.release(name) for name in needed - self._listening]:
            self.client.subscribe(new)
        self._listening = needed

    def _on_desired(self, desired: Desired) -> None:
        if desired.proof is None:
            self._take(desired)
        elif desired.release_id not in (self.runs, self.gone_back):
            self._desired, self._target, self._missing = desired, None, []
            self._data, self._unpacking = b"", Unpacking(desired.proof)
            self._asked_for = desired.proof.root.hex()

    def _on_piece(self, name: str, payload: bytes) -> None:
        unpacking = self._unpacking
        if unpacking is None:
            return
        try:
            self._data += unpacking.take(name, payload)
        except WireError as error:
            self._shared.refused.append(str(error))
            return
        if not unpacking.done:
            return
        self._unpacking, data = None, self._data
        if self._desired:
            desired, self._desired, self._data = self._desired, None, b""
            self._take(msgspec.structs.replace(self._shared.proof(data), assignment=desired.assignment))
        else:
            self._end_layer()

    def _on_shelved(self, shelved: Shelved) -> None:
        if not self._missing or shelved.layer != self._missing[0].hash or self._unpacking:
            return
        self._data, self._base, self._unpacking = b"", shelved.base, Unpacking(shelved.parcel)

    def _take(self, desired: Desired) -> None:
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
            self._end_layer()
        else:
            self._go_on()

    def _end_layer(self) -> None:
        """All of a layer has come, as its file or as a delta."""
        self._shared.delta_bytes += len(self._data) if self._base else 0
        layer = self._missing[0]
        if self._shared.complete(layer, self._base, self._data) is not None:
            self._held.add(layer.hash)
            self._missing.pop(0)
        self._data, self._base = b"", ""
        self._go_on()

    def _go_on(self) -> None:
        if self._missing:
            self.fetch()
        elif self._target:
            name = release_id(self._target)
            new = {layer.hash for layer in self._target.layers_for(self.site_id)} - self._first
            self._target = None
            if self.fails is Fails.AT_TEST and new:
                self.gone_back = name
            else:
                self.runs, self._frames = name, -FRAMES_A_REPORT
                self._hurts = HURT_REPORTS + 1 if self.fails is Fails.AFTER_SWAP and new else 0
            self._on_news(self)


def trust_of(folder: Path, root: bytes, gateway_id: str) -> TrustedMetadata:
    """The product's own check, on a folder of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    return TrustedMetadata(folder, root, gateway_id)
