"""The ceremony: what waits for offline keys leaves as one file, is signed elsewhere, and comes back.

The machine that signs needs no network and nothing of the centre but this file. It shows what is to be signed, worked
out from the metadata itself and never from a description that came with it.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets

from cloud.trust.keys import Keys
from cloud.trust.repository import Repository
from cloud.trust.sets import AnyMetadata
from common import trust
from common.errors import OperatorError, WireError
from common.files import READABLE, write_atomically

FORMAT: Final = "headframe ceremony 1"
FILE_BYTES_MAX: Final = 1024 * 1024


class Ceremony(msgspec.Struct, frozen=True, kw_only=True):
    """The file: what is in force, and what waits; TUF metadata as its own bytes."""

    format: str = FORMAT
    root: bytes
    targets: bytes
    waiting: dict[str, bytes]

    def read(self) -> dict[str, AnyMetadata]:
        """What waits, by role.

        Raises:
            WireError: not metadata.
        """
        try:
            return {
                role: (Metadata[Root] if role == trust.ROOT else Metadata[Targets]).from_bytes(data)
                for role, data in self.waiting.items()
            }
        except RepositoryError as error:
            raise WireError(f"not metadata: {error}") from error


def stage(repository: Repository, path: Path) -> Ceremony:
    """Write what waits for signatures.

    Raises:
        OperatorError: nothing waits.
    """
    found = {role: repository.staged(role) for role in (trust.ROOT, trust.TARGETS)}
    waiting = {role: metadata.to_bytes() for role, metadata in found.items() if metadata}
    if not waiting:
        raise OperatorError("nothing waits for a signature", "A release or a rotation is staged when it needs one.")
    made = Ceremony(root=repository.root(), targets=repository.top(), waiting=waiting)
    write_atomically(path, msgspec.json.encode(made), READABLE)
    return made


def load(path: Path) -> Ceremony:
    """Read the file.

    Raises:
        OperatorError: it cannot be read, or is another file.
    """
    try:
        if path.stat().st_size > FILE_BYTES_MAX:
            raise OperatorError(f"{path} is too large for a ceremony's file", "Give the file of `keys stage`.")
        found = msgspec.json.decode(path.read_bytes(), type=Ceremony)
    except (OSError, msgspec.DecodeError) as error:
        raise OperatorError(f"cannot read {path}: {error}", "Give the file of `keys stage`.") from error
    if found.format != FORMAT:
        raise OperatorError(f"{path} is of another format: {found.format[:40]!r}", "Give the file of `keys stage`.")
    return found


def sign(path: Path, keys: Keys) -> dict[str, tuple[int, int]]:
    """Sign what waits in a file with the keys within reach, and write it back.

    Returns:
        Role -> signatures that count, and how many it needs.

    Raises:
        OperatorError: none of the keys within reach is asked for.
    """
    ceremony = load(path)
    waiting = ceremony.read()
    signed = 0
    for role, metadata in waiting.items():
        for signer in keys.signers(_asked(ceremony, waiting, role)):
            metadata.sign(signer, append=True)
            signed += 1
    if not signed:
        raise OperatorError("none of these keys is asked for", "Give the folder of the root and targets keys.")
    new = {role: metadata.to_bytes() for role, metadata in waiting.items()}
    write_atomically(path, msgspec.json.encode(msgspec.structs.replace(ceremony, waiting=new)), READABLE)
    return progress(msgspec.structs.replace(ceremony, waiting=new))


def progress(ceremony: Ceremony) -> dict[str, tuple[int, int]]:
    """Role -> signatures that count towards its (new) threshold, and the threshold."""
    waiting = ceremony.read()
    root = _root(ceremony, waiting)
    found = {}
    for role, metadata in waiting.items():
        result = root.get_verification_result(role, metadata.signed_bytes, metadata.signatures)
        found[role] = len(result.signed), result.threshold
    return found


def describe(ceremony: Ceremony) -> Iterator[str]:
    """What signing this file would bring into force, line by line."""
    waiting = ceremony.read()
    for role, new in waiting.items():
        old: AnyMetadata = (
            Metadata[Root].from_bytes(ceremony.root)
            if role == trust.ROOT
            else Metadata[Targets].from_bytes(ceremony.targets)
        )
        until = f"{new.signed.expires:%Y-%m-%d}"
        yield f"{role} version {new.signed.version} (in force: {old.signed.version}), until {until}"
        if isinstance(new.signed, Root) and isinstance(old.signed, Root):
            yield from _changes({n: r.keyids for n, r in old.signed.roles.items()}, new.signed.roles)
        elif isinstance(new.signed, Targets) and isinstance(old.signed, Targets):
            before, after = (
                item.delegations.roles or {} if item.delegations else {} for item in (old.signed, new.signed)
            )
            yield from _changes({name: item.keyids for name, item in before.items()}, after)
            for path, target in new.signed.targets.items():
                if old.signed.targets.get(path) != target:
                    yield f"  + {path}: {target.length} bytes, sha256 {target.hashes['sha256']}"
            yield from (f"  - {path}" for path in old.signed.targets if path not in new.signed.targets)


def _changes(before: Mapping[str, list[str]], after: Mapping[str, object]) -> Iterator[str]:
    for name, role in after.items():
        names, threshold = getattr(role, "keyids", []), getattr(role, "threshold", 0)
        if before.get(name) != names:
            keys = ", ".join(item[:12] for item in names)
            yield f"  keys of {name}: {threshold} of {len(names)}: {keys}"


def _asked(ceremony: Ceremony, waiting: Mapping[str, AnyMetadata], role: str) -> list[str]:
    """The keys whose signature counts: the role's new ones, and for a root those of the root before it."""
    names = set(_root(ceremony, waiting).roles[role].keyids)
    if role == trust.ROOT:
        names |= set(Metadata[Root].from_bytes(ceremony.root).signed.roles[role].keyids)
    return sorted(names)


def _root(ceremony: Ceremony, waiting: Mapping[str, AnyMetadata]) -> Root:
    staged = waiting.get(trust.ROOT)
    if staged is not None and isinstance(staged.signed, Root):
        return staged.signed
    return Metadata[Root].from_bytes(ceremony.root).signed
