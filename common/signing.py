"""Ed25519 signatures over release manifests. The centre holds the private key, gateways only the public one."""

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
        """What a gateway's `release_key` holds: 64 hex digits."""
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
        raise OperatorError("release_key is not 64 hex digits", "Copy it from `headframe cloud key`.") from error
    try:
        key.verify(signature, _DOMAIN + manifest)
    except InvalidSignature as error:
        raise TrustError("the release manifest is not signed by the key this gateway trusts") from error
