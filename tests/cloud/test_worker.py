"""Ingest workers: several share a fleet by shard on one database, SQLite or a real PostgreSQL; none loses a sample."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cloud.service import filters_of
from cloud.settings import CloudSettings, IngestSettings, parse_shards
from cloud.store import Store
from cloud.store.delivery import SpoolLife
from cloud.worker import Worker
from common import codec, topics
from common.errors import OperatorError
from common.messages import Receipt, Sample
from common.mqtt import Broker, MqttLink
from simulations.bench._flood import a_broker, find_mosquitto

MakeSample = Callable[..., Sample]
NOBODY = 65534
"""The server refuses to run as root."""


@pytest.fixture(scope="module")
def postgresql(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server of the test's own, on a socket in its folder."""
    pytest.importorskip("psycopg", reason="no psycopg: pip install 'headframe[postgresql]'")
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    if not found:
        pytest.skip("no PostgreSQL on this machine: apt-get install postgresql")
    folder = Path(f"/tmp/headframe-pg-{os.getpid()}")  # noqa: S108  a socket's path is short, and nobody must reach it
    folder.mkdir()
    as_nobody = {"user": NOBODY, "group": NOBODY} if os.geteuid() == 0 else {}
    if as_nobody:
        os.chown(folder, NOBODY, NOBODY)
    command = [found[-1] / "initdb", "-D", folder / "data", "-U", "headframe", "-A", "trust", "-E", "UTF8", "--no-sync"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **as_nobody)
    server = subprocess.Popen(
        [found[-1] / "postgres", "-D", folder / "data", "-k", folder, "-h", "", "-c", "shared_buffers=16MB"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        **as_nobody,
    )
    try:
        deadline = time.monotonic() + 30
        while subprocess.call([found[-1] / "pg_isready", "-h", folder, "-U", "headframe"], stdout=subprocess.DEVNULL):
            assert time.monotonic() < deadline, "PostgreSQL did not start in 30 s"
            time.sleep(0.1)
        yield f"postgresql+psycopg://headframe@/postgres?host={folder}"
    finally:
        server.terminate()
        server.wait(20)
        shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> CloudSettings:
    url = request.getfixturevalue("postgresql") if request.param == "postgresql" else None
    return CloudSettings(data_dir=tmp_path, database=url, ingest=IngestSettings(batch=16, batch_wait_s=0.02))


@pytest.fixture
def mosquitto(tmp_path: Path) -> Iterator[Broker]:
    """nats-server takes 63 subscriptions of a client; half of the shards are 384."""
    if find_mosquitto() is None:
        pytest.skip("no mosquitto on this machine: apt-get install mosquitto")
    with a_broker(tmp_path) as (broker, _):
        yield broker


def test_two_workers_share_a_fleet_and_every_sample_is_there_once(
    mosquitto: Broker, settings: CloudSettings, make_sample: MakeSample
) -> None:
    gateways = [f"gw-{number}" for number in range(12)]
    assert {topics.shard(name) < 128 for name in gateways} == {True, False}, "both workers have some"
    samples = [
        make_sample(number, gateway_id=gateways[number % 12], epoch="e" * 16, sequence=number // 12 + 1, size=(16, 16))
        for number in range(120)
    ]
    receipted: set[bytes] = set()

    def on_receipt(_topic: str, payload: bytes) -> None:
        message = codec.decode(payload)
        assert isinstance(message, Receipt)
        receipted.update(message.stored)

    Store.open(settings.database_url, settings.data_dir / "blobs").close()
    workers = [Worker(settings, mosquitto, shards) for shards in (range(128), range(128, 256))]
    link = MqttLink(mosquitto, "gateways", ("headframe/down/#",), on_receipt, window=1000)
    try:
        for worker in workers:
            worker.start()
            worker.link.wait_connected(15)
        link.start()
        link.wait_connected(15)
        time.sleep(0.2)
        for sample in samples * 2:  # each is sent again before its receipt
            assert link.publish(topics.up(sample.gateway_id, "sample"), codec.encode(sample))
        deadline = time.monotonic() + 30
        while receipted != {sample.sample_id for sample in samples}:
            assert time.monotonic() < deadline, f"{len(receipted)} receipts"
            time.sleep(0.02)
        while sum(worker.ingest.figures()["received"] for worker in workers) < 240:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        link.stop()
        for worker in workers:
            worker.stop()
    stored = [worker.ingest.figures()["stored"] for worker in workers]
    assert sum(stored) == 120
    assert min(stored) > 0
    store = Store.open(settings.database_url, settings.data_dir / "blobs")
    assert store.sample_ids() >= receipted
    assert all(store.jpeg(sample.sample_id) == sample.jpeg for sample in samples)
    store.put_spool_lives([SpoolLife(name, "e" * 16, 10, 11, 0, 0, 1) for name in gateways])
    assert [(gap.stored, gap.missing) for gap in store.gaps()] == [(10, 0)] * 12
    store.close()


def test_the_centre_leaves_shards_to_its_workers() -> None:
    assert filters_of("0-255") == ["headframe/up/+/+/+"]
    alone = filters_of("")
    assert "headframe/up/+/+/state" in alone
    assert not any(name.endswith(("/sample", "/chunk", "/ledger")) for name in alone)
    assert filters_of("0-1")[-1] == "headframe/up/01/+/ledger"
    for text in ("1", "5-2", "0-256", "a-b", "-1-4"):
        with pytest.raises(OperatorError, match="no range of shards"):
            parse_shards(text)
