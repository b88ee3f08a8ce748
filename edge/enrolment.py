"""How a gateway gets its certificate and keeps it valid. The private key is born here and stays here.

Two ways in: a signing request that the centre answers with an enrolment, or an enrolment that brings a key along. Once
in, the gateway asks for the next certificate over the channel itself when a third of the lifetime is left, proves with
the old key that it may, and replaces key and certificate in one atomic write: a power cut leaves the old or the new.
"""

import datetime as dt
import logging
import re
import time
from collections.abc import Callable
from pathlib import Path

from common import codec, topics
from common.certificates import (
    Identity,
    Key,
    ask_renewal,
    check_issued,
    key_pem,
    make_request,
    name_of,
    new_key,
    read_certificate,
    read_identity,
    read_key,
)
from common.clock import Clock
from common.enrolment import ROOT, Enrolment
from common.errors import EnvironmentFault, HeadframeError, OperatorError, TrustError
from common.files import READABLE, own_folder, write_atomically
from common.ids import check_name
from common.messages import Certificate, Renewal
from common.mqtt import MqttLink
from edge.settings import EdgeSettings

log = logging.getLogger(__name__)

IDENTITY, CA, KEY, REQUEST = "identity.pem", "ca.pem", "gateway.key", "gateway.csr"
NEXT_KEY = "next.key"
FLAG = "renew"
"""Its presence in data_dir asks the running agent to renew now."""
AGAIN_S = 3600.0
LOOK_S = 60.0
ANSWER_S = 60.0
_FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


def request_enrolment(folder: Path, gateway_id: str) -> Path:
    """Make the gateway's key (once) and a signing request for `headframe cloud enroll --csr`; returns its path."""
    check_name("gateway", gateway_id)
    key_file = folder / KEY
    if key_file.exists():
        key = read_key(key_file.read_bytes(), str(key_file))
    else:
        key = new_key()
        write_atomically(key_file, key_pem(key))
    write_atomically(folder / REQUEST, make_request(key, gateway_id), READABLE)
    return folder / REQUEST


def install_enrolment(enrolment: Enrolment, folder: Path) -> Identity:
    """Write `ca.pem`, the roots of trust and, last, `identity.pem`.

    Raises:
        OperatorError: the enrolment has no key and none was made here, or the two do not belong together.
    """
    ca = read_certificate(enrolment.ca.encode())
    certificate = read_certificate(enrolment.certificate.encode())
    if enrolment.key:
        key = read_key(enrolment.key.encode(), "the enrolment")
    elif (folder / KEY).exists():
        key = read_key((folder / KEY).read_bytes(), str(folder / KEY))
    else:
        raise OperatorError(
            f"the enrolment brings no key, and there is no {folder / KEY}",
            "Install it where `headframe edge enroll --request` was run.",
        )
    if key.public_key() != certificate.public_key() or name_of(certificate) != enrolment.gateway_id:
        raise OperatorError(
            f"the certificate is not for the key in {folder}, or not of {enrolment.gateway_id}",
            "Make a new request with `headframe edge enroll --request`.",
        )
    check_issued(certificate, ca, dt.datetime.now(dt.UTC))
    for name, text in enrolment.trust.items():
        if not _FILE_NAME.fullmatch(name) or name in (IDENTITY, CA, KEY, REQUEST, NEXT_KEY):
            raise OperatorError(f"the enrolment names a file {name!r}", "Take the file of `headframe cloud enroll`.")
        write_atomically(folder / name, text.encode())
    write_atomically(folder / CA, enrolment.ca.encode(), READABLE)
    identity = Identity(certificate, key)
    identity.save(folder / IDENTITY)
    (folder / KEY).unlink(missing_ok=True)  # it stands in identity.pem now
    return identity


def settings_lines(enrolment: Enrolment, folder: Path) -> str:
    """What belongs into edge.toml after an enrolment."""
    return (
        f'gateway_id = "{enrolment.gateway_id}"\nsite_id = "{enrolment.site_id}"\n'
        f'release_root = "{(folder / ROOT).resolve()}"\n\n'
        f'[broker]\nhost = "{enrolment.host}"\nport = {enrolment.port}\n'
        f'ca_file = "{(folder / CA).resolve()}"\ncert_file = "{(folder / IDENTITY).resolve()}"\n'
    )


class Renewer:
    """Asks for the next certificate in time. `step` is called at least once a minute.

    Args:
        cert_file: holds certificate and key; replaced when the answer came.
        ca_file: the authority that the answer must be of.
        flag: a file whose presence asks for a renewal now.
        send: publishes a Renewal; False when the link is down.
        reload: makes the link show the new certificate at its next connection.
    """

    def __init__(
        self,
        cert_file: Path,
        ca_file: Path,
        flag: Path,
        clock: Clock,
        send: Callable[[Renewal], bool],
        reload: Callable[[], None],
    ) -> None:
        self._cert_file, self._ca_file, self._flag, self._clock = cert_file, ca_file, flag, clock
        self._send, self._reload = send, reload
        self._asked_at_s = self._looked_at_s = float("-inf")
        self.outcome = ""
        """The last renewal in words."""

    def step(self) -> None:
        """Ask when it is time; at most once an hour, or when a person asks. Looking goes on whatever the files hold."""
        now_s = self._clock.monotonic_s()
        wanted = self._flag.exists()
        if not wanted and (now_s - self._looked_at_s < LOOK_S or now_s - self._asked_at_s < AGAIN_S):
            return
        self._looked_at_s = now_s
        try:
            identity = read_identity(self._cert_file)
            if (wanted or self._is_due(identity)) and self._send(ask_renewal(identity, self._next_key())):
                self._asked_at_s = now_s
                self._flag.unlink(missing_ok=True)
                log.info("asked for the next certificate of %s", identity.name)
        except HeadframeError as error:
            self.outcome = f"cannot renew: {error}"
            log.error("%s", self.outcome)

    def on_certificate(self, message: Certificate) -> None:
        """Take the centre's answer; what does not fit is refused and the old certificate stays."""
        try:
            old = read_identity(self._cert_file)
            made = read_certificate(message.certificate)
            next_key = self._next_path()
            if not next_key.exists():
                return  # answered twice
            key = read_key(next_key.read_bytes(), str(next_key))
            if made.public_key() != key.public_key() or name_of(made) != old.name:
                raise TrustError("the certificate that came is not for the key that was made here")
            check_issued(made, read_certificate(self._ca_file.read_bytes()), self._now())
            Identity(made, key).save(self._cert_file)
            next_key.unlink()
            self._reload()
        except (HeadframeError, OSError) as error:
            self.outcome = f"renewal refused: {error}"
            log.error("%s", self.outcome)
            return
        self.outcome = f"certificate renewed until {made.not_valid_after_utc:%Y-%m-%d}"
        log.info("%s", self.outcome)

    def _is_due(self, identity: Identity) -> bool:
        until, since = identity.certificate.not_valid_after_utc, identity.certificate.not_valid_before_utc
        return self._now() > until - (until - since) / 3

    def _next_key(self) -> Key:
        """The key of the renewal under way; kept on disk, so that an answer after a restart still fits."""
        path = self._next_path()
        if path.exists():
            return read_key(path.read_bytes(), str(path))
        key = new_key()
        write_atomically(path, key_pem(key))
        return key

    def _next_path(self) -> Path:
        return self._cert_file.with_name(NEXT_KEY)

    def _now(self) -> dt.datetime:
        return dt.datetime.fromtimestamp(self._clock.wall_ns() / 1e9, dt.UTC)


def renews_itself(settings: EdgeSettings) -> bool:
    """Whether the certificate is the group's own in one file; with a `key_file` another authority looks after it."""
    broker = settings.broker
    return broker.ca_file is not None and broker.cert_file is not None and broker.key_file is None


def renew_now(settings: EdgeSettings, clock: Clock) -> str:
    """Renew at once, through the running agent or, when none runs, over a link of our own; returns the new end.

    Raises:
        OperatorError: the certificate is not one that renews itself.
        EnvironmentFault: the centre did not answer in time.
    """
    cert_file, ca_file = settings.broker.cert_file, settings.broker.ca_file
    if not renews_itself(settings) or cert_file is None or ca_file is None:
        raise OperatorError(
            "[broker] has no ca_file and cert_file of an enrolment, or a key_file of another authority",
            "Enrol first: `headframe edge enroll`.",
        )
    before = read_identity(cert_file).certificate.serial_number
    flag = settings.data_dir / FLAG
    write_atomically(flag, b"")
    try:
        with own_folder(settings.data_dir):
            return _renew_alone(settings, cert_file, ca_file, flag, clock, before)
    except OperatorError:  # the agent runs: it has seen the flag
        return _await_change(cert_file, before, lambda: None)


def _renew_alone(settings: EdgeSettings, cert_file: Path, ca_file: Path, flag: Path, clock: Clock, before: int) -> str:
    name = settings.gateway_id
    renewer: list[Renewer] = []

    def on_message(topic: str, payload: bytes) -> None:
        if topic == topics.down(name, "certificate"):
            message = codec.decode(payload)
            if isinstance(message, Certificate):
                renewer[0].on_certificate(message)

    link = MqttLink(settings.broker.to_broker(), f"headframe-{name}", (topics.down_filter(name),), on_message)
    renewer.append(
        Renewer(
            cert_file,
            ca_file,
            flag,
            clock,
            lambda renewal: link.publish(topics.up(name, "renew"), codec.encode(renewal)),
            link.reload_certificate,
        )
    )
    link.start()
    try:
        link.wait_connected(ANSWER_S)
        return _await_change(cert_file, before, renewer[0].step)
    finally:
        link.stop()


def _await_change(cert_file: Path, before: int, step: Callable[[], None]) -> str:
    deadline = time.monotonic() + ANSWER_S
    while time.monotonic() < deadline:
        step()
        certificate = read_identity(cert_file).certificate
        if certificate.serial_number != before:
            return certificate.not_valid_after_utc.strftime("%Y-%m-%d")
        time.sleep(0.2)
    raise EnvironmentFault(
        f"the centre did not answer the renewal in {ANSWER_S:g} s",
        "The console of the centre names refused renewals under Attempts; see docs/security.md.",
    )


def describe(identity: Identity) -> str:
    """One line for a person: who, and until when. Never the key."""
    return f"{identity.name}, valid until {identity.certificate.not_valid_after_utc:%Y-%m-%d}"
