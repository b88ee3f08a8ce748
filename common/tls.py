"""One TLS context for every link: TLS 1.2 at least, the server's name checked, our own certificate shown.

Decides what a connection must prove; leaves certificates themselves to `common.certificates`.
"""

import logging
import ssl
import time
from pathlib import Path

from common.errors import OperatorError

log = logging.getLogger(__name__)

CLOCK_FLOOR_S = 1_767_225_600  # 2026-01-01: no clock of a working box is earlier
_NO_CHECK_TIME = 0x200000  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, for which Python has no name


def client_context(
    ca_file: Path, cert_file: Path | None = None, key_file: Path | None = None, *, wall_s: float | None = None
) -> ssl.SSLContext:
    """A context for the client's side. Without `key_file` the key stands in `cert_file`, beside the certificate.

    A box whose clock is before `CLOCK_FLOOR_S` (an empty battery, and no time server yet) could verify no certificate
    at all: it checks signature and name of the server, but not the dates, and says so.

    Raises:
        OperatorError: a file is missing or does not hold what it should.
    """
    for path in (ca_file, cert_file, key_file):
        if path and not path.is_file():
            raise OperatorError(f"TLS file {path} does not exist", "Check [broker] in the configuration.")
    try:
        context = ssl.create_default_context(ssl.Purpose.SERVER_AUTH, cafile=str(ca_file))
    except (ssl.SSLError, OSError) as error:
        raise OperatorError(f"{ca_file} is no CA certificate (PEM)", "Take ca.pem from the enrolment again.") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if (time.time() if wall_s is None else wall_s) < CLOCK_FLOOR_S:
        context.verify_flags |= _NO_CHECK_TIME
        log.warning("the clock of this box is before 2026: dates of the broker's certificate are not checked")
    if cert_file:
        show_certificate(context, cert_file, key_file)
    return context


def show_certificate(context: ssl.SSLContext, cert_file: Path, key_file: Path | None = None) -> None:
    """Show this certificate at the next handshake; connections that stand are not touched.

    Raises:
        OperatorError: the files do not hold a certificate and its key.
    """
    try:
        context.load_cert_chain(str(cert_file), str(key_file) if key_file else None)
    except (ssl.SSLError, OSError) as error:
        raise OperatorError(
            f"{cert_file} and its key cannot be used ({error})", "Enrol again: `headframe edge enroll`."
        ) from error
