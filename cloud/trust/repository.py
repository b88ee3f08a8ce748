"""Which keys are trusted, which releases they stand behind, which gateway runs which.

What online keys may sign is signed at once; what needs offline keys is staged for a ceremony (`cloud.trust.ceremony`).
Leaves the files to `cloud.trust.sets`, and to `cloud.registry` what a release is.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, TargetFile, Targets

from cloud.trust.keys import Keys
from cloud.trust.sets import COMPACT, LIFETIME_S, RENEW_S, STAGED, AnyMetadata, SignedSet, delegated_by, file_name
from common import trust
from common.clock import Clock
from common.errors import OperatorError, TrustError
from common.files import write_atomically
from common.manifest import Manifest, decode_manifest, release_id

THRESHOLDS: Final = {trust.ROOT: (2, 3), trust.TARGETS: (2, 2)}
"""Of the offline roles: how many keys must sign, of how many."""
ONLINE: Final = (trust.SNAPSHOT, trust.TIMESTAMP)
KEPT: Final = 16
"""Releases that stay listed: what a gateway may be told to run. Older ones are signed for no more."""


@dataclass(frozen=True, slots=True)
class RoleStatus:
    """What `headframe cloud keys status` says about a role."""

    role: str
    version: int
    expires_at_s: int
    threshold: int
    keys: int
    here: int
    """Of `keys`, those whose private half is on this machine."""


@dataclass(frozen=True, slots=True)
class Signed:
    """How a release came to be trusted."""

    in_force: bool
    """Gateways accept it now; False: it waits for offline keys (`headframe cloud keys stage`)."""
    base: bytes = b""
    """The whole release of which it changes parts; empty: it is whole itself."""


class Repository(SignedSet):
    """Who stands behind which release, and who may."""

    @classmethod
    def open(cls, folder: Path, clock: Clock) -> "Repository":
        """The repository of a centre; a new one gets development keys, all of them on this machine."""
        made = cls(folder / "metadata", Keys([folder / "keys"]), clock)
        if not made.exists:
            made.create([])
        return made

    def create(self, folders: Sequence[Path]) -> None:
        """Make all keys and the first metadata.

        Args:
            folders: where the offline keys of root and targets go, in turn; none: to the others, for development.

        Raises:
            OperatorError: there is metadata already: gateways trust it.
        """
        if self.exists:
            raise OperatorError(
                f"{self.folder} has a root of trust already", "Change its keys: `headframe cloud keys rotate root`."
            )
        marks = {} if folders else {trust.DEVELOPMENT: True}
        root = Root(
            version=1, expires=self._expiry(trust.ROOT), consistent_snapshot=True, unrecognized_fields=dict(marks)
        )
        for role, (threshold, count) in THRESHOLDS.items():
            for number in range(count):
                root.add_key(self.keys.make(role, folders[number % len(folders)] if folders else None), role)
            root.roles[role].threshold = threshold
        for role in ONLINE:
            root.add_key(self.keys.make(role), role)
        targets = Targets(version=1, expires=self._expiry(trust.TARGETS), delegations=Delegations({}, {}))
        self._delegate(targets, trust.ASSIGNMENTS)
        for number, role in enumerate((trust.BACKBONE, trust.DETECTORS)):  # rare, and they reach every scenario
            self._delegate(targets, role, folders[number % len(folders)] if folders else None)
        signed = Metadata(root)
        self._sign(signed, root.roles[trust.ROOT].keyids)
        self._write(trust.ROOT, signed)
        first = Metadata(targets)
        self._sign(first, root.roles[trust.TARGETS].keyids)
        self._publish({trust.TARGETS: first})

    # --- releases -----------------------------------------------------------------------------

    def add(self, data: bytes, bases: Iterable[bytes], live: Iterable[str]) -> Signed:
        """Have a release signed: by the roles of its changed parts where their keys are here, else by targets.

        Args:
            data: the manifest.
            bases: manifests of whole releases on which it may stand, best first.
            live: releases that stay listed, beside the newest.
        """
        with self._alone():
            manifest = decode_manifest(data)
            for base in filter(self.is_whole, bases):
                roles = self._parts(manifest, base)
                if roles:
                    self._publish({role: self._listing(role, manifest, data, live) for role in roles})
                    return Signed(in_force=True, base=base)
            return Signed(in_force=self._whole(manifest, data, live))

    def is_whole(self, data: bytes) -> bool:
        """Whether targets itself lists this manifest."""
        target = self._top().signed.targets.get(trust.release_path(release_id(decode_manifest(data))))
        return target is not None and target.hashes["sha256"] == trust.digest(data).hex()

    def _parts(self, manifest: Manifest, base: bytes) -> tuple[str, ...]:
        """The roles that can sign this release at once; none when it needs targets."""
        try:
            roles = trust.roles_behind(decode_manifest(base), manifest)
        except TrustError:
            return ()
        known = delegated_by(self._top().signed)
        reachable = all(r in known and len(self.keys.signers(known[r].keyids)) >= known[r].threshold for r in roles)
        return roles if reachable else ()

    def _listing(self, role: str, manifest: Manifest, data: bytes, live: Iterable[str]) -> Metadata[Targets]:
        path = self._file(role)
        old = Metadata[Targets].from_file(str(path)) if path else None
        new = Metadata(Targets(version=old.signed.version + 1 if old else 1, expires=self._expiry(trust.TARGETS)))
        if old:
            new.signed.targets = old.signed.targets
        _list(new.signed, trust.part_path(role, release_id(manifest)), data, live)
        self._sign(new, delegated_by(self._top().signed)[role].keyids)
        return new

    def _whole(self, manifest: Manifest, data: bytes, live: Iterable[str]) -> bool:
        new = self._next_top()
        for role in trust.part_roles(manifest):
            if role not in delegated_by(new.signed):
                self._delegate(new.signed, role)
        _list(new.signed, trust.release_path(release_id(manifest)), data, live)
        return self._finish({trust.TARGETS: new})

    def _delegate(self, targets: Targets, role: str, folder: Path | None = None) -> None:
        delegated_by(targets)[role] = DelegatedRole(role, [], 1, True, [trust.paths_of(role)])
        targets.add_key(self.keys.make(role, folder), role)

    # --- what gateways get --------------------------------------------------------------------

    def bundle(self, data: bytes, base: bytes) -> dict[str, bytes]:
        """The metadata that proves a manifest: every root, timestamp, snapshot, targets, and roles of changed parts."""
        with self._alone():
            timestamp = self._timestamp().signed
            snapshot = self._snapshot().signed
            names = [f"{number}.root.json" for number in range(2, self.root_version() + 1)]
            names += [f"{timestamp.snapshot_meta.version}.snapshot.json"]
            names += [f"{snapshot.meta['targets.json'].version}.targets.json"]
            if not self.is_whole(data) and base:
                roles = trust.roles_behind(decode_manifest(base), decode_manifest(data))
                found = ((role, snapshot.meta.get(f"{role}.json")) for role in roles)
                names += [file_name(role, meta.version) for role, meta in found if meta]
            files = {name: (self.folder / name).read_bytes() for name in names}
            return files | {"timestamp.json": (self.folder / "timestamp.json").read_bytes()}

    def epoch(self) -> int:
        """Changes when a gateway that runs what it should has to hear of the metadata all the same: other keys, or a
        day has passed since the timestamp that it knows."""
        with self._alone():
            root, top, timestamp = self._root().signed, self._top().signed, self._timestamp().signed
        keys = sorted((role, *delegated.keyids) for role, delegated in delegated_by(top).items())
        day = int(timestamp.unrecognized_fields.get(trust.SIGNED_AT, 0)) // RENEW_S[trust.TIMESTAMP]
        said = repr((root.version, keys, day)).encode()
        return int.from_bytes(hashlib.sha256(said).digest()[:8], "big")

    def assign(self, gateway_id: str, data: bytes, sequence: int) -> bytes:
        """The signed word that a gateway is to run a manifest; it holds until a higher sequence comes."""
        target = TargetFile.from_data(trust.assignment_path(gateway_id), data, ["sha256"])
        signed = Metadata(
            Targets(version=sequence, expires=self._expiry(trust.ASSIGNMENTS), targets={target.path: target})
        )
        self._sign(signed, delegated_by(self._top().signed)[trust.ASSIGNMENTS].keyids)
        return signed.to_bytes(COMPACT)

    def assigned_by(self, signed: bytes) -> bool:
        """Whether the role that assigns still has the key that signed this."""
        assignment = Metadata[Targets].from_bytes(signed)
        try:
            self._top().signed.verify_delegate(trust.ASSIGNMENTS, assignment.signed_bytes, assignment.signatures)
        except RepositoryError:
            return False
        return True

    def refresh(self) -> bool:
        """Sign anew what online keys keep fresh, when it is due; whether anything changed."""
        with self._alone():
            now_s = self._now_s()
            timestamp, snapshot = self._timestamp().signed, self._snapshot().signed
            snapshot_at_s = snapshot.expires.timestamp() - LIFETIME_S[trust.SNAPSHOT]
            timestamp_at_s = timestamp.expires.timestamp() - LIFETIME_S[trust.TIMESTAMP]
            if now_s - snapshot_at_s >= RENEW_S[trust.SNAPSHOT] or not self._is_sealed():
                self._publish({})
            elif now_s - timestamp_at_s >= RENEW_S[trust.TIMESTAMP]:
                self._stamp(timestamp.version + 1, timestamp.snapshot_meta)
            else:
                return False
            return True

    # --- keys -----------------------------------------------------------------------------------

    def status(self) -> list[RoleStatus]:
        """Every role with its keys, and how many of them are on this machine."""
        root, top = self._root(), self._top().signed
        found = []
        for role in (trust.ROOT, trust.TARGETS, *ONLINE):
            signed = self._current(role).signed
            found.append(self._status(role, signed.version, signed.expires.timestamp(), root.signed.roles[role]))
        for role, delegated in sorted(delegated_by(top).items()):
            path = self._file(role)
            signed = Metadata[Targets].from_file(str(path)).signed if path else top
            version = signed.version if path else 0
            found.append(self._status(role, version, signed.expires.timestamp(), delegated))
        return found

    @property
    def is_development(self) -> bool:
        """Whether this machine alone can sign what gateways accept as root."""
        role = self._root().signed.roles[trust.ROOT]
        return self.keys.here(role.keyids) >= role.threshold

    def rotate(self, role: str, folders: Sequence[Path] = ()) -> bool:
        """Replace all keys of a role by new ones; whatever the old ones sign is refused from then on.

        Args:
            folders: where new offline keys go, in turn; none: beside the database.

        Returns:
            Whether it is in force; False: it waits for offline keys.
        """
        with self._alone():
            if role in (trust.ROOT, trust.TARGETS, *ONLINE):
                return self._rotate_top(role, folders)
            new = self._next_top()
            delegated = delegated_by(new.signed)
            if role not in delegated:
                names = ", ".join(status.role for status in self.status())
                raise OperatorError(f"there is no role {role!r}", f"There are {names}.")
            for old in list(delegated[role].keyids):
                new.signed.revoke_key(old, role)
            new.signed.add_key(self.keys.make(role, folders[0] if folders else None), role)
            return self._finish({trust.TARGETS: new})

    def _rotate_top(self, role: str, folders: Sequence[Path]) -> bool:
        new = self._next_root()
        threshold, count = THRESHOLDS.get(role, (1, 1))
        for name in list(new.signed.roles[role].keyids):
            new.signed.revoke_key(name, role)
        for number in range(count):
            new.signed.add_key(self.keys.make(role, folders[number % len(folders)] if folders else None), role)
        new.signed.roles[role].threshold = threshold
        if folders and role == trust.ROOT:
            new.signed.unrecognized_fields.pop(trust.DEVELOPMENT, None)
        staged: dict[str, AnyMetadata] = {trust.ROOT: new}
        if role == trust.TARGETS:
            staged[trust.TARGETS] = self._next_top()
        return self._finish(staged)

    def renew(self) -> bool:
        """Sign root and targets again for another term; whether it is in force, else it waits for offline keys."""
        with self._alone():
            return self._finish({trust.ROOT: self._next_root(), trust.TARGETS: self._next_top()})

    # --- staging --------------------------------------------------------------------------------

    def adopt(self, signed: Mapping[str, AnyMetadata]) -> bool:
        """Add signatures to what is staged; when enough have come, it is in force.

        Raises:
            TrustError: it is not what is staged here.
        """
        with self._alone():
            merged: dict[str, AnyMetadata] = {}
            for role, theirs in signed.items():
                mine = self.staged(role)
                if mine is None or mine.signed_bytes != theirs.signed_bytes:
                    raise TrustError(
                        f"the {role} metadata in this file is not what is staged here",
                        "Stage it again (`headframe cloud keys stage`) and have that file signed.",
                    )
                mine.signatures.update(theirs.signatures)
                merged[role] = mine
            return self._finish(merged)

    def _finish(self, new: dict[str, AnyMetadata]) -> bool:
        """Sign with what is within reach; in force when every threshold is met, else staged."""
        old = self._root()
        staged = new.get(trust.ROOT) or self.staged(trust.ROOT)
        root = staged.signed if staged and isinstance(staged.signed, Root) else old.signed
        for role, metadata in new.items():
            names = {*root.roles[role].keyids, *(old.signed.roles[role].keyids if role == trust.ROOT else ())}
            self._sign(metadata, sorted(names - metadata.signatures.keys()))
        complete = all(self._holds(role, metadata, old.signed, root) for role, metadata in new.items())
        for role, metadata in new.items():
            write_atomically(self.folder / STAGED / f"{role}.json", metadata.to_bytes(COMPACT))
        if complete:
            if trust.ROOT in new:
                self._write(trust.ROOT, new[trust.ROOT])
            self._publish({role: item for role, item in new.items() if role != trust.ROOT} | self._resigned(new))
            for role in new:
                (self.folder / STAGED / f"{role}.json").unlink(missing_ok=True)
        return complete

    def _resigned(self, new: Mapping[str, AnyMetadata]) -> dict[str, AnyMetadata]:
        """What the parts' roles list, signed again where a new targets metadata has given them other keys."""
        top = new.get(trust.TARGETS)
        if top is None or not isinstance(top.signed, Targets):
            return {}
        found: dict[str, AnyMetadata] = {}
        for role, delegated in delegated_by(top.signed).items():
            path = self._file(role)
            if path is None:
                continue
            listing = Metadata[Targets].from_file(str(path))
            try:
                top.signed.verify_delegate(role, listing.signed_bytes, listing.signatures)
            except RepositoryError:
                listing.signed.version += 1
                listing.signatures.clear()
                self._sign(listing, delegated.keyids)
                found[role] = listing
        return found

    @staticmethod
    def _holds(role: str, metadata: AnyMetadata, old: Root, new: Root) -> bool:
        try:
            for root in (old, new) if role == trust.ROOT else (new,):
                root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except RepositoryError:
            return False
        return True

    def _status(self, role: str, version: int, expires_at_s: float, of: Any) -> RoleStatus:
        here = self.keys.here(of.keyids)
        return RoleStatus(role, version, int(expires_at_s), of.threshold, len(of.keyids), here)


def _list(targets: Targets, path: str, data: bytes, live: Iterable[str]) -> None:
    """Add a manifest to what a role lists; the oldest beyond those kept and those that are live are taken off."""
    kept = set(live)
    names = sorted((name for name in targets.targets if name.rpartition("/")[2] not in kept), key=_sequence)
    for name in names[: max(0, len(names) - KEPT + 1)]:
        del targets.targets[name]
    targets.targets[path] = TargetFile.from_data(path, data, ["sha256"])


def _sequence(path: str) -> int:
    number = path.rpartition("/")[2].removeprefix("r").partition("-")[0]
    return int(number) if number.isdigit() else 0
