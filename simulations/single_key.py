"""One key in place of roles: the simplest `edge.trust.Trust`, for tests and benchmarks that are about installing."""

from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from common.errors import OperatorError, TrustError
from common.files import write_atomically
from common.manifest import Manifest, decode_manifest, release_id
from common.messages import Desired

_DOMAIN = b"headframe release manifest v1\0"


class Signer:
    """The private half; never printed, never sent."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key

    @classmethod
    def open(cls, path: Path) -> "Signer":
        """Read the key file (32 raw bytes), or make one, readable by its owner only."""
        if not path.exists():
            key = Ed25519PrivateKey.generate()
            raw = key.private_bytes(Encoding.Raw, PrivateFormat.Raw, NoEncryption())
            write_atomically(path, raw)  # mkstemp makes it 0600
            return cls(key)
        raw = path.read_bytes()
        if len(raw) != 32:
            raise OperatorError(f"{path} is not a signing key", "Restore the 32-byte key file from its backup.")
        return cls(Ed25519PrivateKey.from_private_bytes(raw))

    def sign(self, manifest: bytes) -> bytes:
        """64-byte signature over the manifest's bytes."""
        return self._key.sign(_DOMAIN + manifest)

    @property
    def public_hex(self) -> str:
        """What `SingleKey` takes: 64 hex digits."""
        return self._key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def verify(manifest: bytes, signature: bytes, public_hex: str) -> None:
    """Check a manifest against the key that the gateway trusts.

    Raises:
        TrustError: the signature is not by that key over these bytes.
        OperatorError: `public_hex` is no key.
    """
    try:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_hex))
    except ValueError as error:
        raise OperatorError("the key is not 64 hex digits", "Give `Signer.public_hex`.") from error
    try:
        key.verify(signature, _DOMAIN + manifest)
    except InvalidSignature as error:
        raise TrustError("the release manifest is not signed by the key this gateway trusts") from error


class SingleKey:
    """One key signs every release.

    Args:
        release_key: public key (hex) that manifests must be signed with.
    """

    def __init__(self, release_key: str) -> None:
        self._key = release_key

    def check(self, desired: Desired, now_ns: int) -> Manifest:
        """See `edge.trust.Trust.check`."""
        manifest = self.recall(desired)
        if manifest.expires_at_ns < now_ns:
            raise TrustError(f"release {release_id(manifest)} has expired", "Publish it again at the centre.")
        return manifest

    def recall(self, desired: Desired) -> Manifest:
        """See `edge.trust.Trust.recall`."""
        verify(desired.manifest, desired.signature, self._key)
        return decode_manifest(desired.manifest)
