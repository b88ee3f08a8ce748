"""A centre, a gateway that runs a release, and between them a wire that an attacker holds.

The gateway is the real `Installer` with the real trust; only its stage (where frames would be looked at), its clock and
its link are turned by hand.
"""

import hashlib
import random
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec
import zstandard

from cloud.trust import Repository
from common import codec
from common.ids import layer_hash
from common.manifest import SHARED, Layer, Manifest, Scenario, encode_manifest, release_id
from common.messages import Desired, Fetch, LayerPart
from common.metadata import TrustedMetadata
from common.parcels import cut, pack
from edge.installer import LAYERS, Installer
from edge.perception import Model
from edge.proofs import Proofs
from edge.settings import InstallSettings
from edge.tally import Observation
from simulations.bench._yard_models import tiny_backbone, tiny_head

SCENARIOS: Final = ("belt", "helmet")
CLASSES: Final = ("normal", "alarm")
GATEWAY: Final = "gw-1"
SITE: Final = "north"
BEGIN_NS: Final = 1_800_000_000 * 10**9
LIFETIME_NS: Final = 400 * 24 * 3600 * 10**9
PART_BYTES: Final = 256  # several parts to a layer: there is an order to be mixed up
PAUSE_S: Final = 60.0  # long enough for whatever was asked for to be asked again
QUICK_TRIAL: Final = InstallSettings(shadow_frames=0, probation_frames=0, shadow_s=0, probation_s=0)


class HandClock:
    """Stands still until it is told."""

    def __init__(self) -> None:
        self.now_ns, self.now_s = BEGIN_NS, 0.0

    def wall_ns(self) -> int:
        return self.now_ns

    def monotonic_s(self) -> float:
        return self.now_s


class HandStage:
    """A stage without cameras: what was handed over last runs."""

    def __init__(self) -> None:
        self.runs: Model | None = None

    def hand_over(
        self, model: Model | None, beside: Model | None = None, *, on_trial: bool = False, rescue: bool = False
    ) -> None:
        del beside, on_trial, rescue
        self.runs = model

    def observe(self) -> Observation:
        return Observation(running=self.runs.release_id if self.runs else "")


class Centre:
    """Publishes honest releases; every key lies in its own folder, for the attacker to steal one by one."""

    def __init__(self, folder: Path, clock: HandClock) -> None:
        self.clock = clock
        self.repository = Repository.open(folder / "trust", clock)
        self.layers: dict[str, bytes] = {}
        self.backbone = self.put(tiny_backbone())
        self.manifests: list[Manifest] = []
        self.bases: dict[str, bytes] = {}
        self._sequences: dict[str, int] = {}
        self._seed = 0

    def put(self, data: bytes) -> Layer:
        self.layers[layer_hash(data)] = data
        return Layer(layer_hash(data), len(data))

    def head(self, scenario: str, backbone: Layer | None = None) -> Layer:
        """A new head."""
        self._seed += 1
        return self.put(tiny_head((backbone or self.backbone).hash, scenario, CLASSES, self._seed))

    def draft(self, sequence: int, changes: Mapping[str, Layer], before: Manifest | None = None) -> Manifest:
        """A release with other heads than `before` in some scenarios; not signed by anybody."""
        old = {item.name: item for item in before.scenarios} if before else {}
        return Manifest(
            sequence=sequence,
            created_at_ns=self.clock.wall_ns(),
            expires_at_ns=self.clock.wall_ns() + LIFETIME_NS,
            minimum_agent="0.1.0",
            backbone=self.backbone,
            scenarios=tuple(
                Scenario(name, CLASSES, CLASSES[0], {SHARED: changes[name]}) if name in changes else old[name]
                for name in SCENARIOS
            ),
        )

    def publish(self, *scenarios: str) -> Manifest:
        """Sign a release with new heads in these scenarios."""
        manifest = self.draft(self.next_sequence, {name: self.head(name) for name in scenarios}, *self.manifests[-1:])
        data = encode_manifest(manifest)
        wholes = [encode_manifest(item) for item in reversed(self.manifests)]
        signed = self.repository.add(data, wholes, [release_id(item) for item in self.manifests[-2:]])
        self.bases[release_id(manifest)] = signed.base
        self.manifests.append(manifest)
        return manifest

    @property
    def next_sequence(self) -> int:
        return self.manifests[-1].sequence + 1 if self.manifests else 1

    def desired(self, manifest: Manifest, gateway_id: str = GATEWAY) -> Desired:
        """What the centre says to a gateway, under a new number."""
        data, base = encode_manifest(manifest), self.bases[release_id(manifest)]
        self._sequences[gateway_id] = self._sequences.get(gateway_id, 0) + 1
        return Desired(
            manifest=data,
            base=base,
            metadata=self.repository.bundle(data, base),
            assignment=self.repository.assign(gateway_id, data, self._sequences[gateway_id]),
        )

    def answer(self, fetch: Fetch) -> LayerPart:
        """A part of a layer, whole."""
        data = self.layers.get(fetch.layer, b"")
        part = data[fetch.offset : fetch.offset + min(fetch.length, PART_BYTES)]
        return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=len(data), data=part)


class Gateway:
    """The installer of one box."""

    def __init__(self, folder: Path, root: bytes, clock: HandClock) -> None:
        self.folder, self.root, self.clock = folder, root, clock
        self.stage, self.asked = HandStage(), list[Fetch]()
        trust = TrustedMetadata(folder / "trust", root, GATEWAY)
        self.installer = Installer(
            folder / "releases", trust, SITE, clock, self._ask, self.stage, QUICK_TRIAL, aside=lambda work: work()
        )
        self.installer.boot()

    def copy(self, folder: Path) -> "Gateway":
        """The same box once more, as its disk is now; the copy may be spoilt."""
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self.folder, folder)
        return Gateway(folder, self.root, self.clock)

    def _ask(self, fetch: Fetch) -> bool:
        self.asked.append(fetch)
        return True

    def tell(self, desired: Desired) -> None:
        """A message arrives, a while after the one before."""
        self.clock.now_s += PAUSE_S
        self.asked.clear()
        self.installer.outcome = ""
        self.installer.on_desired(desired)

    def tell_by_proof(self, desired: Desired) -> None:
        """The same message as the centre sends it to most: an assignment here, the proof published for all."""
        data = zstandard.compress(codec.encode(msgspec.structs.replace(desired, assignment=b"")))
        parcel = pack(cut(data)).parcel
        self.clock.now_s += PAUSE_S
        self.asked.clear()
        self.installer.outcome = ""
        proofs = Proofs(self.clock, self._ask, self.installer.on_desired, lambda: self.runs, random.Random(1))
        proofs.on_desired(Desired(manifest=b"", assignment=desired.assignment, proof=parcel, release_id="r0"))
        for piece in (piece for name in proofs.pieces() for piece in cut(data) if layer_hash(piece) == name):
            proofs.on_piece(layer_hash(piece), piece)

    def serve(self, centre: Centre, parts_max: int = 2000) -> None:
        """Whatever it asks for is answered, until it asks for no more."""
        for _ in range(parts_max):
            if not self.asked:
                break
            self.installer.on_layer(centre.answer(self.asked.pop(0)))
        for _ in range(4):
            self.installer.step()

    @property
    def runs(self) -> str:
        """Release that runs."""
        return self.stage.runs.release_id if self.stage.runs else ""

    def intact(self) -> bool:
        """Whether every layer of the running release has the hash that was signed."""
        running = self.stage.runs
        folder = self.folder / "releases" / LAYERS
        names = [layer.hash for layer in running.manifest.layers_for(SITE)] if running else []
        return all(layer_hash((folder / name).read_bytes()) == name for name in names)

    def fingerprint(self) -> str:
        """Of what runs now and of what would run after the next start: the slot and every layer it names."""
        running = self.stage.runs
        if running is None:
            return ""
        digest = hashlib.sha256(running.release_id.encode())
        digest.update((self.folder / "releases" / "current").read_bytes())
        for layer in running.manifest.layers_for(SITE):
            digest.update((self.folder / "releases" / LAYERS / layer.hash).read_bytes())
        return digest.hexdigest()
