"""Which life of the spool this is: a new one begins with a new file, or when the file is an old image of itself.

The spool counts its openings, and so does a small file beside it. A spool that was restored from an image lags behind
that file. An image of the whole disk takes the file with it: then the centre notices that numbers it has seen come
again, and asks for a new epoch (`Receipt.renew`).
"""

import json
import logging
import secrets
from pathlib import Path

from common.files import write_atomically

log = logging.getLogger(__name__)

NAME = "spool.epoch"


def new_epoch() -> str:
    """A name that no other life has."""
    return secrets.token_hex(8)


class EpochMark:
    """The file beside the spool."""

    def __init__(self, spool: Path) -> None:
        self._path = spool.with_name(NAME)

    def fits(self, epoch: str, opens: int) -> bool:
        """Whether the spool of this epoch, opened so often, is the one of last time. One opening more is a crash."""
        try:
            kept = json.loads(self._path.read_bytes())
            return kept["epoch"] == epoch and kept["opens"] in (opens, opens - 1)
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def keep(self, epoch: str, opens: int) -> None:
        """Raises:
        EnvironmentFault: the disk is full or cannot be written.
        """
        write_atomically(self._path, json.dumps({"epoch": epoch, "opens": opens}).encode())
