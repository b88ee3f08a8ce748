"""Who may speak to the centre, and what is done about those who may not: wires authority, broker's log and attempts.

The broker's access list is the first wall; this is the second, and it does not trust the first: a revoked gateway is
not listened to though its connection stands, and a renewal proves itself by the old key.
"""

import datetime as dt
import logging
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from cloud.attempts import Attempts, Kind
from cloud.authority import Authority
from cloud.store import Store
from common.clock import Clock
from common.errors import EnvironmentFault, HeadframeError, OperatorError, TrustError
from common.messages import Certificate, Renewal, Sample

log = logging.getLogger(__name__)

RENEW_AGAIN_S = 3600.0
LOG_BYTES_MAX = 1_000_000
"""Of the broker's log, per step: what is more waits for the next."""


class Guard:
    """`step` about once a second; the rest as messages come.

    Args:
        folder: of the authority; there may be none, then nothing is revoked or renewed.
        log_file: of the broker, when the centre can read it.
    """

    def __init__(self, folder: Path, log_file: Path | None, store: Store, clock: Clock) -> None:
        self._folder, self._clock = folder, clock
        self.attempts = Attempts(store.audit)
        self._log = LogFile(log_file) if log_file else None
        self._authority: Authority | None = None
        self._version: tuple[int, ...] = ()
        self._barred: frozenset[str] = frozenset()
        self._renewed: dict[str, tuple[float, Renewal, bytes]] = {}
        self._read_roster()

    def step(self) -> None:
        """Take up what was issued or revoked, and what the broker has logged."""
        self._read_roster()
        if self._log:
            now_ns = self._clock.wall_ns()
            for line in self._log.lines():
                self._note(partial(self.attempts.logged, line, now_ns))

    def admits(self, gateway_id: str) -> bool:
        """Whether a gateway is listened to; that it was not is an attempt."""
        if gateway_id not in self._barred:
            return True
        self._record(Kind.REVOKED, gateway_id, "refused until the broker has closed its connection")
        return False

    def refused(self, gateway_id: str, error: HeadframeError) -> None:
        """A message of a gateway led to this."""
        self._note(lambda: self.attempts.refused(gateway_id, error, self._clock.wall_ns()))

    def receipted(self, samples: Iterable[Sample]) -> None:
        """These were receipted, for the first time or again."""
        names = [(sample.gateway_id, sample.sample_id) for sample in samples]
        self._note(lambda: self.attempts.receipted(names, self._clock.wall_ns()))

    def renew(self, gateway_id: str, renewal: Renewal) -> Certificate:
        """The next certificate of a gateway; the same question gets the same answer.

        Raises:
            TrustError: the renewal does not prove that it may, or comes again too soon.
            WireError: it cannot be read.
            OperatorError: there is no authority here.
        """
        now_s = self._clock.monotonic_s()
        at_s, asked, answer = self._renewed.get(gateway_id, (float("-inf"), None, b""))
        if asked == renewal:
            return Certificate(certificate=answer)
        if now_s - at_s < RENEW_AGAIN_S:
            raise TrustError(f"{gateway_id} has renewed within the hour")
        if self._authority is None:
            raise OperatorError("there is no authority at this centre", "`headframe cloud ca init` makes one.")
        pem = self._authority.renew(renewal, gateway_id, dt.datetime.fromtimestamp(self._clock.wall_ns() / 1e9, dt.UTC))
        self._renewed[gateway_id] = (now_s, renewal, pem)
        log.info("renewed the certificate of %s", gateway_id)
        return Certificate(certificate=pem)

    def _read_roster(self) -> None:
        version = roster_version(self._folder)
        if version == self._version:
            return
        self._version = version
        try:
            self._authority = Authority.open(self._folder)
        except OperatorError:
            self._authority = None
            return
        self._barred = self._authority.barred()

    def _record(self, kind: Kind, who: str, detail: str) -> None:
        self._note(lambda: self.attempts.record(kind, who, detail, self._clock.wall_ns()))

    @staticmethod
    def _note(act: Callable[[], None]) -> None:
        """An audit that cannot be written must not stop the message that led to it."""
        try:
            act()
        except EnvironmentFault as error:
            log.error("%s", error)


def roster_version(folder: Path) -> tuple[int, ...]:
    """Changes whenever a certificate is issued or revoked in the authority's folder."""
    return tuple(
        path.stat().st_mtime_ns for path in (folder / "crl.pem", folder / "issued", folder / "ca.key") if path.exists()
    )


class LogFile:
    """Follows a file that another process writes, through rotation; begins at its end."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._at = self._where()
        self._rest = b""

    def lines(self) -> list[str]:
        """What was written since the last call, at most `LOG_BYTES_MAX` of it."""
        inode, size = self._where()
        if inode != self._inode or size < self._at:
            self._inode, self._at, self._rest = inode, 0, b""
        if size == self._at:
            return []
        try:
            with self._path.open("rb") as file:
                file.seek(self._at)
                data = file.read(LOG_BYTES_MAX)
        except OSError as error:
            log.warning("cannot read the broker's log %s: %s", self._path, error)
            return []
        self._at += len(data)
        *whole, rest = (self._rest + data).split(b"\n")
        self._rest = rest[-LOG_BYTES_MAX:]
        return [line.decode(errors="replace") for line in whole]

    def _where(self) -> tuple[int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return 0, 0
        return found.st_ino, found.st_size
