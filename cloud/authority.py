"""The group's own certificate authority: who may connect, as whom, and who no longer.

Small on purpose: one key in `data_dir/ca`, one file per certificate issued, and a revocation list that mosquitto and
EMQX read. Decides names and lifetimes; that a name reaches only its own topics is the broker's access list.
"""

import datetime as dt
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.certificates import (
    CENTRE,
    Identity,
    Key,
    check_issued,
    check_renewal,
    key_pem,
    name_of,
    new_key,
    read_key,
)
from common.errors import OperatorError, TrustError
from common.files import READABLE, write_atomically
from common.ids import check_name
from common.messages import Renewal

CENTRE_FILE = "centre.pem"
"""Key and certificate of the centre, in the authority's folder."""
AUTHORITY_DAYS = 7300  # longer than any box lives: replacing it means enrolling the whole fleet again
GATEWAY_DAYS = 365
SERVER_DAYS = 825
EARLIER = dt.timedelta(days=1)
"""A certificate is valid from a day ago: clocks of gateways are behind."""


@dataclass(frozen=True, slots=True)
class Issued:
    """A certificate that this authority has issued."""

    name: str
    serial: int
    until: dt.datetime
    revoked: bool
    client: bool
    """A gateway's or the centre's; otherwise a broker's."""


class Authority:
    """Opened from its folder: `ca.pem`, `ca.key` (owner only), `crl.pem`, `issued/<serial>.pem`."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self._folder, self._identity = folder, identity

    @classmethod
    def create(cls, folder: Path, group: str, now: dt.datetime) -> "Authority":
        """Make key, certificate and an empty revocation list.

        Raises:
            OperatorError: there is one already: a second would lock out every gateway of the first.
        """
        if (folder / "ca.key").exists():
            raise OperatorError(f"{folder} holds an authority already", "Keep it, or move the folder away.")
        key = new_key()
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{group} Headframe CA")])
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - EARLIER)
            .not_valid_after(now + dt.timedelta(days=AUTHORITY_DAYS))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(signs=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        made = cls(folder, Identity(builder.sign(key, SHA256()), key))
        write_atomically(folder / "ca.pem", made.certificate_pem, READABLE)
        made._write_list([], now)
        write_atomically(folder / "ca.key", key_pem(key))  # last: its presence says that the rest is there
        return made

    @classmethod
    def open(cls, folder: Path) -> "Authority":
        """Raises:
        OperatorError: there is none in the folder, or its key was moved away (and renewals need it).
        """
        try:
            certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
            key = read_key((folder / "ca.key").read_bytes(), str(folder / "ca.key"))
        except (OSError, ValueError) as error:
            raise OperatorError(f"there is no authority in {folder}", "`headframe cloud ca init` makes one.") from error
        return cls(folder, Identity(certificate, key))

    @property
    def certificate_pem(self) -> bytes:
        """`ca.pem`: what everybody verifies the others with."""
        return self._identity.certificate.public_bytes(Encoding.PEM)

    def issue(self, name: str, key: ec.EllipticCurvePublicKey, now: dt.datetime, days: int = GATEWAY_DAYS) -> bytes:
        """A client certificate (PEM) for a gateway, or for the centre when the name is `CENTRE`.

        Raises:
            OperatorError: not a name.
        """
        check_name("gateway", name)
        return self._issue(name, key, now, days, [ExtendedKeyUsageOID.CLIENT_AUTH], None)

    def issue_server(self, hosts: Sequence[str], now: dt.datetime) -> tuple[bytes, Key]:
        """Certificate (PEM) and key of the broker, for the host names and addresses that gateways connect to."""
        key = new_key()
        local = ("localhost", "127.0.0.1")  # the centre beside its broker
        names = x509.SubjectAlternativeName([_host(host) for host in dict.fromkeys([*hosts, *local])])
        return self._issue(hosts[0], key.public_key(), now, SERVER_DAYS, [ExtendedKeyUsageOID.SERVER_AUTH], names), key

    def equip(self, hosts: Sequence[str], now: dt.datetime) -> None:
        """What the centre and its broker need: `centre.pem`, and `server.pem` with `server.key` for these hosts."""
        key = new_key()
        centre = self.issue(CENTRE, key.public_key(), now, SERVER_DAYS)
        Identity(x509.load_pem_x509_certificate(centre), key).save(self._folder / CENTRE_FILE)
        server, server_key = self.issue_server(hosts, now)
        write_atomically(self._folder / "server.key", key_pem(server_key))
        write_atomically(self._folder / "server.pem", server, READABLE)

    def renew(self, renewal: Renewal, gateway_id: str, now: dt.datetime) -> bytes:
        """The next certificate (PEM) of a gateway that holds a valid one.

        Raises:
            TrustError: what it holds is of another name or authority, has expired or is revoked.
            WireError: the request cannot be read.
        """
        old, key = check_renewal(renewal, gateway_id)
        check_issued(old, self._identity.certificate, now)
        if gateway_id == CENTRE or old.serial_number in self._revoked():
            raise TrustError(f"the certificate of {gateway_id} is revoked, or is no gateway's")
        return self.issue(gateway_id, key, now)

    def revoke(self, name: str, now: dt.datetime) -> int:
        """Put all certificates of a name on the revocation list; returns how many were not there yet.

        Raises:
            OperatorError: no certificate of that name was issued here.
        """
        mine = [item for item in self.issued() if item.name == name]
        if not mine:
            raise OperatorError(f"no certificate of {name!r} was issued here", "`headframe cloud ca list` names all.")
        known = self._revoked()
        fresh = [item.serial for item in mine if item.serial not in known]
        if fresh:
            self._write_list([*known, *fresh], now)
        return len(fresh)

    def revoke_serial(self, serial: int, now: dt.datetime) -> None:
        """Put one certificate on the list: a name that was renewed keeps its newest."""
        known = self._revoked()
        if serial not in known:
            self._write_list([*known, serial], now)

    def issued(self) -> list[Issued]:
        """Every certificate that was issued here, by name and end."""
        revoked = self._revoked()
        found = []
        for path in (self._folder / "issued").glob("*.pem"):
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            serial, until = certificate.serial_number, certificate.not_valid_after_utc
            usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
            client = ExtendedKeyUsageOID.CLIENT_AUTH in usage
            found.append(Issued(name_of(certificate), serial, until, serial in revoked, client))
        return sorted(found, key=lambda item: (item.name, item.until))

    def barred(self) -> frozenset[str]:
        """Names whose certificates are all revoked: enrolled again, a name is admitted again."""
        items = self.issued()
        return frozenset(item.name for item in items if item.revoked) - {i.name for i in items if not i.revoked}

    def enrolled(self, now: dt.datetime) -> list[str]:
        """Gateways with a certificate that is valid: the broker's users."""
        return sorted({i.name for i in self.issued() if i.client and not i.revoked and i.until > now} - {CENTRE})

    def _revoked(self) -> dict[int, dt.datetime]:
        """Serial -> when, from the list itself: it is what counts."""
        found = x509.load_pem_x509_crl((self._folder / "crl.pem").read_bytes())
        return {entry.serial_number: entry.revocation_date_utc for entry in found}

    def _write_list(self, serials: Sequence[int], now: dt.datetime) -> None:
        """It is valid as long as the authority: a broker refuses *everybody* once its list has expired."""
        before = self._revoked() if (self._folder / "crl.pem").exists() else {}
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._identity.certificate.subject)
            .last_update(now - EARLIER)
            .next_update(self._identity.certificate.not_valid_after_utc)
        )
        for serial in serials:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(before.get(serial, now))
            builder = builder.add_revoked_certificate(entry.build())
        signed = builder.sign(self._identity.key, SHA256())
        write_atomically(self._folder / "crl.pem", signed.public_bytes(Encoding.PEM), READABLE)

    def _issue(
        self,
        name: str,
        key: ec.EllipticCurvePublicKey,
        now: dt.datetime,
        days: int,
        purposes: list[x509.ObjectIdentifier],
        names: x509.SubjectAlternativeName | None,
    ) -> bytes:
        issuer = self._identity
        until = min(now + dt.timedelta(days=days), issuer.certificate.not_valid_after_utc)
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer.certificate.subject)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(min(now, until) - EARLIER)
            .not_valid_after(until)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(signs=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key()), critical=False)
        )
        if names:
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(issuer.key, SHA256())
        pem = certificate.public_bytes(Encoding.PEM)
        write_atomically(self._folder / "issued" / f"{certificate.serial_number:040x}.pem", pem, READABLE)
        return pem


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs: bool) -> x509.KeyUsage:
    """An authority signs certificates and lists; everybody else proves who they are."""
    return x509.KeyUsage(
        digital_signature=not signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs,
        crl_sign=signs,
        encipher_only=False,
        decipher_only=False,
    )
