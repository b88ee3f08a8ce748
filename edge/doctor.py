"""`headframe doctor`: checks a box before it is trusted, and says in words what to mend."""

import json as json_module
import os
import shutil
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import psutil
import typer
from cryptography import x509
from cryptography.x509.oid import NameOID
from rich.console import Console
from rich.table import Table

from common.clock import SystemClock
from common.errors import ConfigError, EnvironmentFault, HeadframeError
from common.metadata import check_root, is_development, read_root
from common.mqtt import MqttLink
from common.settings import BrokerSection, load_settings
from common.tls import client_context
from edge.health import SENTENCES, Condition, Health, glance
from edge.installer import BUILT_AT_NS
from edge.motion import Luma, changed_share, shrink
from edge.providers import Compute
from edge.settings import CameraSettings, EdgeSettings, TrainingSettings
from edge.sources import hide_password, is_live, open_source, open_stream
from edge.trainer import load_app

SYNCS = 30
SYNC_MS_MAX = 50.0
BROKER_S = 8.0
CAMERA_S = 10.0
GROUP_S_MAX = 4.0
FREE_BYTES_MIN = 1_000_000_000
MEMORY_BYTES_MIN = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Check:
    """One finding: what was looked at, whether it is well, what was seen, and what to do if not."""

    name: str
    ok: bool
    found: str
    mend: str = ""


def check_python() -> Check:
    """The interpreter's version."""
    ok = sys.version_info >= (3, 11)
    return Check("Python", ok, sys.version.split()[0], "" if ok else "Install Python 3.11 or later.")


def check_onnxruntime() -> Check:
    """ONNX Runtime is there and can run on the CPU."""
    providers = onnxruntime.get_available_providers()
    ok = "CPUExecutionProvider" in providers
    found = f"{onnxruntime.__version__}: {', '.join(providers)}"
    return Check("ONNX Runtime", ok, found, "" if ok else "Install onnxruntime again: its CPU provider is missing.")


def check_compute(wanted: str, compiled: Path | None = None) -> Check:
    """What models run on here, and why; a provider that was asked for and does not run is a finding."""
    choice = Compute(wanted, compiled).probe()
    ok = wanted in ("auto", choice.name)
    mend = "" if ok else f"Install the onnxruntime of {wanted} and its driver, or set compute.provider to auto."
    return Check("compute", ok, f"{choice.name}: {choice.reason}", mend)


def check_machine() -> Check:
    """Cores and memory."""
    memory = psutil.virtual_memory()
    ok = memory.available >= MEMORY_BYTES_MIN
    found = f"{os.cpu_count()} cores, {memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB memory free"
    return Check("machine", ok, found, "" if ok else "Free memory: the agent wants at least 1 GB.")


def check_disk(folder: Path) -> Check:
    """How long the disk takes to make 4 kB durable, and how much room there is."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        times_ms = []
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(SYNCS):
                began_s = time.perf_counter()
                file.write(b"\0" * 4096)
                file.flush()
                os.fsync(file.fileno())
                times_ms.append((time.perf_counter() - began_s) * 1e3)
    except OSError as error:
        return Check("disk", False, f"{folder}: {error.strerror}", f"Make {folder} writable for the agent's user.")
    free, median_ms = shutil.disk_usage(folder).free, statistics.median(times_ms)
    found = f"{folder}: {median_ms:.2f} ms to make 4 kB durable, {free / 1e9:.1f} GB free"
    if free < FREE_BYTES_MIN:
        return Check("disk", False, found, "Free space: the spool and the releases want at least 1 GB.")
    if median_ms > SYNC_MS_MAX:
        return Check("disk", False, found, "This disk is slow to sync (SD card?): use an SSD for data_dir.")
    return Check("disk", True, found)


def check_clock(now_ns: int) -> Check:
    """The clock must not be in 1970: releases expire, certificates begin."""
    shown = datetime.fromtimestamp(now_ns / 1e9, UTC).isoformat(timespec="seconds")
    ok = now_ns >= BUILT_AT_NS
    return Check("clock", ok, shown, "" if ok else "Set the clock, and install a time service (chrony).")


def check_trust(path: Path) -> Check:
    """The root of trust in releases is there, whole, and its keys are not all on the centre's machine."""
    try:
        root = read_root(path)
        version = check_root(root)
    except HeadframeError as error:
        return Check("root of trust", False, error.message, error.hint)
    if is_development(root):
        found = f"version {version}, DEVELOPMENT keys: the centre's machine alone can sign anything"
        return Check("root of trust", True, found, "For production: `headframe cloud keys rotate root --folder …`.")
    return Check("root of trust", True, f"version {version}, offline keys")


def check_training(training: TrainingSettings, share: str) -> Check:
    """The app that trains here can be loaded, and what it learns may leave."""
    try:
        load_app(training.app)
    except ConfigError as error:
        return Check("training", False, error.message, error.hint)
    if share == "samples":
        return Check("training", False, 'share = "samples"', 'Updates may leave with share = "updates" or "both".')
    if training.pictures and not training.pictures.is_dir():
        return Check("training", False, f"there is no folder {training.pictures}", "Mend training.pictures.")
    return Check("training", True, training.app)


def check_broker(broker: BrokerSection, gateway_id: str) -> Check:
    """TCP, then MQTT with the configured identity."""
    where = f"{broker.host}:{broker.port}"
    try:
        socket.create_connection((broker.host, broker.port), timeout=BROKER_S).close()
    except OSError as error:
        mend = "Check the address, that the broker runs, and that the firewall lets this box out."
        return Check("broker", False, f"{where}: {error.strerror or error}", mend)
    link = MqttLink(broker.to_broker(), f"headframe-doctor-{gateway_id}", (), lambda _topic, _payload: None)
    try:
        link.start()
        link.wait_connected(BROKER_S)
    except HeadframeError as error:
        return Check("broker", False, error.message, "Check user name, certificate, and the broker's own log.")
    finally:
        link.stop()
    return Check("broker", True, f"{where} answers as MQTT 3.1.1")


def check_tls(broker: BrokerSection, gateway_id: str, now: datetime) -> Check:
    """The client certificate: readable, in time, and of this gateway."""
    if broker.ca_file is None:
        return Check("TLS", True, "not configured: samples travel in the clear, for trusted networks only")
    if broker.cert_file is None:
        return Check("TLS", False, "a CA but no client certificate", "Enrol: `headframe edge enroll`.")
    try:
        client_context(broker.ca_file, broker.cert_file, broker.key_file)
        certificate = x509.load_pem_x509_certificate(broker.cert_file.read_bytes())
    except (HeadframeError, OSError, ValueError) as error:
        mend = "Restore the certificate files named under [broker], or enrol again: `headframe edge enroll`."
        return Check("TLS", False, getattr(error, "message", str(error)), mend)
    names = [item.value for item in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
    if now < certificate.not_valid_before_utc or now > certificate.not_valid_after_utc:
        found = f"valid {certificate.not_valid_before_utc:%Y-%m-%d} to {certificate.not_valid_after_utc:%Y-%m-%d}"
        return Check("TLS", False, found, "Renew the certificate, or mend the clock.")
    if names != [gateway_id]:
        return Check("TLS", False, f"the certificate is of {names}", f"Use the certificate of {gateway_id}.")
    return Check("TLS", True, f"certificate of {gateway_id}, valid to {certificate.not_valid_after_utc:%Y-%m-%d}")


def check_camera(camera: CameraSettings, name: str = "") -> Check:
    """The camera opens, its picture lives, and there is something to be seen in it."""
    name, health = name or f"camera {camera.id}", Health(can_freeze=is_live(camera.source))
    first: Luma | None = None
    frames, changes, seen, size = 0, False, Condition.LIVE, ""
    deadline = time.monotonic() + CAMERA_S
    try:
        for shot in open_source(camera, SystemClock()):
            frames += 1
            size = f"{shot.image.shape[1]} x {shot.image.shape[0]}"
            luma = shrink(np.asarray(cv2.cvtColor(shot.image, cv2.COLOR_BGR2GRAY), dtype=np.uint8))
            first = luma if first is None else first
            changes = changes or not np.array_equal(first, luma)
            if health.wants(shot.captured_at_ns, is_key=shot.is_key):
                health.observe(shot.captured_at_ns, luma)
            seen = glance(luma)
            moves = seen is Condition.LIVE and changed_share(first, luma) > 0
            if moves or health.condition is not Condition.LIVE or time.monotonic() > deadline:
                break
    except (HeadframeError, OSError) as error:
        hint = error.hint if isinstance(error, HeadframeError) else "Check the source."
        return Check(name, False, str(getattr(error, "message", error)), hint)
    if not frames:
        return Check(name, False, "no frame", "Check the camera itself.")
    if seen is Condition.LIVE:
        seen = health.condition if changes else Condition.FROZEN
    if seen is not Condition.LIVE:
        return Check(name, False, f"{seen.value}: {SENTENCES[seen]} ({frames} frames)", "Go and see the camera.")
    return Check(name, True, f"{hide_password(camera.source)}: {size}, picture moves after {frames} frames")


def check_groups(camera: CameraSettings) -> Check:
    """Key frames come often enough: news of an idle camera wait for the next one."""
    name, keys, began_s = f"key frames {camera.id}", list[float](), time.monotonic()
    watched = camera.substream or camera.source
    try:
        for arrival in open_stream(watched, camera, SystemClock()):
            if arrival.packet is None:
                return Check(name, True, "a folder of pictures has none")
            data = arrival.packet.data  # its own time: what arrives while a stream is opened comes in a bunch
            if arrival.packet.is_key and data.pts is not None:
                keys.append(float(data.pts * data.time_base))
            if len(keys) == 2 or time.monotonic() - began_s > CAMERA_S:
                break
    except HeadframeError as error:
        return Check(name, False, error.message, error.hint)
    mend = f"Set the key-frame interval of {hide_password(watched)} to 2 s; switch off H.264+ or Smart Codec."
    if len(keys) < 2:
        return Check(name, False, f"not two in {CAMERA_S:g} s", mend)
    apart_s = keys[1] - keys[0]
    return Check(name, apart_s <= GROUP_S_MAX, f"one every {apart_s:.1f} s", "" if apart_s <= GROUP_S_MAX else mend)


def examine(settings: EdgeSettings | None) -> Iterator[Check]:
    """Every check that applies, one by one."""
    yield check_python()
    yield check_onnxruntime()
    yield check_compute(settings.compute.provider if settings else "auto")
    yield check_machine()
    yield check_clock(time.time_ns())
    yield check_disk(settings.data_dir if settings else Path.cwd())
    if settings:
        yield check_trust(settings.release_root)
        yield check_tls(settings.broker, settings.gateway_id, datetime.now(UTC))
        yield check_broker(settings.broker, settings.gateway_id)
        if settings.training.app:
            yield check_training(settings.training, settings.share)
        for camera in settings.cameras:
            yield check_camera(camera)
            if camera.substream:
                sub = camera.model_copy(update={"source": camera.substream, "substream": None})
                yield check_camera(sub, f"sub-stream {camera.id}")
            yield check_groups(camera)


def doctor_command(config: Path | None, *, json: bool, show: Callable[[str], None] = typer.echo) -> None:
    """Print the findings.

    Raises:
        EnvironmentFault: a check failed; the command ends with status 2.
    """
    checks = list(examine(load_settings(EdgeSettings, config) if config else None))
    if json:
        show(json_module.dumps([asdict(check) for check in checks], ensure_ascii=False))
    else:
        table = Table("", "check", "found", "what to do")
        for check in checks:
            table.add_row("[green]✓[/]" if check.ok else "[red]✗[/]", check.name, check.found, check.mend)
        Console().print(table)
    failed = [check.name for check in checks if not check.ok]
    if failed:
        raise EnvironmentFault(f"not well: {', '.join(failed)}", "See 'what to do' above.")
