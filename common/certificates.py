"""Certificates as both sides need them: keys, requests, what a certificate says, and the proof of a renewal.

Decides the form (EC P-256, the common name is the gateway id, key and certificate in one file, so that a renewal is one
atomic write); leaves issuing to `cloud.authority`. A private key never leaves this module except into a file.
"""

import datetime as dt
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from cryptography.x509.oid import NameOID

from common.errors import OperatorError, TrustError, WireError
from common.files import write_atomically
from common.messages import Renewal

CENTRE = "headframe-centre"
"""Common name of the centre's certificate; no gateway may have it."""
PEM_BYTES_MAX = 16 * 1024
_RENEWAL = b"headframe renewal v1\0"

Key = ec.EllipticCurvePrivateKey


@dataclass(frozen=True, slots=True)
class Identity:
    """A certificate and the key that belongs to it; the key is in no repr."""

    certificate: x509.Certificate
    key: Key

    def __repr__(self) -> str:
        return f"Identity({name_of(self.certificate)})"

    @property
    def name(self) -> str:
        """The common name: the gateway id."""
        return name_of(self.certificate)

    def save(self, path: Path) -> None:
        """Write key and certificate into one file that only its owner can read, atomically."""
        write_atomically(path, key_pem(self.key) + self.certificate.public_bytes(Encoding.PEM))


def new_key() -> Key:
    """A fresh EC P-256 key: small, and any TLS stack speaks it."""
    return ec.generate_private_key(ec.SECP256R1())


def key_pem(key: Key) -> bytes:
    """PKCS#8 PEM, for a file with mode 0600."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def read_key(data: bytes, where: str) -> Key:
    """Raises:
    OperatorError: no EC key in PEM.
    """
    try:
        key = load_pem_private_key(data, None)
    except (ValueError, TypeError) as error:
        raise OperatorError(f"{where} holds no private key", "Enrol again.") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise OperatorError(f"{where} holds a key of another kind", "Enrol again; keys are EC P-256.")
    return key


def read_identity(path: Path) -> Identity:
    """Key and certificate of one file.

    Raises:
        OperatorError: the file is missing, or holds not both.
    """
    try:
        data = path.read_bytes()
        certificate = x509.load_pem_x509_certificate(data)
    except (OSError, ValueError) as error:
        raise OperatorError(f"{path} holds no certificate", "Enrol: `headframe edge enroll`.") from error
    identity = Identity(certificate, read_key(data, str(path)))
    if identity.key.public_key() != certificate.public_key():
        raise OperatorError(f"key and certificate in {path} do not belong together", "Enrol again.")
    return identity


def read_certificate(pem: bytes) -> x509.Certificate:
    """A certificate that came from a peer.

    Raises:
        WireError: no certificate.
    """
    if len(pem) > PEM_BYTES_MAX:
        raise WireError(f"a certificate of {len(pem)} bytes is over the bound of {PEM_BYTES_MAX}")
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise WireError("that is no certificate in PEM") from error


def name_of(certificate: x509.Certificate) -> str:
    """The common name; empty when there is none, or more than one."""
    names = certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    return str(names[0].value) if len(names) == 1 else ""


def make_request(key: Key, gateway_id: str) -> bytes:
    """A certificate signing request (PEM): proves that whoever asks holds the key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, gateway_id)])
    return x509.CertificateSigningRequestBuilder().subject_name(name).sign(key, SHA256()).public_bytes(Encoding.PEM)


def read_request(pem: bytes) -> tuple[str, ec.EllipticCurvePublicKey]:
    """Name and key of a signing request.

    Raises:
        WireError: no request, not signed by its own key, or a key that is not EC P-256.
    """
    if len(pem) > PEM_BYTES_MAX:
        raise WireError(f"a signing request of {len(pem)} bytes is over the bound of {PEM_BYTES_MAX}")
    try:
        request = x509.load_pem_x509_csr(pem)
        valid, key = request.is_signature_valid, request.public_key()
    except Exception as error:
        raise WireError("that is no signing request in PEM") from error
    names = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if not valid or len(names) != 1:
        raise WireError("the signing request is not signed by its own key, or has not one name")
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise WireError("the signing request has a key that is not EC P-256")
    return str(names[0].value), key


def check_issued(certificate: x509.Certificate, authority: x509.Certificate, now: dt.datetime) -> None:
    """Raises:
    TrustError: the certificate is not of this authority, or not valid now.
    """
    try:
        certificate.verify_directly_issued_by(authority)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise TrustError("the certificate was issued by somebody else") from error
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise TrustError(f"the certificate is valid until {certificate.not_valid_after_utc:%Y-%m-%d}, not now")


def ask_renewal(identity: Identity, new: Key) -> Renewal:
    """A request for a certificate of the same name on a new key, signed with the old one."""
    request = make_request(new, identity.name)
    return Renewal(
        request=request,
        certificate=identity.certificate.public_bytes(Encoding.PEM),
        signature=identity.key.sign(_RENEWAL + request, ec.ECDSA(SHA256())),
    )


def check_renewal(renewal: Renewal, gateway_id: str) -> tuple[x509.Certificate, ec.EllipticCurvePublicKey]:
    """What a renewal proves by itself, whatever broker it came over: the old certificate and the new key.

    Raises:
        WireError: a part of it cannot be read.
        TrustError: it is for another name than the gateway's, or not signed with the key of the old certificate.
    """
    old = read_certificate(renewal.certificate)
    name, key = read_request(renewal.request)
    if not gateway_id == name == name_of(old):
        raise TrustError(f"{gateway_id!r} asks for a certificate of {name!r} with one of {name_of(old)!r}")
    signer = old.public_key()
    if not isinstance(signer, ec.EllipticCurvePublicKey):
        raise TrustError("the old certificate has a key of another kind")
    try:
        signer.verify(renewal.signature, _RENEWAL + renewal.request, ec.ECDSA(SHA256()))
    except InvalidSignature as error:
        raise TrustError("the renewal is not signed with the key of the old certificate") from error
    return old, key
