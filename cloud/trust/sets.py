"""The signed metadata in a folder: read, written, and the order in which files appear.

The timestamp is written last: whoever reads sees a consistent set, after a crash too. Signs with whatever keys are
within reach; what may be signed is decided by `cloud.trust.repository`.
"""

import fcntl
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from datetime import datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import DelegatedRole, Metadata, MetaFile, Root, Snapshot, Targets, Timestamp
from tuf.api.serialization.json import JSONSerializer

from cloud.trust.keys import Keys
from common import trust
from common.clock import Clock
from common.errors import OperatorError
from common.files import write_atomically

DAY_S: Final = 24 * 3600
LIFETIME_S: Final = {
    trust.ROOT: 1100 * DAY_S,  # renewed by a ceremony; three years, and `keys status` says so in time
    trust.TARGETS: 400 * DAY_S,  # as a release
    trust.SNAPSHOT: 60 * DAY_S,
    trust.TIMESTAMP: 30 * DAY_S,  # how long a gateway may be told nothing new without noticing
    trust.ASSIGNMENTS: 60 * DAY_S,
}
RENEW_S: Final = {trust.SNAPSHOT: 30 * DAY_S, trust.TIMESTAMP: DAY_S, trust.ASSIGNMENTS: 20 * DAY_S}
"""Age at which what online keys sign is signed anew."""
STAGED: Final = "staged"
COMPACT: Final = JSONSerializer(compact=True)

AnyMetadata = Metadata[Root] | Metadata[Targets] | Metadata[Snapshot] | Metadata[Timestamp]


class SignedSet:
    """The newest consistent set of metadata.

    Args:
        folder: holds `N.role.json` of every version that a gateway may still ask for, `timestamp.json`, and `staged/`.
        keys: those within reach.
    """

    def __init__(self, folder: Path, keys: Keys, clock: Clock) -> None:
        self.folder, self.keys, self._clock = folder, keys, clock
        self._thread_lock = threading.Lock()

    @property
    def exists(self) -> bool:
        """Whether keys were ever made here."""
        return (self.folder / "timestamp.json").is_file()

    def state(self) -> int:
        """Changes whenever any metadata does."""
        return (self.folder / "timestamp.json").stat().st_mtime_ns

    def root(self) -> bytes:
        """The newest root: what a gateway is enrolled with."""
        return (self.folder / f"{self.root_version()}.root.json").read_bytes()

    def top(self) -> bytes:
        """The targets metadata in force."""
        return self._top().to_bytes(COMPACT)

    def root_version(self) -> int:
        """Of the newest root."""
        return max(int(path.name.split(".")[0]) for path in self.folder.glob("*.root.json"))

    def staged(self, role: str) -> Metadata[Root] | Metadata[Targets] | None:
        """What waits for signatures."""
        path = self.folder / STAGED / f"{role}.json"
        if not path.is_file():
            return None
        data = path.read_bytes()
        return Metadata[Root].from_bytes(data) if role == trust.ROOT else Metadata[Targets].from_bytes(data)

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """No other thread and no other process (a command beside the running centre) changes the metadata."""
        with self._thread_lock, (self.folder.parent / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _publish(self, changed: Mapping[str, AnyMetadata]) -> None:
        """Write new versions, then the snapshot that names them, then the timestamp that names the snapshot."""
        known = self._snapshot().signed if self.exists else None
        meta = dict(known.meta) if known else {}
        for role, metadata in changed.items():
            data = self._write(role, metadata)
            meta[f"{role}.json"] = MetaFile.from_data(metadata.signed.version, data, ["sha256"])
        snapshot = Metadata(
            Snapshot(version=known.version + 1 if known else 1, expires=self._expiry(trust.SNAPSHOT), meta=meta)
        )
        self._sign(snapshot, self._root().signed.roles[trust.SNAPSHOT].keyids)
        data = self._write(trust.SNAPSHOT, snapshot)
        version = self._timestamp().signed.version + 1 if self.exists else 1
        self._stamp(version, MetaFile.from_data(snapshot.signed.version, data, ["sha256"]))
        self._sweep(snapshot.signed)

    def _sweep(self, snapshot: Snapshot) -> None:
        """Remove versions that nobody is told of any more; roots stay, a gateway may have slept through many."""
        wanted = {file_name(name.removesuffix(".json"), item.version) for name, item in snapshot.meta.items()}
        wanted |= {f"{snapshot.version}.snapshot.json", "timestamp.json"}
        for path in self.folder.glob("*.json"):
            if path.name not in wanted and not path.name.endswith(".root.json"):
                path.unlink()

    def _stamp(self, version: int, snapshot: MetaFile) -> None:
        signed_at: dict[str, Any] = {trust.SIGNED_AT: self._now_s()}
        timestamp = Metadata(
            Timestamp(
                version=version,
                expires=self._expiry(trust.TIMESTAMP),
                snapshot_meta=snapshot,
                unrecognized_fields=signed_at,
            )
        )
        self._sign(timestamp, self._root().signed.roles[trust.TIMESTAMP].keyids)
        write_atomically(self.folder / "timestamp.json", timestamp.to_bytes(COMPACT))

    def _write(self, role: str, metadata: AnyMetadata) -> bytes:
        data = metadata.to_bytes(COMPACT)
        write_atomically(self.folder / file_name(role, metadata.signed.version), data)
        return data

    def _sign(self, metadata: AnyMetadata, names: Iterable[str]) -> None:
        for signer in self.keys.signers(names):
            metadata.sign(signer, append=True)

    def _file(self, role: str) -> Path | None:
        """The file of a delegated role, of the version that the snapshot names; None before its first release."""
        meta = self._snapshot().signed.meta.get(f"{role}.json")
        return self.folder / file_name(role, meta.version) if meta else None

    def _current(self, role: str) -> AnyMetadata:
        if role == trust.ROOT:
            return self._root()
        if role == trust.TARGETS:
            return self._top()
        return self._snapshot() if role == trust.SNAPSHOT else self._timestamp()

    def _root(self) -> Metadata[Root]:
        return Metadata[Root].from_bytes(self.root())

    def _timestamp(self) -> Metadata[Timestamp]:
        return Metadata[Timestamp].from_file(str(self.folder / "timestamp.json"))

    def _snapshot(self) -> Metadata[Snapshot]:
        version = self._timestamp().signed.snapshot_meta.version
        return Metadata[Snapshot].from_file(str(self.folder / f"{version}.snapshot.json"))

    def _top(self) -> Metadata[Targets]:
        version = self._snapshot().signed.meta["targets.json"].version
        return Metadata[Targets].from_file(str(self.folder / f"{version}.targets.json"))

    def _is_sealed(self) -> bool:
        """Whether snapshot and timestamp are of the newest root: a crash right after a rotation leaves the old ones."""
        root = self._root().signed
        try:
            for role in (trust.SNAPSHOT, trust.TIMESTAMP):
                metadata = self._current(role)
                root.verify_delegate(role, metadata.signed_bytes, metadata.signatures)
        except RepositoryError:
            return False
        return True

    def _next_root(self) -> Metadata[Root]:
        """The next version of root, unsigned; of what is staged where something is."""
        staged = self.staged(trust.ROOT)
        if staged is not None and isinstance(staged.signed, Root):
            return Metadata(deepcopy(staged.signed))
        new = Metadata(deepcopy(self._root().signed))
        new.signed.version, new.signed.expires = new.signed.version + 1, self._expiry(trust.ROOT)
        return new

    def _next_top(self) -> Metadata[Targets]:
        """The next version of targets, unsigned; of what is staged where something is."""
        staged = self.staged(trust.TARGETS)
        if staged is not None and isinstance(staged.signed, Targets):
            return Metadata(deepcopy(staged.signed))
        new = Metadata(deepcopy(self._top().signed))
        new.signed.version, new.signed.expires = new.signed.version + 1, self._expiry(trust.TARGETS)
        return new

    def _expiry(self, role: str) -> datetime:
        return trust.moment((self._now_s() + LIFETIME_S[role]) * 10**9)

    def _now_s(self) -> int:
        return self._clock.wall_ns() // 10**9


def delegated_by(targets: Targets) -> dict[str, DelegatedRole]:
    """The roles that targets delegates to, by name; they may be added to."""
    if targets.delegations is None or targets.delegations.roles is None:
        raise OperatorError("the targets metadata delegates to nobody", "Restore it from its backup.")
    return targets.delegations.roles


def file_name(role: str, version: int) -> str:
    return f"{version}.{quote(role, safe='')}.json"
