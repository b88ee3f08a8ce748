"""The group's authority: what it signs, what it refuses to sign, and what it takes back."""

import datetime as dt
import logging
import stat
from pathlib import Path

import msgspec
import pytest
from cryptography import x509
from typer.testing import CliRunner

from cloud.authority import GATEWAY_DAYS, Authority
from cloud.cli import app as cloud_app
from cloud.settings import CloudSettings
from cloud.store import Store
from common.certificates import CENTRE, Identity, ask_renewal, make_request, name_of, new_key, read_request
from common.enrolment import read_enrolment
from common.errors import OperatorError, TrustError, WireError
from common.metadata import check_root
from edge.cli import app as edge_app

NOW = dt.datetime.now(dt.UTC)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.create(tmp_path / "ca", "Test", NOW)


def identity(authority: Authority, name: str, at: dt.datetime = NOW) -> Identity:
    key = new_key()
    return Identity(x509.load_pem_x509_certificate(authority.issue(name, key.public_key(), at)), key)


def test_a_certificate_carries_the_gateways_name_and_may_only_be_a_client(authority: Authority) -> None:
    made = identity(authority, "north-1").certificate
    assert name_of(made) == "north-1"
    assert not made.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    usage = made.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert [purpose._name for purpose in usage] == ["clientAuth"]
    assert (made.not_valid_after_utc - NOW).days in (GATEWAY_DAYS - 1, GATEWAY_DAYS)


def test_keys_are_readable_by_their_owner_only(authority: Authority, tmp_path: Path) -> None:
    authority.equip(["mqtt.example", "10.0.0.1"], NOW)
    for name in ("ca.key", "server.key", "centre.pem"):
        assert stat.S_IMODE((tmp_path / "ca" / name).stat().st_mode) == 0o600
    server = x509.load_pem_x509_certificate((tmp_path / "ca" / "server.pem").read_bytes())
    names = server.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["mqtt.example", "localhost"]


def test_a_second_authority_does_not_replace_the_first(authority: Authority, tmp_path: Path) -> None:
    with pytest.raises(OperatorError, match="already"):
        Authority.create(tmp_path / "ca", "Test", NOW)


@pytest.mark.parametrize("name", ["", "North", "a/b", "+", "a" * 64, "a.b"])
def test_a_name_that_could_be_more_than_one_topic_level_gets_no_certificate(authority: Authority, name: str) -> None:
    with pytest.raises(OperatorError, match="not valid"):
        authority.issue(name, new_key().public_key(), NOW)


def test_a_revoked_name_is_barred_until_it_is_enrolled_again(authority: Authority, tmp_path: Path) -> None:
    first = identity(authority, "north-1")
    identity(authority, "south-1")
    assert authority.revoke("north-1", NOW) == 1
    assert authority.revoke("north-1", NOW) == 0
    assert authority.barred() == {"north-1"}
    assert authority.enrolled(NOW) == ["south-1"]
    serials = {entry.serial_number for entry in x509.load_pem_x509_crl((tmp_path / "ca" / "crl.pem").read_bytes())}
    assert serials == {first.certificate.serial_number}
    identity(authority, "north-1")
    assert authority.barred() == frozenset()
    assert authority.enrolled(NOW) == ["north-1", "south-1"]
    with pytest.raises(OperatorError, match="no certificate"):
        authority.revoke("west-1", NOW)


def test_the_revocation_list_lives_as_long_as_the_authority(authority: Authority, tmp_path: Path) -> None:
    found = x509.load_pem_x509_crl((tmp_path / "ca" / "crl.pem").read_bytes())
    assert found.next_update_utc is not None
    assert found.next_update_utc > NOW + dt.timedelta(days=19 * 365)


def test_a_renewal_needs_the_old_key_and_a_valid_certificate(authority: Authority, tmp_path: Path) -> None:
    old, other = identity(authority, "north-1"), identity(authority, "south-1")
    fresh = new_key()
    renewed = x509.load_pem_x509_certificate(authority.renew(ask_renewal(old, fresh), "north-1", NOW))
    assert name_of(renewed) == "north-1"
    assert renewed.public_key() == fresh.public_key()
    for renewal, gateway, why in (
        (ask_renewal(old, fresh), "south-1", "asks for a certificate of"),
        (msgspec.structs.replace(ask_renewal(old, fresh), signature=b"x"), "north-1", "not signed"),
        (ask_renewal(Identity(old.certificate, other.key), fresh), "north-1", "not signed"),
        (ask_renewal(identity(authority, "old-1", NOW - dt.timedelta(days=400)), fresh), "old-1", "valid until"),
        (
            ask_renewal(identity(Authority.create(tmp_path / "b", "B", NOW), "north-1"), fresh),
            "north-1",
            "somebody else",
        ),
        (ask_renewal(identity(authority, CENTRE), fresh), CENTRE, "no gateway's"),
    ):
        with pytest.raises(TrustError, match=why):
            authority.renew(renewal, gateway, NOW)
    authority.revoke("north-1", NOW)
    with pytest.raises(TrustError, match="revoked"):
        authority.renew(ask_renewal(old, fresh), "north-1", NOW)


def test_a_request_that_is_none_is_refused(authority: Authority) -> None:
    good = make_request(new_key(), "north-1")
    assert read_request(good)[0] == "north-1"
    for bad in (b"", b"x" * 20_000, good[:-60], good.replace(b"M", b"N", 3)):
        with pytest.raises(WireError):
            read_request(bad)


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "cloud.toml"
    path.write_text(f'data_dir = "{tmp_path / "centre"}"\n[broker]\nhost = "mqtt.example"\nport = 8883\n')
    return path


def run(app: object, *line: str) -> str:
    result = CliRunner().invoke(app, line, catch_exceptions=False)  # type: ignore[arg-type]
    assert result.exit_code == 0, result.output
    return result.output


def test_the_private_key_is_born_on_the_gateway_and_stays_there(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    more, box = tmp_path / "more.json", tmp_path / "box"
    more.write_text('{"signed": {}}')
    said = run(cloud_app, "ca", "init", "-c", str(config), "--host", "mqtt.example")
    said += run(edge_app, "enroll", "--request", "--gateway", "north-1", "--into", str(box))
    key = (box / "gateway.key").read_text()
    bundle = tmp_path / "north-1.enrolment"
    csr = ("--csr", str(box / "gateway.csr"), "--out", str(bundle), "--trust", str(more))
    said += run(cloud_app, "enroll", "-c", str(config), "--site", "north", *csr)
    made = read_enrolment(bundle)
    assert (made.gateway_id, made.site_id, made.host, made.port, made.key) == (
        "north-1",
        "north",
        "mqtt.example",
        8883,
        "",
    )
    said += run(edge_app, "enroll", str(bundle), "--into", str(box))
    assert key.splitlines()[1] in (box / "identity.pem").read_text()
    assert stat.S_IMODE((box / "identity.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE(bundle.stat().st_mode) == 0o600
    assert (box / "more.json").read_text() == more.read_text()
    assert check_root((box / "root.json").read_bytes()) == 1
    assert not (box / "gateway.key").exists()
    assert f'cert_file = "{box / "identity.pem"}"' in said
    assert f'release_root = "{box / "root.json"}"' in said
    for secret in (key.splitlines()[1], "PRIVATE KEY"):
        assert secret not in said + caplog.text + repr(made)
    store = Store.open(f"sqlite:///{tmp_path / 'centre' / 'headframe.db'}", tmp_path / "centre" / "blobs")
    assert [row["action"] for row in store.audits(5)] == ["enroll", "create authority"]
    store.close()


def test_one_file_enrols_a_gateway_that_has_no_key(config: Path, tmp_path: Path) -> None:
    run(cloud_app, "ca", "init", "-c", str(config), "--host", "mqtt.example")
    bundle = tmp_path / "b"
    assert "delete it" in run(cloud_app, "enroll", "south-1", "-c", str(config), "--out", str(bundle))
    assert "south-1, valid until" in run(edge_app, "enroll", str(bundle), "--into", str(tmp_path / "box"))
    assert "PRIVATE KEY" not in repr(read_enrolment(bundle))
    run(cloud_app, "revoke", "south-1", "-c", str(config))
    assert "revoked" in run(cloud_app, "ca", "list", "-c", str(config))


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (("enroll", CENTRE), "the centre's own name"),
        (("enroll", "a/b"), "not valid"),
        (("enroll",), "not valid"),
        (("revoke", "nobody"), "no certificate"),
    ],
)
def test_what_the_authority_will_not_do_is_said(config: Path, tmp_path: Path, line: tuple[str, ...], said: str) -> None:
    run(cloud_app, "ca", "init", "-c", str(config), "--host", "mqtt.example")
    with pytest.raises(OperatorError, match=said):
        run(cloud_app, *line, "-c", str(config))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"key": ""}, "brings no key"),
        ({"gateway_id": "other-1"}, "not for the key"),
        ({"trust": {"../evil": "x"}}, "names a file"),
        ({"trust": {"identity.pem": "x"}}, "names a file"),
        ({"format": "headframe-enrolment-9"}, "format"),
    ],
)
def test_an_enrolment_that_does_not_fit_is_not_installed(
    config: Path, tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    run(cloud_app, "ca", "init", "-c", str(config), "--host", "mqtt.example")
    bundle = tmp_path / "b"
    run(cloud_app, "enroll", "south-1", "-c", str(config), "--out", str(bundle))
    msgspec.structs.replace(read_enrolment(bundle), **changes).save(bundle)
    with pytest.raises(OperatorError, match=said):
        run(edge_app, "enroll", str(bundle), "--into", str(tmp_path / "box"))
    assert not (tmp_path / "box" / "identity.pem").exists()


def test_no_secret_is_in_the_words_of_a_setting() -> None:
    settings = CloudSettings.model_validate({"broker": {"password": "hunter2"}})
    assert "hunter2" not in repr(settings) + repr(settings.broker.to_broker())
