"""What a gateway gets when it is enrolled, in one file: who it is, where the broker is, whom it trusts."""

from pathlib import Path

import msgspec

from common.errors import OperatorError
from common.files import write_atomically

FORMAT = "headframe-enrolment-1"
BYTES_MAX = 1024 * 1024
ROOT = "root.json"
"""File of the root of trust in releases: `release_root` of the gateway."""


class Enrolment(msgspec.Struct, frozen=True, kw_only=True):
    """The enrolment bundle, as JSON. `key` is empty when the private key was born on the gateway, as it should be."""

    gateway_id: str
    site_id: str
    host: str
    port: int
    ca: str
    certificate: str
    key: str = ""
    trust: dict[str, str] = {}
    """File name -> text of what is trusted in releases, written beside `ca.pem`: `root.json` is the `release_root`."""
    format: str = FORMAT

    def __repr__(self) -> str:  # the key stays out of logs and tracebacks
        return f"Enrolment({self.gateway_id}, with key={bool(self.key)})"

    def save(self, path: Path) -> None:
        """Write the file, readable by its owner only."""
        write_atomically(path, msgspec.json.format(msgspec.json.encode(self), indent=1))


def read_enrolment(path: Path) -> Enrolment:
    """Raises:
    OperatorError: no such file, or no enrolment.
    """
    try:
        if path.stat().st_size > BYTES_MAX:
            raise OperatorError(f"{path} is too large for an enrolment", "Take the file of `headframe cloud enroll`.")
        found = msgspec.json.decode(path.read_bytes(), type=Enrolment)
    except (OSError, msgspec.DecodeError) as error:
        raise OperatorError(
            f"{path} is no enrolment ({type(error).__name__})", "Take the file of `headframe cloud enroll`."
        ) from error
    if found.format != FORMAT:
        raise OperatorError(f"{path} is of format {found.format!r}", f"This version reads {FORMAT}.")
    return found
