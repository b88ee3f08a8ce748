"""Releases at the centre: layers by hash in a folder, manifests in the store, deltas and proofs made on request.

Decides what a release is made of and which one is active. Leaves to `cloud.trust` who stands behind it, to
`cloud.lineage` where its layers come from, to `cloud.retention` how long they stay.
"""

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zstandard

from cloud.learning.export import default_backbone, set_default_backbone
from cloud.lineage import note_layer
from cloud.store import Assignment, Store
from cloud.trust import Repository
from cloud.trust.sets import LIFETIME_S, RENEW_S
from common import codec, trust
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
from common.parcels import Packed, cut, pack
from common.weights import find_tensors

log = logging.getLogger(__name__)

LIFETIME_NS = LIFETIME_S[trust.TARGETS] * 10**9  # as long as the word of those who signed it
STAGED = "staged"
LIVE = ("active", "assembled")
"""Status of what gateways may run now."""
PROOFS_MAX = 16  # releases that gateways are told of at the same time, in two rollouts and their roll-backs
PROOF_LEVEL = 19  # made once for a release, opened by thousands
LOOK_S = 0.5
PART_BYTES_MAX = 1024 * 1024
OFFSET_MAX = 2**40  # larger than any file of ours; beyond 2**63 a seek raises
BASES_MAX = 16  # of what a gateway names
DELTA_LAYER_BYTES_MAX = 1024 * 1024
SIZE_RATIO_MAX = 2  # layers further apart in size have nothing in common
WORTHWHILE = 0.9
NO_DELTA_MAX = 10_000  # pairs remembered
DEFAULT_ORIGIN = {"origin": "efficientnet-lite0, pre-trained on ImageNet", "licence": "Apache-2.0"}
MINIMUM_AGENT = "0.1.0"
DETECTORS = "detectors"  # a file in the folder of the layers: what the next release carries
CANDIDATE = "candidate"
"""Status of a release that has not reached the fleet yet."""
MANIFESTS_MAX = 64  # kept decoded: those under way and those that gateways come from
DETECTORS_MAX = 8  # each runs on every look


@dataclass(frozen=True, slots=True)
class Proof:
    """What every gateway gets with a release."""

    desired: Desired
    """Without an assignment."""
    data: bytes
    """The same, compressed: hex digits and JSON."""
    packed: Packed


def delta_of(base: bytes, target: bytes) -> bytes:
    """The exact delta between two ONNX files."""
    return make_delta(base, target, find_tensors(base), find_tensors(target))


class Registry:
    """All releases of the group, and their layers.

    Args:
        folder: layers, one file each, named by hash.
        repository: the signed metadata that stands behind releases.
    """

    def __init__(self, folder: Path, store: Store, repository: Repository, clock: Clock) -> None:
        self._folder, self._store, self.repository, self._clock = folder, store, repository, clock
        self.launch: Callable[[str], str] | None = None
        """Takes a release that is signed and not active yet to the fleet; without one it is active at once."""
        self._manifests: dict[str, Manifest] = {}
        self._proofs: dict[str, tuple[int, Proof]] = {}
        """Release -> the state of the metadata, and what proves it with that."""
        self._epoch, self._looked_s = (0, 0), float("-inf")
        """State of the metadata, and what of it every gateway must know; when it was looked at."""
        self._assigned: dict[str, Assignment] = {}
        """Gateway -> what it was told last."""
        self._unwritten: set[str] = set()
        """Gateways whose assignment is not in the store yet."""
        self._no_delta: set[tuple[str, str]] = set()
        """Layers of which one has no weights to make a delta of."""
        folder.mkdir(parents=True, exist_ok=True)

    def backbone(self) -> tuple[Layer, Path]:
        """The backbone of the active release, or the default one before the first."""
        active = self.active()
        if active:
            return active.backbone, self.layer_path(active.backbone.hash)
        name, path = default_backbone(self._folder)
        return Layer(name, path.stat().st_size), path

    def now_ns(self) -> int:
        """The time that is written beside what is made."""
        return self._clock.wall_ns()

    def note(self, layer: Layer, kind: str, **known: Any) -> None:
        """Record where a layer comes from (`cloud.lineage.note_layer`); the first record stays."""
        note_layer(self._store, layer.hash, kind, self._clock.wall_ns(), **known)

    def set_backbone(self, data: bytes, licence: str = "not stated") -> Layer:
        """Make a layer the backbone of the first release.

        Raises:
            OperatorError: a release is active: its heads, datasets and samples stand on the backbone it has.
        """
        if self.active():
            raise OperatorError(
                "a release is active, and everything learnt so far stands on its backbone",
                "`headframe cloud backbone` replaces it with every head solved anew.",
            )
        layer = self.put(data)
        self.note(layer, "backbone", origin="adopted", licence=licence)
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

    def variant_before(self, backbone: str, precision: str) -> tuple[str, Layer] | None:
        """The nearest backbone before this one of which gateways were sent a variant, and the last of those; None when
        there is none, or its files are not kept any more."""
        parents = {record.layer: record.parent for record in self._store.layers()}
        sent = [decode_manifest(row.manifest) for row in self._store.releases() if row.status != STAGED]
        seen, at = {backbone}, parents.get(backbone, "")
        while at and at not in seen:
            found = [
                (manifest.sequence, variant.layer)
                for manifest in sent
                for variant in manifest.variants
                if manifest.backbone.hash == at and variant.precision == precision
            ]
            if found:
                layer = max(found, key=lambda item: item[0])[1]
                kept = self.layer_path(at).is_file() and self.layer_path(layer.hash).is_file()
                return (at, layer) if kept else None
            seen.add(at)
            at = parents.get(at, "")
        return None

    def layer_path(self, name: str) -> Path:
        return self._folder / name

    def put(self, data: bytes) -> Layer:
        """Keep a layer's bytes; the same bytes are kept once."""
        name = layer_hash(data)
        if not self.layer_path(name).exists():
            write_atomically(self.layer_path(name), data)
        return Layer(name, len(data))

    def put_delta(self, base: Layer, target: Layer, delta: bytes) -> None:
        """Keep a delta between two layers that was made with them; gateways that hold the base are sent it."""
        write_atomically(self._delta_path(base.hash, target.hash), delta)

    def _delta_path(self, base: str, target: str) -> Path:
        return self._folder / "deltas" / f"{base}.{target}"

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
        """Have a release signed, send it on its way to the fleet, return its id; it carries the detectors chosen now.

        The first one is active at once, later ones by a rollout (`launch`). When it needs keys that are not here it is
        staged instead, and goes on its way when they have signed (`headframe cloud keys import`).

        Args:
            variants: of the backbone, those on which these heads have passed the drift gate.
            golden: what its models answer to drawn inputs (`cloud.learning.golden`).
        """
        manifest = Manifest(
            sequence=0,
            created_at_ns=0,
            expires_at_ns=0,
            minimum_agent=MINIMUM_AGENT,
            backbone=backbone,
            scenarios=scenarios,
            detectors=self.detectors(),
            variants=variants,
            golden=golden,
        )
        self.note(backbone, "backbone", **DEFAULT_ORIGIN)  # an adopted one has its record already
        if self.launch is None or self.active() is None:
            return self.sign(manifest, gate, note, status="active")
        name = self.sign(manifest, gate, note, status=CANDIDATE)
        if self.proof(name):
            self.launch(name)
        return name

    def sign(self, content: Manifest, gate: Mapping[str, object], note: str, *, status: str) -> str:
        """A release of these layers under the next number; returns its id."""
        releases, now_ns = self._store.releases(), self._clock.wall_ns()
        manifest = msgspec.structs.replace(
            content,
            sequence=1 + max((release.sequence for release in releases), default=0),
            created_at_ns=now_ns,
            expires_at_ns=now_ns + LIFETIME_NS,
            note=note,
        )
        data, name = encode_manifest(manifest), release_id(manifest)
        live = {row.release_id for row in releases if row.status in (*LIVE, CANDIDATE)} | self._store.assigned()
        live |= {row.base for row in releases if row.release_id in live}
        signed = self.repository.add(data, [row.manifest for row in releases if not row.base], live)
        self._looked_s = float("-inf")
        self._store.add_release(
            name,
            manifest.sequence,
            data,
            b"",
            dict(gate),
            status=status if signed.in_force else STAGED,
            at_ns=now_ns,
            base=release_id(decode_manifest(signed.base)) if signed.base else "",
        )
        if not signed.in_force:
            log.warning("release %s waits for signatures: `headframe cloud keys stage`", name)
        return name

    def activate_signed(self) -> list[str]:
        """Send on its way what was staged and is signed now; returns those releases."""
        staged = [row for row in self._store.releases() if row.status == STAGED]
        signed = [row.release_id for row in reversed(staged) if self.repository.is_whole(row.manifest)]
        for name in signed:
            if self.launch is None or self.active() is None:
                self._store.set_release_status(name, "active")
            else:
                self._store.set_release_status(name, CANDIDATE)
                self.launch(name)
        return signed

    def manifest(self, name: str) -> Manifest | None:
        """The manifest of a release; None when it is not ours."""
        found = self._manifests.get(name)
        if found is None:
            release = self._store.release(name)
            if release is None:
                return None
            found = self._manifests[name] = decode_manifest(release.manifest)
            while len(self._manifests) > MANIFESTS_MAX:
                self._manifests.pop(next(iter(self._manifests)))
        return found

    def roll_back(self, name: str, note: str) -> str:
        """Publish an earlier release's layers again, under a new sequence number: active at once, for everybody.

        Raises:
            OperatorError: no such release.
        """
        earlier = next((release for release in self._store.releases() if release.release_id == name), None)
        if earlier is None:
            raise OperatorError(f"there is no release {name}", "`headframe cloud releases` lists them.")
        manifest = decode_manifest(earlier.manifest)
        if not all(self.layer_path(layer.hash).is_file() for layer in manifest.layers_for("")):
            raise OperatorError(f"the layers of {name} are not kept any more", "Choose a newer release.")
        gate = {**earlier.gate, "rolled_back_to": name}
        made = self.sign(manifest, gate, note, status="active")
        if self.proof(made) is None:
            raise OperatorError(
                f"{made}, which is {name} again, waits for offline keys",
                "Have it signed: `headframe cloud keys stage`.",
            )
        write_atomically(self._folder / DETECTORS, msgspec.json.encode(manifest.detectors))
        return made

    def desired(self, gateway_id: str, name: str) -> Desired | None:
        """What a gateway is told when it is to run a release, and all that proves it; None while it waits for keys."""
        proof = self.proof(name)
        if proof is None:
            return None
        return msgspec.structs.replace(proof.desired, assignment=self._assign(gateway_id, name, proof))

    def pointer(self, gateway_id: str, name: str) -> Desired | None:
        """The same for a gateway that takes what is published for all: its assignment, and where the proof is."""
        proof = self.proof(name)
        if proof is None:
            return None
        assignment = self._assign(gateway_id, name, proof)
        return Desired(manifest=b"", assignment=assignment, proof=proof.packed.parcel, release_id=name)

    def _assign(self, gateway_id: str, name: str, proof: Proof) -> bytes:
        assigned, now_ns = self._assigned.get(gateway_id) or self._store.assignment(gateway_id), self._clock.wall_ns()
        if (
            assigned is None
            or assigned.release_id != name
            or assigned.renew_at_ns <= now_ns
            or not self.repository.assigned_by(assigned.signed)
        ):
            # By the clock, so that a crash before it is written down does not give a number out twice.
            sequence = max(now_ns // 10**9, assigned.sequence + 1 if assigned else 1)
            signed = self.repository.assign(gateway_id, proof.desired.manifest, sequence)
            renew_at_ns = now_ns + RENEW_S[trust.ASSIGNMENTS] * 10**9
            assigned = Assignment(gateway_id, name, sequence, renew_at_ns, signed)
            self._unwritten.add(gateway_id)
        self._assigned[gateway_id] = assigned
        return assigned.signed

    def flush(self) -> None:
        """Write down what gateways were told."""
        if self._unwritten:
            self._store.put_assignments([self._assigned[name] for name in sorted(self._unwritten)])
            self._unwritten.clear()

    def epoch(self) -> int:
        """Changes when every gateway must hear of the metadata: other keys, or a day has passed. Other changes (a
        release that some are to run) reach those that they are for."""
        self._look()
        return self._epoch[1]

    def proof(self, name: str) -> Proof | None:
        """What is the same for every gateway that is to run a release; None while it waits for keys."""
        self._look()
        state, known = self._epoch[0], self._proofs.get(name)
        if known is None or known[0] != state:
            release = self._store.release(name)
            if release is None or release.status == STAGED:
                return None
            base = self._store.release(release.base) if release.base else None
            under = base.manifest if base else b""
            metadata = self.repository.bundle(release.manifest, under)
            desired = Desired(manifest=release.manifest, base=under, metadata=metadata)
            data = zstandard.compress(codec.encode(desired), PROOF_LEVEL)
            known = state, Proof(desired, data, pack(cut(data)))
            self._proofs = dict(list(self._proofs.items())[-PROOFS_MAX:]) | {name: known}
        return known[1]

    def _look(self) -> None:
        """The files of the metadata are looked at once a second, not once for each gateway: another process (a
        person's command) may have changed them."""
        now_s = self._clock.monotonic_s()
        if now_s - self._looked_s < LOOK_S:
            return
        self._looked_s, state = now_s, self.repository.state()
        if state != self._epoch[0]:
            self._epoch = state, self.repository.epoch()

    def find(self, fetch: Fetch) -> tuple[Path, str] | None:
        """The file that answers a request, and what it is a delta of (empty: the layer itself); None: not held."""
        path = self.layer_path(fetch.layer)
        if not is_layer_hash(fetch.layer) or not path.is_file() or not 0 <= fetch.offset < OFFSET_MAX:
            return None
        held_layers = [held for held in fetch.bases[:BASES_MAX] if is_layer_hash(held)]
        for held in sorted(held_layers, key=lambda base: self._kept_bytes(base, fetch.layer)):
            delta = self._delta(held, path)
            if delta is not None:
                return delta, held
        return path, ""

    def part(self, fetch: Fetch) -> LayerPart:
        """Answer a gateway's request, by a delta where there is one; what is not held is said by `total_bytes` 0."""
        found = self.find(fetch)
        if found is None or fetch.length < 1:
            return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=0, data=b"")
        path, base = found
        with path.open("rb") as file:
            file.seek(fetch.offset)
            data = file.read(min(fetch.length, PART_BYTES_MAX))
        total = path.stat().st_size
        return LayerPart(layer=fetch.layer, offset=fetch.offset, total_bytes=total, data=data, base=base)

    def _kept_bytes(self, base: str, target: str) -> float:
        """Of the delta between two layers; without end where it has still to be made."""
        path = self._delta_path(base, target)
        return path.stat().st_size if path.is_file() else math.inf

    def _delta(self, base: str, target: Path) -> Path | None:
        """The delta from a layer, made when it is first asked for; None when it would save too little.

        Only small layers (heads) are made here, on the link's thread: milliseconds. Both ends' files must be ours.
        """
        origin = self.layer_path(base)
        if base == target.name or (base, target.name) in self._no_delta or not origin.is_file():
            return None
        path = self._delta_path(base, target.name)
        if not path.is_file():
            before, after = origin.stat().st_size, target.stat().st_size
            if max(before, after) > DELTA_LAYER_BYTES_MAX or max(before, after) > SIZE_RATIO_MAX * min(before, after):
                return None
            try:
                delta = delta_of(origin.read_bytes(), target.read_bytes())
            except WireError as error:  # a layer of a kind that has no weights to read: it travels whole
                log.info("layer %s travels whole: %s", target.name[:12], error)
                if len(self._no_delta) >= NO_DELTA_MAX:
                    self._no_delta.clear()
                self._no_delta.add((base, target.name))
                return None
            write_atomically(path, delta)
        return path if path.stat().st_size < WORTHWHILE * target.stat().st_size else None
