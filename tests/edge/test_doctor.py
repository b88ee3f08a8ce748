"""The doctor: each finding says what was seen, and what to mend where it is not well."""

import datetime
import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from common.errors import EnvironmentFault
from common.mqtt import Broker
from common.settings import BrokerSection
from edge import doctor
from edge.settings import CameraSettings, TrainingSettings
from simulations.belts import BeltCamera
from simulations.clips import write_clip

NOW = datetime.datetime(2026, 6, 1, tzinfo=datetime.UTC)


def write_certificate(folder: Path, name: str, days: int) -> BrokerSection:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(NOW - datetime.timedelta(days=10))
        .not_valid_after(NOW + datetime.timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM)
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    paths = {}
    for field, data in (("ca_file", pem), ("cert_file", pem), ("key_file", private)):
        paths[field] = folder / f"{field}.pem"
        paths[field].write_bytes(data)
    return BrokerSection(**paths)  # type: ignore[arg-type]


def test_this_machine_is_well() -> None:
    for check in (doctor.check_python(), doctor.check_onnxruntime()):
        assert check.ok, check.mend
        assert check.found


def test_a_clock_in_1970_and_a_folder_that_cannot_be_written_are_named(tmp_path: Path) -> None:
    wrong = doctor.check_clock(0)
    assert not wrong.ok
    assert "1970" in wrong.found
    assert "clock" in wrong.mend
    (tmp_path / "file").write_text("in the way")
    disk = doctor.check_disk(tmp_path / "file")
    assert not disk.ok
    assert str(tmp_path / "file") in disk.found + disk.mend
    assert "ms to make" in doctor.check_disk(tmp_path).found


def test_a_box_that_is_to_train_must_be_able_to_and_may_tell(tmp_path: Path) -> None:
    ours = TrainingSettings(app="cloud.finetuning.site_app:app", pictures=tmp_path)
    assert doctor.check_training(ours, "updates").ok
    wrong = {
        "module": doctor.check_training(TrainingSettings(app="no_such.app:app"), "both"),
        "share": doctor.check_training(ours, "samples"),
        "pictures": doctor.check_training(ours.model_copy(update={"pictures": tmp_path / "none"}), "updates"),
    }
    for word, check in wrong.items():
        assert not check.ok
        assert word in check.mend


def test_the_broker_is_really_asked(broker: Broker, free_port: int) -> None:
    assert doctor.check_broker(BrokerSection(port=broker.port), "gw-1").ok
    import socket

    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        nobody = doctor.check_broker(BrokerSection(port=closed.getsockname()[1]), "gw-1")
    assert not nobody.ok
    assert "Check the address" in nobody.mend


@pytest.mark.parametrize(
    ("name", "days", "gateway", "ok", "said"),
    [
        ("gw-1", 30, "gw-1", True, "valid to 2026-07-01"),
        ("gw-1", -1, "gw-1", False, "Renew"),
        ("gw-2", 30, "gw-1", False, "Use the certificate of gw-1"),
    ],
)
def test_the_certificate_is_in_time_and_of_this_gateway(
    tmp_path: Path, name: str, days: int, gateway: str, ok: bool, said: str
) -> None:
    check = doctor.check_tls(write_certificate(tmp_path, name, days), gateway, NOW)
    assert check.ok is ok
    assert said in check.found + check.mend


def test_a_damaged_or_half_configured_certificate_is_named(tmp_path: Path) -> None:
    section = write_certificate(tmp_path, "gw-1", 30)
    (tmp_path / "cert_file.pem").write_text("no certificate")
    assert not doctor.check_tls(section, "gw-1", NOW).ok
    assert not doctor.check_tls(BrokerSection(ca_file=tmp_path / "ca_file.pem"), "gw-1", NOW).ok
    assert "in the clear" in doctor.check_tls(BrokerSection(), "gw-1", NOW).found


def test_a_camera_must_open_and_move(tmp_path: Path) -> None:
    clip = tmp_path / "belt.mp4"
    write_clip(clip, BeltCamera("north-drift", 1, 1), 1.0)
    still = tmp_path / "still"
    still.mkdir()
    for number in range(4):
        cv2.imwrite(str(still / f"{number}.png"), np.tile(np.arange(0, 240, 10, dtype=np.uint8), (16, 1)))
    moving, frozen, missing = (
        doctor.check_camera(CameraSettings(id="c", source=str(source), paced=False))
        for source in (clip, still, tmp_path / "nowhere.mp4")
    )
    assert moving.ok
    assert "picture moves" in moving.found
    assert not frozen.ok
    assert frozen.found.startswith("frozen: ")
    assert not missing.ok
    assert "nowhere.mp4" in missing.found


def test_key_frames_must_come_often_enough(tmp_path: Path) -> None:
    clip = tmp_path / "belt.mp4"
    write_clip(clip, BeltCamera("north-drift", 1, 1), 5.0)
    often = doctor.check_groups(CameraSettings(id="c", source=str(clip), paced=False))
    assert (often.ok, often.found) == (True, "one every 2.0 s")
    short = tmp_path / "short.mp4"
    write_clip(short, BeltCamera("north-drift", 1, 1), 1.0)
    once = doctor.check_groups(CameraSettings(id="c", source=str(clip), substream=str(short), paced=False))
    assert not once.ok, "what is looked at is the sub-stream"
    assert "Smart Codec" in once.mend


def test_the_command_lists_everything_and_fails_when_something_is_not_well(
    tmp_path: Path, free_port: int, release_root: Path
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(
        f'gateway_id = "gw-1"\nsite_id = "north"\nrelease_root = "{release_root}"\ndata_dir = "{tmp_path / "data"}"\n'
        f'[broker]\nport = {free_port}\n[[cameras]]\nid = "belt"\nsource = "{tmp_path / "nowhere.mp4"}"\n'
    )
    said: list[str] = []
    with pytest.raises(EnvironmentFault, match="not well: broker, camera belt, key frames belt"):
        doctor.doctor_command(config, json=True, show=said.append)
    found = {check["name"]: check for check in json.loads(said[0])}
    assert {"Python", "ONNX Runtime", "disk", "clock", "TLS", "broker", "camera belt"} <= set(found)
    assert all(check["mend"] for check in found.values() if not check["ok"])
