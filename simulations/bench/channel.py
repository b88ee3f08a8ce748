"""The table of attempts: what a gateway with a valid certificate, or a stranger, tries, and what comes of it.

Each row is tried for real: a broker with TLS client certificates (mosquitto with the files of `deploy/mosquitto`, and
the embedded one), a real centre, real clients. *refused*: the effect that the attacker wanted did not come about.
*counted*, *alarmed*, *audited*: what the operations team sees of it, in `/metrics`, on the console, in the audit log.
"""

import datetime as dt
import struct
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import msgspec
import zstandard
from cryptography.hazmat.primitives.serialization import Encoding
from rich.console import Console

from cloud.attempts import REPEATS, TAKEOVERS, Kind
from cloud.authority import Authority
from common import codec, compression, topics
from common.certificates import ask_renewal, new_key, read_identity
from common.chunks import split
from common.errors import EnvironmentFault, WireError
from common.ids import layer_hash
from common.messages import Certificate, Sample
from common.mqtt import MqttLink
from simulations.bench._messages import made_sample, made_state
from simulations.bench._process import Peak
from simulations.bench._secured import SecuredCentre, now, secured_centre
from simulations.mosquitto import find_mosquitto

WAIT_S = 8.0
QUIET_S = 0.25
"""How long the absence of an effect is watched for."""
PACKET_BYTES = 68_000_000  # over the 64 MiB of deploy/mosquitto
BOMB_BYTES = 512 * 2**20


@dataclass(frozen=True)
class Row:
    """One attempt."""

    broker: str
    attempt: str
    kind: str
    refused: bool
    by: str
    counted: bool
    alarmed: bool
    audited: bool
    seen: str
    """The alarm's own words."""


def bench_channel(*, quick: bool) -> dict[str, Any]:
    """Try everything; `--quick` only on one broker."""
    brokers = ["mosquitto", "embedded"] if find_mosquitto() else ["embedded"]
    rows: list[Row] = []
    for kind in brokers[:1] if quick else brokers:
        Console(stderr=True).print(f"attempts against {kind} …", style="dim")
        with tempfile.TemporaryDirectory(prefix="headframe-channel-") as folder:
            rows += try_all(Path(folder), kind)
    if sys.stderr.isatty():
        Console(stderr=True).print(as_markdown(rows), markup=False)
    return {
        "attempts": len(rows),
        "refused": sum(row.refused for row in rows),
        "counted": sum(row.counted for row in rows),
        "alarmed": sum(row.alarmed for row in rows),
        "bomb_extra_mb": round(_bomb_memory(), 1),
        "rows": [asdict(row) for row in rows],
    }


def as_markdown(rows: list[Row]) -> str:
    """The table, for the report of the tests."""
    head = "| broker | attempt | refused by | counted, alarmed, audited | what the console says |\n"
    head += "| --- | --- | --- | --- | --- |\n"
    yes = {True: "yes", False: "**no**"}
    lines = [
        f"| {r.broker} | {r.attempt} | {r.by if r.refused else '**nobody**'} | "
        f"{', '.join(yes[x] for x in (r.counted, r.alarmed, r.audited))} | {r.kind}: {r.seen} |\n"
        for r in rows
    ]
    return head + "".join(lines)


def try_all(folder: Path, kind: str) -> list[Row]:
    """Every attempt against one broker."""
    with secured_centre(folder, kind) as centre, Attack(centre, kind) as attack:
        for attempt in ATTEMPTS:
            attempt(attack)
        return attack.rows


class Attack:
    """The centre under attack, an honest gateway `south-1`, and `north-1`, whose certificate is as valid."""

    def __init__(self, centre: SecuredCentre, broker: str) -> None:
        self.centre, self.broker, self.rows = centre, broker, list[Row]()
        self.south, self.south_got, self.south_file = centre.gateway("south-1")
        self.north, self.north_got, self.north_file = centre.gateway("north-1")

    def __enter__(self) -> "Attack":
        return self

    def __exit__(self, *_: object) -> None:
        self.centre.service.guard.step()

    def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> bool:
        """Whether it came about in time; the centre goes on working meanwhile."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.centre.service.guard.step()
            time.sleep(0.05)
        return True

    def send(self, kind: str, payload: bytes, of: str = "north-1", link: MqttLink | None = None) -> None:
        """Publish, and wait until the link has room again."""
        sender = link or self.north
        self.until(lambda: sender.connected)
        self.until(lambda: sender.publish(topics.up(of, kind), payload))

    def come_back(self) -> None:
        """Connect both gateways anew where they were thrown out, without paho's patience."""
        for name in ("north", "south"):
            link: MqttLink = getattr(self, name)
            link.stop()
            file = getattr(self, f"{name}_file")
            again = self.centre.connect(file, f"headframe-{name}-1", topics.down_filter(f"{name}-1"))
            setattr(self, name, again[0])
            setattr(self, f"{name}_got", again[1])

    def stored(self, sample: Sample) -> bool:
        """Whether it is in the store."""
        return self.centre.service.store.sample(sample.sample_id) is not None

    @contextmanager
    def row(self, attempt: str, kind: Kind, by: str, *who: str) -> Iterator["Outcome"]:
        """Tries it within the block, then looks at what the operations team sees: an alarm of that kind on `who`."""
        attempts = self.centre.service.guard.attempts
        before = attempts.counts()[kind.name.lower()]
        began_ns = time.time_ns()
        outcome = Outcome()
        yield outcome
        counted = self.until(lambda: attempts.counts()[kind.name.lower()] > before)
        name = kind.name.lower()
        fresh = [x for x in attempts.fresh(time.time_ns()) if x["kind"] == name and x["last_ns"] >= began_ns]
        fresh = [x for x in fresh if x["who"] in who]
        actions = {row["action"] for row in self.centre.service.store.audits(500)}
        self.rows.append(
            Row(
                self.broker,
                attempt,
                kind.name.lower(),
                outcome.refused,
                by,
                counted,
                bool(fresh),
                f"attempt: {kind.name.lower()}" in actions,
                f"{fresh[0]['who']}, {fresh[0]['detail']}" if fresh else "",
            )
        )


@dataclass
class Outcome:
    """What came of it."""

    refused: bool = False


def _others_topic(attack: Attack) -> None:
    sample = made_sample(1, "south-1")
    with attack.row("writes a sample to another gateway's topic", Kind.TOPIC, "broker", "north-1") as outcome:
        attack.send("sample", codec.encode(sample), of="south-1")
        time.sleep(QUIET_S)
        outcome.refused = not attack.stored(sample)


def _others_subscription(attack: Attack) -> None:
    with attack.row("subscribes to what others are told", Kind.SUBSCRIPTION, "broker", "north-1") as outcome:
        spy, got = attack.centre.connect(attack.north_file, "headframe-north-1", topics.down_filter("south-1"), "#")
        told = len(attack.south_got)
        attack.send("sample", codec.encode(made_sample(2, "south-1")), of="south-1", link=attack.south)
        heard = attack.until(lambda: len(attack.south_got) > told)
        outcome.refused = heard and not got
        spy.stop()
        attack.come_back()


def _shared_topics(attack: Attack) -> None:
    """Writes where what the whole fleet needs is published; a piece that is not what its name says would not be taken
    either, but it must not even lie there."""
    piece = b"a piece that the centre has published"
    topic = topics.release(layer_hash(piece))
    with attack.row("puts a forged piece on a topic for all", Kind.TOPIC, "broker", "north-1") as outcome:
        attack.south.subscribe([topic])
        attack.centre.service.link.publish(topic, piece, retain=True)
        heard = attack.until(lambda: (topic, piece) in attack.south_got)
        for forged in (b"forged", b""):
            attack.north.publish(topic, forged, retain=True)
        time.sleep(QUIET_S)
        again, got = attack.centre.connect(attack.south_file, "headframe-south-1", topic)
        lies = attack.until(lambda: bool(got))
        outcome.refused = (
            heard and lies and {payload for name, payload in attack.south_got + got if name == topic} == {piece}
        )
        again.stop()
        attack.come_back()


def _others_identity(attack: Attack) -> None:
    sample = made_sample(3, "south-1")
    with attack.row("a sample of another gateway on its own topic", Kind.IDENTITY, "centre", "north-1") as outcome:
        attack.send("sample", codec.encode(sample))
        time.sleep(QUIET_S)
        outcome.refused = not attack.stored(sample)
    with attack.row("a state in another gateway's name", Kind.IDENTITY, "centre", "north-1") as outcome:
        attack.send("state", codec.encode(made_state(1, "south-1")))
        time.sleep(QUIET_S)
        attack.centre.service.reported.flush()
        outcome.refused = "south-1" not in {state.gateway_id for state in attack.centre.service.store.states()}


def _too_large(attack: Attack) -> None:
    bound = attack.centre.service.settings.ingest.jpeg_bytes_max
    plain = made_sample(4)
    large = made_sample(4, jpeg=plain.jpeg[:-2] + bytes(bound) + plain.jpeg[-2:])
    with attack.row("a picture over the bound, in chunks", Kind.SIZE, "centre", "north-1") as outcome:
        for chunk in split(codec.encode(large)):
            attack.send("chunk", codec.encode(chunk))
        time.sleep(QUIET_S)
        outcome.refused = not attack.stored(large)
    with attack.row("a packet over the broker's bound", Kind.SIZE, "broker", "north-1") as outcome:
        attack.send("sample", bytes(PACKET_BYTES))
        outcome.refused = attack.until(lambda: not attack.north.connected)
        attack.come_back()


def _bombs(attack: Attack) -> None:
    at = (small := made_sample(5).jpeg).index(b"\xff\xc0") + 5
    jpeg = small[:at] + struct.pack(">HH", 60_000, 60_000) + small[at + 4 :]
    bomb = made_sample(5, jpeg=jpeg, width_px=60_000, height_px=60_000)
    with attack.row("a picture whose header claims 60,000 x 60,000 pixels", Kind.SIZE, "centre", "north-1") as outcome:
        attack.send("sample", codec.encode(bomb))
        time.sleep(QUIET_S)
        outcome.refused = not attack.stored(bomb)


def _replay(attack: Attack) -> None:
    sample = made_sample(6)
    with attack.row("the same sample again and again", Kind.REPLAY, "centre", "north-1") as outcome:
        store = attack.centre.service.store
        attack.send("sample", codec.encode(sample))
        attack.until(lambda: attack.stored(sample))
        held = store.counts()["samples"]
        for _ in range(REPEATS + 1):
            attack.send("sample", codec.encode(sample))
        time.sleep(QUIET_S)
        outcome.refused = store.counts()["samples"] == held
    captured = codec.encode(made_sample(2, "south-1"))  # what south-1 has sent before
    with attack.row("replays what another gateway had sent", Kind.IDENTITY, "centre", "north-1") as outcome:
        before = attack.centre.service.ingest.figures()["duplicates"]
        attack.send("sample", captured)
        time.sleep(QUIET_S)
        outcome.refused = attack.centre.service.ingest.figures()["duplicates"] == before


def _strangers(attack: Attack) -> None:
    foreign = Authority.create(attack.centre.folder / "foreign", "Foreign", now())
    gone = attack.centre.identity("gone-1")
    revoked_link, _ = attack.centre.connect(gone, "headframe-gone-1")
    attack.centre.authority.revoke("gone-1", now())
    sample = made_sample(7, "gone-1")
    with attack.row("a revoked gateway whose connection still stands", Kind.REVOKED, "centre", "gone-1") as outcome:
        attack.until(lambda: not attack.centre.service.guard.admits("gone-1"))
        if revoked_link.connected:
            attack.send("sample", codec.encode(sample), of="gone-1", link=revoked_link)
        time.sleep(QUIET_S)
        outcome.refused = not attack.stored(sample)
    revoked_link.stop()
    attack.centre.reload()
    for attempt, kind, who, cert_file in (
        ("no certificate", Kind.NO_CERTIFICATE, "unknown", None),
        (
            "a certificate of another authority",
            Kind.BAD_CERTIFICATE,
            "north-1",
            attack.centre.identity("north-1", foreign),
        ),
        (
            "an expired certificate",
            Kind.BAD_CERTIFICATE,
            "old-1",
            attack.centre.identity("old-1", at=now() - dt.timedelta(days=400)),
        ),
        ("a revoked certificate", Kind.BAD_CERTIFICATE, "gone-1", gone),
    ):
        with attack.row(attempt, kind, "broker, TLS", who, "unknown") as outcome:
            link, _ = attack.centre.connect(cert_file, f"headframe-{who}", wait_s=0)
            time.sleep(2 * QUIET_S)
            outcome.refused = not link.connected
        link.stop()


def _client_id_theft(attack: Attack) -> None:
    """mosquitto replaces the client id by the certificate's name, so that the thief ends its own other connection."""
    who = ("north-1", "south-1")
    with attack.row("takes another gateway's session by its client id", Kind.TWICE, "broker", *who) as outcome:
        kept = True
        for _ in range(TAKEOVERS):
            attack.come_back()
            thief, _got = attack.centre.connect(attack.north_file, "headframe-south-1")
            time.sleep(QUIET_S)
            kept = kept and attack.south.connected
            thief.stop()
        outcome.refused = kept
    attack.come_back()


def _renewal(attack: Attack) -> None:
    with attack.row("renews another gateway's certificate", Kind.RENEWAL, "centre", "north-1") as outcome:
        stolen = ask_renewal(read_identity(attack.north_file), new_key())
        theirs = read_identity(attack.south_file).certificate.public_bytes(Encoding.PEM)
        attack.send("renew", codec.encode(msgspec.structs.replace(stolen, certificate=theirs)))
        time.sleep(QUIET_S)
        outcome.refused = not any(isinstance(codec.decode(payload), Certificate) for _, payload in attack.north_got)


def _broken(attack: Attack) -> None:
    with attack.row("a message that is none", Kind.MALFORMED, "centre", "north-1") as outcome:
        before = attack.centre.service.store.counts()["quarantined"]
        attack.send("state", b"\xc1" * 200)
        outcome.refused = attack.until(lambda: attack.centre.service.store.counts()["quarantined"] > before)


ATTEMPTS: tuple[Callable[[Attack], None], ...] = (
    _others_topic,
    _others_subscription,
    _shared_topics,
    _others_identity,
    _too_large,
    _bombs,
    _replay,
    _strangers,
    _client_id_theft,
    _renewal,
    _broken,
)


def _bomb_memory() -> float:
    """MB that a zstandard bomb of 512 MB costs whoever opens a compressed update: it is refused by what it declares."""
    bomb = zstandard.compress(bytes(BOMB_BYTES), 3)
    with Peak() as peak:
        try:
            compression.decode(bomb, "int8", (4, 16))
        except WireError:
            pass
        else:
            raise EnvironmentFault("the bomb went off", "common.compression must refuse it.")
    return peak.extra_bytes / 2**20
