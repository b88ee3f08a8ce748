"""What an attacker makes of the metadata: with no key, with one that is stolen, with a whole machine.

An attacker sees everything that was ever published, holds the wire, and signs whatever is useful with every key in
hand, and with keys of its own where it has none.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, Final
from urllib.parse import quote

import msgspec
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import (
    DelegatedRole,
    Metadata,
    MetaFile,
    Root,
    Snapshot,
    TargetFile,
    Targets,
    Timestamp,
)
from tuf.api.serialization.json import JSONSerializer

from common import trust
from common.manifest import DetectorLayer, Manifest, decode_manifest, encode_manifest, release_id
from common.messages import Desired
from simulations.bench._yard import GATEWAY, SCENARIOS, Centre

SERVING: Final = ("snapshot", "timestamp", "assignments")
"""Keys of roles that the serving machine itself needs day and night."""
FAR: Final = 2**30
_JSON: Final = JSONSerializer(compact=True)

Edit = Callable[["Forger"], Desired]


@dataclass(frozen=True, slots=True)
class Theft:
    """Which keys an attacker has."""

    name: str
    roles: tuple[str, ...]
    """`root-0`, `targets-1`: one key of several; a role's name: all of them."""


THEFTS: Final = (
    Theft("no key", ()),
    *(Theft(f"root key {n + 1} of 3", (f"root-{n}",)) for n in range(3)),
    *(Theft(f"targets key {n + 1} of 2", (f"targets-{n}",)) for n in range(2)),
    *(Theft(f"{role} key", (role,)) for role in (*SERVING, "backbone", "detectors")),
    *(Theft(f"scenario-{name} key", (f"scenario-{name}",)) for name in SCENARIOS),
    Theft("the serving machine", SERVING),
    Theft("the serving machine and a root key", (*SERVING, "root-0")),
    Theft("the serving machine and a targets key", (*SERVING, "targets-0")),
    Theft("the serving machine and the detectors key", (*SERVING, "detectors")),
    Theft("the serving machine and the scenario-belt key", (*SERVING, "scenario-belt")),
    Theft("the serving machine and the scenario-helmet key", (*SERVING, "scenario-helmet")),
)


class Forger:
    """Metadata made from the newest honest set by whoever holds some keys.

    Args:
        honest: what the centre says to this gateway now; what is not edited is left as it is.
        more: signers that were stolen earlier, and may be revoked by now.
    """

    def __init__(
        self, centre: Centre, theft: Theft, honest: Desired, seed: int, more: Sequence[CryptoSigner] = ()
    ) -> None:
        self.centre, self.honest, self.rng = centre, honest, random.Random(seed)
        self.spoil: dict[str, Callable[[bytes], bytes]] = {}
        """Role -> what is done to its metadata after it was signed."""
        self.own = CryptoSigner.generate_ed25519()
        self._root = Metadata[Root].from_bytes(centre.repository.root()).signed
        self._top = Metadata[Targets].from_bytes(centre.repository.top()).signed
        self.stolen = [*more, *(signer for role in theft.roles for signer in self.steal(role))]

    def steal(self, role: str) -> list[CryptoSigner]:
        """The private keys of a role, or one of them."""
        name, _, number = role.rpartition("-")
        if name in (trust.ROOT, trust.TARGETS) and number.isdigit():
            return self.centre.repository.keys.signers([sorted(self._root.roles[name].keyids)[int(number)]])
        if role in self._root.roles:
            return self.centre.repository.keys.signers(self._root.roles[role].keyids)
        return self.centre.repository.keys.signers(self.delegated[role].keyids)

    @property
    def delegated(self) -> dict[str, DelegatedRole]:
        found = self._top.delegations.roles if self._top.delegations else None
        return found or {}

    def evil(self, *scenarios: str, **fields: object) -> Manifest:
        """A next release with heads of the attacker's; the rest is that of the base, which needs no more signatures."""
        heads = {name: self.centre.head(name) for name in scenarios}
        made = self.centre.draft(self.centre.next_sequence + self.rng.randrange(3), heads, decode_manifest(self.base))
        return msgspec.structs.replace(made, **fields)

    def sign(self, metadata: Metadata[Any]) -> bytes:
        """With every key in hand."""
        metadata.signatures.clear()
        for signer in (*self.stolen, self.own):
            metadata.sign(signer, append=True)
        return metadata.to_bytes(_JSON)

    def top(self) -> Metadata[Targets]:
        """The next targets metadata, to be edited."""
        new = Metadata(deepcopy(self._top))
        new.signed.version += 1
        return new

    def part(self, role: str) -> Metadata[Targets]:
        """The next metadata of a part's role, to be edited."""
        found = [name for name in self.honest.metadata if name.endswith(f".{quote(role, safe='')}.json")]
        if found:
            new = Metadata(Metadata[Targets].from_bytes(self.honest.metadata[found[0]]).signed)
            new.signed.version += 1
            return new
        version = self.snapshot().signed.meta.get(f"{role}.json", MetaFile(0 + 1)).version
        return Metadata(Targets(version=version + 1, expires=self._top.expires))

    def snapshot(self) -> Metadata[Snapshot]:
        name = next(name for name in self.honest.metadata if name.endswith(".snapshot.json"))
        return Metadata(Metadata[Snapshot].from_bytes(self.honest.metadata[name]).signed)

    def timestamp(self) -> Metadata[Timestamp]:
        return Metadata(Metadata[Timestamp].from_bytes(self.honest.metadata["timestamp.json"]).signed)

    def desired(
        self,
        manifest: bytes,
        changed: dict[str, Metadata[Any]] | None = None,
        base: bytes | None = None,
        *,
        reseal: bool = True,
    ) -> Desired:
        """A message with this manifest and with metadata changed; snapshot, timestamp and assignment follow from it.

        Args:
            reseal: make snapshot and timestamp anew for what changed; False leaves the honest ones.
        """
        files = dict(self.honest.metadata)
        snapshot, timestamp = self.snapshot(), self.timestamp()
        for role, metadata in (changed or {}).items():
            data = self.spoil.get(role, bytes)(self.sign(metadata))
            name = quote(role, safe="")
            for old in [item for item in files if item.endswith(f".{name}.json") and role != trust.ROOT]:
                del files[old]
            files[f"{metadata.signed.version}.{name}.json"] = data
            if role != trust.ROOT:
                snapshot.signed.meta[f"{role}.json"] = MetaFile.from_data(metadata.signed.version, data, ["sha256"])
        if reseal:
            old = f"{snapshot.signed.version}.snapshot.json"
            snapshot.signed.version += 1
            sealed = self.sign(snapshot)
            files.pop(old)
            files[f"{snapshot.signed.version}.snapshot.json"] = sealed
            timestamp.signed.version += 1
            timestamp.signed.snapshot_meta = MetaFile.from_data(snapshot.signed.version, sealed, ["sha256"])
            files["timestamp.json"] = self.sign(timestamp)
        assignment = self.assignment(manifest)
        return Desired(
            manifest=manifest, base=self.base if base is None else base, metadata=files, assignment=assignment
        )

    @property
    def base(self) -> bytes:
        """A whole release that targets lists."""
        return self.honest.base or self.honest.manifest

    def assignment(self, manifest: bytes, gateway_id: str = GATEWAY, sequence: int = FAR) -> bytes:
        """That a gateway is to run a manifest, signed with what is in hand."""
        target = TargetFile.from_data(trust.assignment_path(gateway_id), manifest, ["sha256"])
        return self.sign(Metadata(Targets(version=sequence, expires=self._top.expires, targets={target.path: target})))

    # --- what one would try -------------------------------------------------------------------

    def whole(self) -> Desired:
        """An own release, listed by targets."""
        manifest = self.evil(*SCENARIOS)
        data, top = encode_manifest(manifest), self.top()
        _list(top, trust.release_path(release_id(manifest)), data)
        return self.desired(data, {trust.TARGETS: top})

    def delegation(self) -> Desired:
        """The attacker's key made one of every role that targets delegates to, and a release of parts."""
        scenario = self.rng.choice(SCENARIOS)
        manifest, top = self.evil(scenario), self.top()
        data, role = encode_manifest(manifest), trust.scenario_role(scenario)
        top.signed.add_key(self.own.public_key, role)
        top.signed.add_key(self.own.public_key, trust.ASSIGNMENTS)
        part = self.part(role)
        _list(part, trust.part_path(role, release_id(manifest)), data)
        return self.desired(data, {trust.TARGETS: top, role: part})

    def new_root(self) -> Desired:
        """A root with the attacker's key for every role, at a threshold of one."""
        root = Metadata(deepcopy(self._root))
        root.signed.version += 1
        for role in list(root.signed.roles):
            root.signed.add_key(self.own.public_key, role)
            root.signed.roles[role].threshold = 1
        manifest, top = self.evil(*SCENARIOS), self.top()
        data = encode_manifest(manifest)
        _list(top, trust.release_path(release_id(manifest)), data)
        return self.desired(data, {trust.ROOT: root, trust.TARGETS: top})

    def scenario(self, name: str, *, by: str = "", under: str = "") -> Desired:
        """A release with a head of the attacker's in one scenario, listed by the role of another (or of its own).

        Args:
            by: the scenario whose role lists it.
            under: the scenario under whose path it is listed.
        """
        manifest = self.evil(name)
        data, role = encode_manifest(manifest), trust.scenario_role(by or name)
        part = self.part(role)
        _list(part, trust.part_path(trust.scenario_role(under or name), release_id(manifest)), data)
        return self.desired(data, {role: part})

    def beyond(self, field: str) -> Desired:
        """A release that changes something other than heads, listed by the role of a scenario and of its own path."""
        before, scenario = decode_manifest(self.base), self.rng.choice(SCENARIOS)
        evil = self.centre.head(scenario)
        every: dict[str, dict[str, Any]] = {
            "backbone": {"backbone": evil},
            "detectors": {"detectors": (DetectorLayer("people", evil),)},
            "scenarios": {"scenarios": (*before.scenarios, msgspec.structs.replace(before.scenarios[0], name="third"))},
            "order": {"scenarios": tuple(reversed(before.scenarios))},
            "sequence": {"sequence": FAR * FAR},
        }
        changes = every[field]
        manifest = self.evil(scenario, **changes) if "scenarios" not in changes else self.evil(**changes)
        data, role = encode_manifest(manifest), trust.scenario_role(scenario)
        part = self.part(role)
        _list(part, trust.part_path(role, release_id(manifest)), data)
        return self.desired(data, {role: part})

    def own_base(self) -> Desired:
        """A base that nobody listed, from which the evil release differs in nothing."""
        manifest = self.evil(*SCENARIOS)
        data = encode_manifest(manifest)
        base = encode_manifest(msgspec.structs.replace(manifest, note="base"))
        changed = {}
        for name in SCENARIOS:
            role = trust.scenario_role(name)
            changed[role] = self.part(role)
            _list(changed[role], trust.part_path(role, release_id(manifest)), data)
        return self.desired(data, dict(changed), base)

    def forward(self, role: str, message: Desired) -> Desired:
        """A message with the version of what a role signs pushed far ahead."""
        if role == trust.ASSIGNMENTS:
            return msgspec.structs.replace(message, assignment=self.assignment(message.manifest))
        files, timestamp, snapshot = dict(message.metadata), self.timestamp(), self.snapshot()
        if role == trust.SNAPSHOT:
            snapshot.signed.version = FAR
            sealed = files[f"{FAR}.snapshot.json"] = self.sign(snapshot)
            timestamp.signed.snapshot_meta = MetaFile.from_data(FAR, sealed, ["sha256"])
            timestamp.signed.version += 1
        else:
            timestamp.signed.version = FAR
        files["timestamp.json"] = self.sign(timestamp)
        return msgspec.structs.replace(message, metadata=files)


def _list(metadata: Metadata[Targets], path: str, data: bytes) -> None:
    metadata.signed.targets[path] = TargetFile.from_data(path, data, ["sha256"])


def reaches(theft: Theft, scenario: str) -> bool:
    """Whether these keys are enough for a scenario's heads: by design, and the measure of the design."""
    return {*SERVING, trust.scenario_role(scenario)} <= set(theft.roles)


def tries(theft: Theft) -> Iterator[tuple[str, Edit]]:
    """All that is worth trying with some keys, and must not work."""
    yield "an own release in targets", Forger.whole
    yield "an own key in a delegation", Forger.delegation
    yield "an own root", Forger.new_root
    yield "an own base", Forger.own_base
    for field in ("backbone", "detectors", "scenarios", "order", "sequence"):
        yield f"another {field}", partial(Forger.beyond, field=field)
    for name in SCENARIOS:
        other = next(item for item in SCENARIOS if item != name)
        if not reaches(theft, name):
            yield f"a head of {name}", partial(Forger.scenario, name=name)
        yield f"{other}'s role lists {name}", partial(Forger.scenario, name=name, by=other)
        yield f"{name} under the path of {other}", partial(Forger.scenario, name=name, by=other, under=other)
