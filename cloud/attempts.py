"""What somebody tried and was refused: counted, in the audit log, and an alarm on the console while it is fresh.

Reads refusals of three kinds: errors that the centre raised, lines that a broker logged, and samples that come again
and again. Pure but for the audit function it is given. Bounded: a flood of attempts costs one row per kind and name,
and an audit entry at each doubling.
"""

import re
import threading
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from common import topics
from common.certificates import CENTRE
from common.errors import BoundError, ForgeryError, HeadframeError, TrustError

ROWS_MAX = 500
FRESH_S = 3600.0
REPEATS = 10
"""A sample receipted so often is a replay, or its gateway never hears us: somebody should look either way."""
SAMPLES_KEPT = 20_000
TAKEOVERS, TAKEOVER_S = 3, 600.0
"""A box behind a bad link takes over its own half-open session now and then; two boxes of one name do so always."""
TEXT_MAX = 200


class Kind(StrEnum):
    """What was tried."""

    TOPIC = "wrote to a topic that is not its own"
    SUBSCRIPTION = "subscribed to a topic that is not its own"
    IDENTITY = "says in a message that it is somebody else"
    SIZE = "larger than it may be, or would be when opened"
    REPLAY = "sends what was receipted long ago"
    NO_CERTIFICATE = "no certificate"
    BAD_CERTIFICATE = "a certificate that is foreign, expired or revoked"
    REVOKED = "its certificate was revoked, its connection still stands"
    TWICE = "two connections of one identity"
    RENEWAL = "a renewal that proves nothing"
    MALFORMED = "a message that cannot be used"


@dataclass(frozen=True, slots=True)
class Attempt:
    """All attempts of one kind by one name."""

    kind: Kind
    who: str
    detail: str
    times: int
    first_ns: int
    last_ns: int

    def row(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind.name.lower(),
            "what": self.kind.value,
            "who": self.who,
            "detail": self.detail,
            "times": self.times,
            "first_ns": self.first_ns,
            "last_ns": self.last_ns,
        }


class Attempts:
    """Any thread may call it. `audit(actor, action, detail, at_ns)` writes down what must stay."""

    def __init__(self, audit: Callable[[str, str, Mapping[str, Any], int], None]) -> None:
        self._audit = audit
        self._rows: OrderedDict[tuple[Kind, str], Attempt] = OrderedDict()
        self._counts: Counter[Kind] = Counter()
        self._receipts: OrderedDict[bytes, int] = OrderedDict()
        self._takeovers: OrderedDict[str, deque[int]] = OrderedDict()
        self._lock = threading.Lock()

    def record(self, kind: Kind, who: str, detail: str, at_ns: int) -> None:
        """Count it; the audit log gets the 1st, 2nd, 4th, 8th … of a kind and name.

        Raises:
            EnvironmentFault: the audit log cannot be written; it is counted all the same.
        """
        who, detail = _line(who)[:63], _line(detail)
        with self._lock:
            before = self._rows.pop((kind, who), None)
            times = before.times + 1 if before else 1
            row = Attempt(kind, who, detail, times, before.first_ns if before else at_ns, at_ns)
            self._rows[kind, who] = row
            self._counts[kind] += 1
            while len(self._rows) > ROWS_MAX:
                self._rows.popitem(last=False)
        if times & (times - 1) == 0:
            self._audit(who, f"attempt: {kind.name.lower()}", {"detail": detail, "times": times}, at_ns)

    def refused(self, gateway_id: str, error: HeadframeError, at_ns: int) -> None:
        """An error that a message of a gateway led to."""
        self.record(_kind_of(error), gateway_id, str(error), at_ns)

    def receipted(self, names: Iterable[tuple[str, bytes]], at_ns: int) -> None:
        """Gateway and sample id of what was receipted, first time or again."""
        repeated = []
        with self._lock:
            for gateway_id, name in names:
                times = self._receipts.pop(name, 0) + 1
                self._receipts[name] = times
                if times > REPEATS:
                    repeated.append((gateway_id, name.hex(), times))
            while len(self._receipts) > SAMPLES_KEPT:
                self._receipts.popitem(last=False)
        for gateway_id, text, times in repeated:
            self.record(Kind.REPLAY, gateway_id, f"sample {text} came {times} times", at_ns)

    def logged(self, line: str, at_ns: int) -> None:
        """A line of the broker's log."""
        found = read_line(line)
        if found is None:
            return
        kind, who, detail = found
        if kind is Kind.TWICE and not self._often(who, at_ns):
            return
        self.record(kind, who, detail, at_ns)

    def counts(self) -> dict[str, int]:
        """How often each kind was seen since the start."""
        with self._lock:
            return {kind.name.lower(): self._counts[kind] for kind in Kind}

    def fresh(self, now_ns: int) -> list[dict[str, Any]]:
        """The alarms: what was tried within the last hour, newest first."""
        with self._lock:
            rows = [row for row in reversed(self._rows.values()) if now_ns - row.last_ns < FRESH_S * 1e9]
        return [row.row() for row in rows]

    def _often(self, who: str, at_ns: int) -> bool:
        with self._lock:
            seen = self._takeovers.pop(who, deque(maxlen=TAKEOVERS))
            seen.append(at_ns)
            self._takeovers[who] = seen
            while len(self._takeovers) > ROWS_MAX:
                self._takeovers.popitem(last=False)
            return len(seen) == TAKEOVERS and at_ns - seen[0] < TAKEOVER_S * 1e9


_FOREIGN = "TLS handshake with a foreign, expired or revoked certificate"
_LINES: tuple[tuple[Kind, re.Pattern[str], str], ...] = (
    # mosquitto 2.0
    (Kind.TOPIC, re.compile(r"Denied PUBLISH from (?P<who>\S+) \([^']*'(?P<detail>[^']*)'"), ""),
    (Kind.SIZE, re.compile(r"Dropped too large PUBLISH from (?P<who>\S+) \([^']*'(?P<detail>[^']*)'"), ""),
    (Kind.SIZE, re.compile(r"Client (?P<who>\S+) disconnected (?P<detail>.*oversize packet)"), ""),
    (Kind.TWICE, re.compile(r"Client (?P<who>\S+) already connected, closing"), "one connection ended the other"),
    (Kind.NO_CERTIFICATE, re.compile("did not return a certificate"), "TLS handshake without a certificate"),
    (
        Kind.BAD_CERTIFICATE,
        re.compile("(OpenSSL Error|connection from .* failed).*certificate verify failed"),
        _FOREIGN,
    ),  # which of the two it says depends on how soon the handshake ended
    (Kind.SUBSCRIPTION, re.compile(r"^(?:\d+: )?(?P<who>\S+) \d (?P<detail>\S+)$"), ""),
    # nats-server 2.15
    (Kind.TOPIC, re.compile(r'"(?P<who>[^"]*)" - Publish Violation - Subject "(?P<detail>[^"]*)"'), ""),
    (Kind.SUBSCRIPTION, re.compile(r'"(?P<who>[^"]*)" - Subscription Violation - Subject "(?P<detail>[^"]*)"'), ""),
    (Kind.SIZE, re.compile(r'"(?P<who>[^"]*)" - (?P<detail>maximum payload exceeded.*)', re.I), ""),
    (Kind.TWICE, re.compile(r'both have the same client ID "(?P<who>[^"]*)"'), "one connection ended the other"),
    (Kind.NO_CERTIFICATE, re.compile("client didn't provide a certificate"), "TLS handshake without a certificate"),
    (Kind.BAD_CERTIFICATE, re.compile(r"verify certificate: (?P<detail>.*?) \(CN=(?P<who>[^ ;)]*)"), ""),
    (Kind.BAD_CERTIFICATE, re.compile("unable to connect: authentication error"), "of no enrolled name, or revoked"),
)


def read_line(line: str) -> tuple[Kind, str, str] | None:
    """What a line of mosquitto's or nats-server's log says that somebody tried: kind, name, detail.

    mosquitto needs `log_type debug` and `log_type subscribe` for it: it says nothing else about what its access list
    denied, and acknowledges it (docs/security.md).
    """
    for kind, pattern, said in _LINES:
        if found := pattern.search(line):
            named = found.groupdict()
            who, detail = named.get("who", "unknown").removeprefix("headframe-"), named.get("detail", said)
            if kind is Kind.SUBSCRIPTION and not _is_foreign(who, detail):
                return None
            return kind, who, detail
    return None


def _is_foreign(client: str, topic_filter: str) -> bool:
    """Whether a subscription (mosquitto grants it and delivers nothing) is not a gateway's own."""
    own = topic_filter == topics.down_filter(client) or topics.parse_release(topic_filter)
    return client != CENTRE.removeprefix("headframe-") and not own


def _kind_of(error: HeadframeError) -> Kind:
    if isinstance(error, ForgeryError):
        return Kind.IDENTITY
    if isinstance(error, BoundError):
        return Kind.SIZE
    if isinstance(error, TrustError):
        return Kind.RENEWAL
    return Kind.MALFORMED


def _line(text: str) -> str:
    return "".join(sign if sign.isprintable() else "?" for sign in text[:TEXT_MAX])
