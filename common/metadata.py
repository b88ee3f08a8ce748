"""What a gateway trusts: TUF metadata, verified from the root that it was enrolled with.

Decides whether the centre's roles stand behind a release and whether this gateway is the one that is meant. The client
workflow (chain of roots, rollback, freeze, mix-and-match, thresholds) is `tuf.ngclient.Updater`'s; ours are the bundle
it reads from (the message itself), the bounds, the time, the assignment, and that what is known survives a power cut:
all of it is one file, replaced whole.
"""

import contextlib
import logging
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import msgspec
from tuf.api.exceptions import DownloadError, DownloadHTTPError, RepositoryError
from tuf.api.metadata import Metadata, Root, Targets, Timestamp
from tuf.api.serialization import DeserializationError
from tuf.ngclient import FetcherInterface, Updater, UpdaterConfig

from common import trust
from common.errors import OperatorError, TrustError, WireError
from common.files import write_atomically
from common.manifest import Manifest, decode_manifest, release_id
from common.messages import Desired

log = logging.getLogger(__name__)

REMEMBERED_MAX = 64  # manifests: what runs, what ran before, and what was desired lately
STATE: Final = "trusted"
SCRATCH: Final = "scratch-"
SOURCE: Final = "bundle:///"
BOUNDS: Final = UpdaterConfig(
    max_root_rotations=trust.ROOTS_MAX,
    max_delegations=trust.DELEGATIONS_MAX,
    root_max_length=trust.ROOT_BYTES_MAX,
    timestamp_max_length=trust.TIMESTAMP_BYTES_MAX,
    snapshot_max_length=trust.SNAPSHOT_BYTES_MAX,
    targets_max_length=trust.TARGETS_BYTES_MAX,
)


class Trusted(msgspec.Struct, frozen=True):
    """All that is remembered, in one file."""

    files: dict[str, bytes] = {}
    """The updater's own files, by path within its folder; each was verified before it came here."""
    assignment: bytes = b""
    """The last one that was followed: an earlier one is not followed any more."""
    manifests: tuple[bytes, ...] = ()
    """Digests of manifests that were trusted, newest first."""


class _Bundle(FetcherInterface):
    """The files that came with the message, as if they were fetched one by one."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self._files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        data = self._files.get(url.removeprefix(SOURCE))
        if data is None:
            raise DownloadHTTPError(f"{url.removeprefix(SOURCE)} is not in the message", 404)
        return iter((data,))


class TrustedMetadata:
    """The installer's trust, by TUF roles.

    Args:
        folder: of this object alone; holds one file.
        root: the root of trust that the gateway was enrolled with, as TUF's `root.json`.
        gateway_id: whose assignments are followed.

    Raises:
        OperatorError: `root` is no root metadata signed by its own threshold of keys.
    """

    def __init__(self, folder: Path, root: bytes, gateway_id: str) -> None:
        self._folder, self._root, self._gateway_id = folder, root, gateway_id
        check_root(root)
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(f"{SCRATCH}*"):  # of a run that was cut short; nothing in there was believed yet
            for path in sorted(left.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
            left.rmdir()

    def check(self, desired: Desired, now_ns: int) -> Manifest:
        """The manifest that may be installed now.

        Args:
            now_ns: the latest time that there is reason to believe.

        Raises:
            TrustError: not signed by whom it must be, expired, or meant for another gateway.
            WireError: over a bound, or what is signed is no manifest.
            EnvironmentFault: what was learnt cannot be written.
        """
        _check_sizes(desired)
        known = self._known() or Trusted()
        with TemporaryDirectory(prefix=SCRATCH, dir=self._folder) as name:
            folder = Path(name)
            _lay_out(folder, known.files)
            try:
                manifest, assignment = self._verify(desired, known, folder, now_ns)
            except (RepositoryError, DownloadError) as error:
                raise TrustError(f"the release's metadata does not hold: {_words(error)}") from error
            else:
                mine = trust.digest(desired.manifest)
                others = tuple(item for item in known.manifests if item != mine)
                known = Trusted(known.files, assignment, (mine, *others)[:REMEMBERED_MAX])
            finally:
                # A root or timestamp that did verify stays known even when what came with it did not.
                self._remember(msgspec.structs.replace(known, files=_collect(folder)))
        return manifest

    def recall(self, desired: Desired) -> Manifest:
        """The manifest of a release that was trusted here before. Nothing expires: inference goes on.

        Raises:
            TrustError: these are not the bytes that were trusted.
            WireError: it is no manifest.
        """
        known = self._known()
        if known is None:  # inference goes on: the manifest lies on the same disk as the file that is missing
            log.warning("what this gateway trusts is not readable in %s; it is learnt anew", self._folder)
        elif trust.digest(desired.manifest) not in known.manifests:
            raise TrustError("this manifest was never trusted here")
        return decode_manifest(desired.manifest)

    def _verify(self, desired: Desired, known: Trusted, folder: Path, now_ns: int) -> tuple[Manifest, bytes]:
        updater = Updater(str(folder), SOURCE, fetcher=_Bundle(desired.metadata), config=BOUNDS, bootstrap=self._root)
        # The updater knows no clock but the system's; a gateway that woke in 1970 knows better.
        updater._trusted_set.reference_time = trust.moment(now_ns)
        updater.refresh()
        now = max(trust.moment(now_ns), _signed_at(folder))
        top = Metadata[Targets].from_file(str(folder / "targets.json")).signed
        assignment = _follow(desired, known.assignment, top, self._gateway_id, now)
        manifest = decode_manifest(desired.manifest)
        if manifest.expires_at_ns < int(now.timestamp()) * 10**9:
            raise TrustError(f"release {release_id(manifest)} has expired", "Publish it again at the centre.")
        _stand_behind(updater, desired, manifest)
        return manifest, assignment

    def _known(self) -> Trusted | None:
        try:
            return msgspec.msgpack.decode((self._folder / STATE).read_bytes(), type=Trusted)
        except (OSError, msgspec.DecodeError):
            return None

    def _remember(self, known: Trusted) -> None:
        if known != self._known():
            write_atomically(self._folder / STATE, msgspec.msgpack.encode(known))


def check_root(data: bytes) -> int:
    """The version of a root of trust.

    Raises:
        OperatorError: no root metadata, or not signed by its own threshold of keys.
    """
    try:
        root = Metadata[Root].from_bytes(data)
        root.signed.verify_delegate(trust.ROOT, root.signed_bytes, root.signatures)
    except (RepositoryError, ValueError, AttributeError) as error:  # other metadata has nobody to delegate to
        raise OperatorError(
            f"release_root is not a root of trust: {error}", "Copy the file that `headframe cloud keys root` writes."
        ) from error
    return int(root.signed.version)


def read_root(path: Path) -> bytes:
    """The root of trust that the gateway was enrolled with.

    Raises:
        OperatorError: it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise OperatorError(
            f"cannot read release_root {path}: {error.strerror}",
            "Copy the file that `headframe cloud keys root` writes.",
        ) from error


def is_development(root: bytes) -> bool:
    """Whether the centre made this root with all keys on its own machine."""
    return bool(Metadata[Root].from_bytes(root).signed.unrecognized_fields.get(trust.DEVELOPMENT))


def _check_sizes(desired: Desired) -> None:
    """Bounds before anything is looked into."""
    files = desired.metadata
    if len(desired.manifest) > trust.MANIFEST_BYTES_MAX or len(desired.base) > trust.MANIFEST_BYTES_MAX:
        raise WireError(f"a manifest of more than {trust.MANIFEST_BYTES_MAX} bytes")
    if len(files) > trust.BUNDLE_FILES_MAX or sum(map(len, files.values())) > trust.BUNDLE_BYTES_MAX:
        raise WireError(f"metadata of more than {trust.BUNDLE_BYTES_MAX} bytes in {trust.BUNDLE_FILES_MAX} files")
    if len(desired.assignment) > trust.ASSIGNMENT_BYTES_MAX:
        raise WireError(f"an assignment of more than {trust.ASSIGNMENT_BYTES_MAX} bytes")


def _follow(desired: Desired, followed: bytes, top: Targets, gateway_id: str, now: datetime) -> bytes:
    """The assignment, if it is for this gateway, for this manifest, in force, and not older than the last followed."""
    new = _read_assignment(desired.assignment, top)
    target = new.targets.get(trust.assignment_path(gateway_id))
    if target is None or len(new.targets) != 1:
        raise TrustError(f"the assignment is not for gateway {gateway_id}")
    if new.is_expired(now):
        raise TrustError("the assignment has expired", "The centre renews it as soon as this gateway hears from it.")
    try:
        target.verify_length_and_hashes(desired.manifest)
    except RepositoryError as error:
        raise TrustError("the assignment is for another release than the one that came with it") from error
    if followed and followed != desired.assignment:
        with contextlib.suppress(RepositoryError):  # signed by a key that is no longer trusted: it binds nobody
            last = _read_assignment(followed, top)
            same = last.targets.get(trust.assignment_path(gateway_id)) == target
            if new.version < last.version or (new.version == last.version and not same):
                raise TrustError(f"the assignment is number {new.version}, after number {last.version}")
    return desired.assignment


def _read_assignment(data: bytes, top: Targets) -> Targets:
    signed = Metadata[Targets].from_bytes(data)
    if signed.signed.type != Targets.type:
        raise RepositoryError("the assignment is of another type")
    try:
        top.verify_delegate(trust.ASSIGNMENTS, signed.signed_bytes, signed.signatures)
    except ValueError as error:
        raise RepositoryError(f"nobody may assign releases: {error}") from error
    return signed.signed


def _stand_behind(updater: Updater, desired: Desired, manifest: Manifest) -> None:
    """Targets lists the release, or lists its base while the role of every part that differs lists the release."""
    name = release_id(manifest)
    whole = updater.get_targetinfo(trust.release_path(name))
    if whole is not None:
        whole.verify_length_and_hashes(desired.manifest)
        return
    if not desired.base:
        raise TrustError(f"no role stands behind release {name}")
    base = decode_manifest(desired.base)
    listed = updater.get_targetinfo(trust.release_path(release_id(base)))
    if listed is None:
        raise TrustError(f"no role stands behind release {release_id(base)}, the base of {name}")
    listed.verify_length_and_hashes(desired.base)
    for role in trust.roles_behind(base, manifest):
        part = updater.get_targetinfo(trust.part_path(role, name))
        if part is None:
            raise TrustError(f"release {name} changes what {role} stands for, and {role} does not list it")
        part.verify_length_and_hashes(desired.manifest)


def _signed_at(folder: Path) -> datetime:
    """When the trusted timestamp was signed: it cannot be earlier now."""
    timestamp = Metadata[Timestamp].from_file(str(folder / "timestamp.json")).signed
    seconds = timestamp.unrecognized_fields.get(trust.SIGNED_AT, 0)
    if not isinstance(seconds, int) or not 0 <= seconds <= timestamp.expires.timestamp():
        raise TrustError("the timestamp was signed after it expires")
    return trust.moment(seconds * 10**9)


def _lay_out(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def _collect(folder: Path) -> dict[str, bytes]:
    """The updater's files; `root.json` is a link that it makes anew."""
    paths = (path for path in sorted(folder.rglob("*.json")) if not path.is_symlink())
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def _words(error: Exception) -> str:
    inner = error.__cause__ if isinstance(error, DownloadError | DeserializationError) else None
    return str(inner or error) or type(error).__name__
