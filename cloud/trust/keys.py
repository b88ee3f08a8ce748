"""Private keys as files, one each: PEM (PKCS #8), readable by their owner only, encrypted where a passphrase is given.

Decides where a key lies and nothing about what it may sign: that is in the metadata. A folder is the centre's own, or a
stick that is put in for a ceremony and goes back into the safe.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from securesystemslib.signer import CryptoSigner, Key

from common.errors import OperatorError
from common.files import write_atomically

ENDING = ".key.pem"
NAME_DIGITS = 12  # of the key id, in the file's name; the whole id is worked out from the key itself


class Keys:
    """All private keys that are within reach.

    Args:
        folders: looked through for key files; the first is the centre's own.
        passphrase: opens those that are encrypted.
    """

    def __init__(self, folders: Sequence[Path], passphrase: str = "") -> None:
        self._folders, self._passphrase = tuple(folders), passphrase
        self._made: dict[str, CryptoSigner] = {}
        self._read: dict[Path, dict[str, CryptoSigner]] | None = None

    def make(self, role: str, folder: Path | None = None) -> Key:
        """Make a key, write it, and return its public half."""
        private = Ed25519PrivateKey.generate()
        signer = CryptoSigner(private)
        path = (folder or self._folders[0]) / f"{role}-{signer.public_key.keyid[:NAME_DIGITS]}{ENDING}"
        write_atomically(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, self._encryption(folder)))
        self._made[signer.public_key.keyid] = signer
        return signer.public_key

    def signers(self, names: Iterable[str]) -> list[CryptoSigner]:
        """The signers within reach among these key ids."""
        wanted = list(names)
        if not self._all().keys() >= set(wanted):
            self._read = None  # another process may have made it since
        known = self._all()
        return [known[name] for name in wanted if name in known]

    def here(self, names: Iterable[str]) -> int:
        """How many of these keys lie in the centre's own folder."""
        return len(_read_folder(self._folders[0], self._passphrase).keys() & set(names))

    def _encryption(self, folder: Path | None) -> KeySerializationEncryption:
        """The centre's own keys must open by themselves after a power cut."""
        if folder is None or not self._passphrase:
            return NoEncryption()
        return BestAvailableEncryption(self._passphrase.encode())

    def _all(self) -> dict[str, CryptoSigner]:
        if self._read is None:
            self._read = {folder: _read_folder(folder, self._passphrase) for folder in self._folders}
        found = dict(self._made)
        for signers in self._read.values():
            found |= signers
        return found


def _read_folder(folder: Path, passphrase: str) -> dict[str, CryptoSigner]:
    made = [_open(path, passphrase) for path in sorted(folder.glob(f"*{ENDING}"))]
    return {signer.public_key.keyid: signer for signer in made}


def _open(path: Path, passphrase: str) -> CryptoSigner:
    data = path.read_bytes()
    secret = passphrase.encode() if b"ENCRYPTED" in data.split(b"\n", 1)[0] else None
    if secret == b"":
        raise OperatorError(f"{path} is encrypted", "Give its passphrase: --ask-passphrase.")
    try:
        private = load_pem_private_key(data, secret)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise OperatorError(f"{path} cannot be opened as a key: {error}", "Is it the right passphrase?") from error
    if not isinstance(private, Ed25519PrivateKey):
        raise OperatorError(f"{path} is no Ed25519 key", "Make keys with `headframe cloud keys init`.")
    return CryptoSigner(private)
