"""The store: what it keeps, that it keeps it once, and that a picture is on disk before its row."""

import errno
import os
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, create_engine, event

from cloud.store import Run, Store
from cloud.store import operations as operations_module
from cloud.store.models import Base
from common.errors import EnvironmentFault, OperatorError, WireError
from common.messages import CameraState, Sample, Scores, State

MakeSample = Callable[..., Sample]
BACKBONE = "b" * 64


@pytest.fixture
def full_database() -> Iterator[None]:
    """SQLite that says `database or disk is full` after its first pages."""

    def bound(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA max_page_count = 48")

    event.listen(Engine, "connect", bound)
    yield
    event.remove(Engine, "connect", bound)


def count_rows(folder: Path, table: str = "samples") -> int:
    with sqlite3.connect(folder / "centre.db") as connection:
        found: int = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]  # noqa: S608  our own name
    connection.close()
    return found


# --- samples ----------------------------------------------------------------------------------


def test_a_sample_comes_back_as_it_was_sent(store: Store, make_sample: MakeSample) -> None:
    sample = make_sample(7)
    assert store.add_samples([sample], 99) == 1
    found = store.sample(sample.sample_id)
    assert found is not None
    for name in Sample.__struct_fields__:
        if name not in ("jpeg", "embedding"):
            assert getattr(found, name) == getattr(sample, name), name
    assert (found.received_at_ns, found.labels) == (99, {})
    assert store.jpeg(sample.sample_id) == sample.jpeg


def test_a_sample_that_comes_again_is_stored_once(store: Store, make_sample: MakeSample, tmp_path: Path) -> None:
    first, second, third = (make_sample(number) for number in range(3))
    assert store.add_samples([first, second, first], 1) == 2
    assert store.add_samples([second, third], 2) == 1
    assert store.add_samples([], 3) == 0
    assert store.sample_ids() == {first.sample_id, second.sample_id, third.sample_id}
    assert count_rows(tmp_path) == 3
    found = store.sample(second.sample_id)
    assert found is not None
    assert found.received_at_ns == 1, "the first arrival counts"


def test_an_unknown_sample_is_none_and_has_no_picture(store: Store) -> None:
    assert store.sample(b"x" * 16) is None
    with pytest.raises(KeyError):
        store.jpeg(b"x" * 16)
    with pytest.raises(OperatorError, match="no sample"):
        store.add_label(b"x" * 16, "belt", "tear", "li", 1)


def test_a_store_that_is_opened_again_holds_everything(make_sample: MakeSample, tmp_path: Path) -> None:
    sample = make_sample()
    url = f"sqlite:///{tmp_path / 'centre.db'}"
    first = Store.open(url, tmp_path / "blobs")
    first.add_samples([sample], 1)
    first.add_label(sample.sample_id, "belt", "tear", "li", 2)
    first.close()
    second = Store.open(url, tmp_path / "blobs")
    assert second.labels("belt") == {sample.sample_id: "tear"}
    assert second.jpeg(sample.sample_id) == sample.jpeg
    second.close()


def test_one_value_that_no_column_takes_stores_nothing_of_its_batch(store: Store, make_sample: MakeSample) -> None:
    for poison in (make_sample(1, scores=Scores(0, 0, 0, 0, float("nan"))), make_sample(1, width_px=2**63)):
        with pytest.raises(WireError, match="does not take"):
            store.add_samples([make_sample(0), poison], 1)
    assert store.sample_ids() == set()
    assert store.add_samples([make_sample(0)], 1) == 1


def test_samples_are_filtered_by_site_and_label_and_paged(store: Store, make_sample: MakeSample) -> None:
    north = [make_sample(number) for number in range(3)]
    south = make_sample(9, gateway_id="south-1", site_id="south")
    store.add_samples([*north, south], 1)
    store.add_label(north[0].sample_id, "belt", "tear", "li", 1)
    store.add_label(north[1].sample_id, "helmet", "none", "li", 1)

    def ids(**query: object) -> set[bytes]:
        return {sample.sample_id for sample in store.samples(**query)}  # type: ignore[arg-type]

    assert ids(site="south") == {south.sample_id}
    assert ids(labelled=True) == {north[0].sample_id, north[1].sample_id}
    assert ids(labelled=False) == {north[2].sample_id, south.sample_id}
    assert ids(labelled=True, scenario="belt") == {north[0].sample_id}
    assert ids(labelled=False, scenario="belt") == {north[1].sample_id, north[2].sample_id, south.sample_id}
    pages = [store.samples(limit=3, offset=offset) for offset in (0, 3)]
    assert [len(page) for page in pages] == [3, 1]
    assert {sample.sample_id for page in pages for sample in page} == ids(limit=None)


def test_the_queue_takes_the_sites_in_turn_and_the_most_valuable_first(store: Store, make_sample: MakeSample) -> None:
    def of(site: str, number: int, value: float) -> Sample:
        return make_sample(number, gateway_id=f"{site}-1", site_id=site, value=value)

    best, good, fair = of("north", 1, 0.9), of("north", 2, 0.8), of("north", 3, 0.7)
    weak, done = of("south", 4, 0.2), of("south", 5, 0.95)
    store.add_samples([fair, weak, good, done, best], 1)
    store.add_label(done.sample_id, "belt", "tear", "li", 1)
    assert [s.sample_id for s in store.queue("belt", 10)] == [s.sample_id for s in (best, weak, good, fair)]
    assert [s.sample_id for s in store.queue("belt", 2)] == [best.sample_id, weak.sample_id]
    assert done.sample_id in {s.sample_id for s in store.queue("helmet", 10)}, "a label is of one scenario"


def test_a_grown_store_is_not_sorted_for_a_page(store: Store, make_sample: MakeSample) -> None:
    """The plan of SQLite for the newest, and for the queue, of which only the ids are numbered from an index."""
    store.add_samples([make_sample(number) for number in range(3)], 1)
    asked: list[tuple[str, object]] = []
    event.listen(
        store._engine, "before_cursor_execute", lambda _c, _cu, statement, given, *_: asked.append((statement, given))
    )
    store.samples(limit=2)
    store.queue("belt", 2)
    plans = []
    with store._engine.connect() as connection:
        for statement, given in [pair for pair in asked if "FROM samples" in pair[0]]:
            rows = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", given).all()
            plans.append(" / ".join(row[3] for row in rows))
    newest, *others = plans
    assert "USING INDEX samples_by_arrival" in newest
    assert "TEMP B-TREE" not in newest
    assert any("COVERING INDEX samples_by_value" in plan for plan in others)


def test_counts_are_of_samples_labels_refusals_and_sites(store: Store, make_sample: MakeSample) -> None:
    assert store.counts() == {"samples": 0, "labels": 0, "quarantined": 0, "by_site": {}}
    samples = [make_sample(0), make_sample(1), make_sample(2, site_id="south")]
    store.add_samples(samples, 1)
    store.add_label(samples[0].sample_id, "belt", "tear", "li", 1)
    store.quarantine("north-1", "topic", "why", b"payload", 1)
    assert store.counts() == {"samples": 3, "labels": 1, "quarantined": 1, "by_site": {"north": 2, "south": 1}}


# --- labels -----------------------------------------------------------------------------------


def test_the_newest_label_counts_and_the_history_is_kept(store: Store, make_sample: MakeSample, tmp_path: Path) -> None:
    name = make_sample().sample_id
    store.add_samples([make_sample()], 1)
    for at_ns, label in enumerate(["tear", "normal", "tear", "tear"]):
        store.add_label(name, "belt", label, "li", at_ns)
    store.add_label(name, "helmet", "none", "li", 9)
    assert store.labels("belt") == {name: "tear"}
    found = store.sample(name)
    assert found is not None
    assert found.labels == {"belt": "tear", "helmet": "none"}
    assert count_rows(tmp_path, "labels") == 4, "saying the same again adds nothing"


def test_an_empty_label_takes_the_label_back(store: Store, make_sample: MakeSample) -> None:
    name = make_sample().sample_id
    store.add_samples([make_sample()], 1)
    store.add_label(name, "belt", "tear", "li", 1)
    store.add_label(name, "belt", "", "li", 2)
    assert store.labels("belt") == {}
    assert [sample.sample_id for sample in store.queue("belt", 5)] == [name]
    assert store.labelled("belt", BACKBONE).labels == []


def test_labels_are_stored_all_or_none(store: Store, make_sample: MakeSample) -> None:
    known, unknown = make_sample(0), make_sample(1)
    store.add_samples([known], 1)
    rows = [(known.sample_id, "belt", "tear"), (unknown.sample_id, "belt", "tear")]
    with pytest.raises(OperatorError, match=unknown.sample_id.hex()):
        store.add_labels(rows, "li", 1)
    assert store.labels("belt") == {}


@pytest.mark.parametrize("label", ["x" * 121, "two\nlines", " padded", "nul\0"])
def test_a_label_is_one_line_of_text(store: Store, make_sample: MakeSample, label: str) -> None:
    store.add_samples([make_sample()], 1)
    with pytest.raises(OperatorError, match="not valid"):
        store.add_label(make_sample().sample_id, "belt", label, "li", 1)
    store.add_label(make_sample().sample_id, "belt", "撕裂", "李", 1)
    assert set(store.labels("belt").values()) == {"撕裂"}


def test_the_labelled_set_is_of_one_backbone_row_by_row(store: Store, make_sample: MakeSample) -> None:
    samples = [make_sample(0), make_sample(1, gateway_id="south-1", site_id="south"), make_sample(2, backbone="c" * 64)]
    store.add_samples(samples, 1)
    for sample, label in zip(samples, ("tear", "normal", "tear"), strict=True):
        store.add_label(sample.sample_id, "belt", label, "li", 1)
    found = store.labelled("belt", BACKBONE)
    rows = dict(zip(found.sample_ids, zip(found.gateways, found.sites, found.labels, strict=True), strict=True))
    assert rows == {
        samples[0].sample_id: ("north-1", "north", "tear"),
        samples[1].sample_id: ("south-1", "south", "normal"),
    }
    by_id = {sample.sample_id: sample for sample in samples}
    assert found.embeddings.dtype == np.float32
    for name, row in zip(found.sample_ids, found.embeddings, strict=True):
        np.testing.assert_array_equal(row, np.frombuffer(by_id[name].embedding, "<f2"))


def test_a_gateway_with_a_wrong_dimension_does_not_stop_the_others(store: Store, make_sample: MakeSample) -> None:
    good = [make_sample(number) for number in range(3)]
    odd = make_sample(3, embedding=np.ones(9, "<f2").tobytes())
    store.add_samples([*good, odd], 1)
    store.add_labels([(s.sample_id, "belt", "tear") for s in (*good, odd)], "li", 1)
    found = store.labelled("belt", BACKBONE)
    assert set(found.sample_ids) == {sample.sample_id for sample in good}
    assert found.embeddings.shape == (3, 4)


# --- the rest of the memory -------------------------------------------------------------------


def test_the_newest_state_of_each_gateway_is_kept(store: Store) -> None:
    def state(gateway_id: str, at_ns: int) -> State:
        cameras = (CameraState(camera_id="belt", state="live", frames=3),)
        return State(
            gateway_id=gateway_id, site_id="s", at_ns=at_ns, agent_version="1", release_id="r1", cameras=cameras
        )

    for told in (state("south-1", 1), state("north-1", 1), state("south-1", 2)):
        store.put_state(told)
    assert store.states() == [state("north-1", 1), state("south-1", 2)]


def test_the_quarantine_is_bounded(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations_module, "QUARANTINE_MAX", 5)
    for number in range(9):
        store.quarantine("g" * 90, "t" * 300, f"reason {number} " + "x" * 600, b"p" * 100_000, number)
    kept = store.quarantined()
    assert [reason[:8] for _, _, reason in kept] == [f"reason {number}" for number in (8, 7, 6, 5, 4)]


def test_a_contribution_replaces_the_one_before_and_needs_no_pickle(store: Store) -> None:
    for number in (1.0, 2.0):
        arrays = {"counts": np.full(2, number), "moment": np.eye(3) * number}
        store.put_contribution("belt", BACKBONE, "north-1", arrays, {"covered": [], "n": number}, int(number))
    store.put_contribution("belt", BACKBONE, "south-1", {"counts": np.zeros(2)}, {}, 1)
    store.put_contribution("belt", "c" * 64, "north-1", {"counts": np.ones(2)}, {}, 1)
    north, south = store.contributions("belt", BACKBONE)
    assert (north.client, north.meta, north.at_ns, south.client) == ("north-1", {"covered": [], "n": 2.0}, 2, "south-1")
    np.testing.assert_array_equal(north.arrays["moment"], np.eye(3) * 2)
    with pytest.raises(ValueError, match="allow_pickle"):
        store.put_contribution("belt", BACKBONE, "x", {"counts": np.array([object()])}, {}, 1)  # type: ignore[dict-item]


def test_runs_are_recorded_and_updated(store: Store) -> None:
    store.add_run(Run("run-1", 1, None, "queued", {"author": "li"}))
    store.add_run(Run("run-2", 2, None, "queued", {}))
    store.update_run(Run("run-1", 1, 5, "released", {"release_id": "r2"}))
    assert [(run.run_id, run.status, run.finished_ns) for run in store.runs()] == [
        ("run-2", "queued", None),
        ("run-1", "released", 5),
    ]


def test_one_release_is_active_at_any_time(store: Store) -> None:
    for sequence in (1, 2, 3):
        store.add_release(f"r{sequence}", sequence, b"m", b"s", {"passed": True}, status="active", at_ns=sequence)
    assert [(r.release_id, r.status) for r in store.releases()] == [
        ("r3", "active"),
        ("r2", "superseded"),
        ("r1", "superseded"),
    ]
    store.set_release_status("r1", "active")
    assert {r.release_id for r in store.releases() if r.status == "active"} == {"r1"}
    found = store.release("r3")
    assert found is not None
    assert (found.status, found.manifest, found.gate) == ("superseded", b"m", {"passed": True})
    assert store.release("r9") is None
    with pytest.raises(OperatorError, match="r9"):
        store.set_release_status("r9", "active")


def test_a_release_that_cannot_be_added_supersedes_nothing(store: Store) -> None:
    store.add_release("r1", 1, b"m", b"s", {}, status="active", at_ns=1)
    with pytest.raises(Exception, match="UNIQUE"):
        store.add_release("r1-again", 1, b"m", b"s", {}, status="active", at_ns=2)
    assert [(r.release_id, r.status) for r in store.releases()] == [("r1", "active")]


def test_the_audit_log_is_newest_first(store: Store) -> None:
    for number in range(4):
        store.audit("li", f"act {number}", {"n": number}, number)
    assert [row["action"] for row in store.audits(2)] == ["act 3", "act 2"]


# --- durability -------------------------------------------------------------------------------


def test_every_connection_is_durable(tmp_path: Path) -> None:
    seen: list[tuple[object, ...]] = []

    def look(connection: sqlite3.Connection, _record: object, _proxy: object) -> None:
        asked = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        seen.append(tuple(connection.execute(f"PRAGMA {name}").fetchone()[0] for name in asked))

    event.listen(Engine, "checkout", look)
    try:
        store = Store.open(f"sqlite:///{tmp_path / 'centre.db'}", tmp_path / "blobs")
        store.audit("li", "act", {}, 1)
        store.close()
    finally:
        event.remove(Engine, "checkout", look)
    assert set(seen) == {("wal", 2, 1, 20_000)}, "2 is FULL"


def test_the_picture_is_on_disk_before_its_row(
    make_sample: MakeSample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step in order: the folders, the segment's name in its folder, the bytes, and then the commit."""
    steps: list[str] = []

    def watch(name: str) -> None:
        act = getattr(os, name)

        def watched(descriptor: int) -> None:
            act(descriptor)
            steps.append(f"{name} {Path(f'/proc/self/fd/{descriptor}').readlink()}")

        monkeypatch.setattr(os, name, watched)

    store = Store.open(f"sqlite:///{tmp_path / 'centre.db'}", tmp_path / "blobs")
    watch("fsync")
    watch("fdatasync")
    listener = lambda _: steps.append("commit")  # noqa: E731
    event.listen(Engine, "commit", listener)
    samples = [make_sample(number) for number in range(6)]
    try:
        store.add_samples(samples, 1)
    finally:
        event.remove(Engine, "commit", listener)
        store.close()
    (segment,) = (tmp_path / "blobs").rglob("*.seg")
    folders = [f"fsync {folder}" for folder in (tmp_path / "blobs", tmp_path, segment.parent)]
    assert steps == [*folders, f"fdatasync {segment}", "commit"]
    assert segment.stat().st_size >= sum(len(sample.jpeg) for sample in samples)


def test_a_repeated_sample_takes_no_room_on_disk(store: Store, make_sample: MakeSample, tmp_path: Path) -> None:
    store.add_samples([make_sample(number) for number in range(4)], 1)
    (segment,) = (tmp_path / "blobs").rglob("*.seg")
    size = segment.stat().st_size
    assert store.add_samples([make_sample(number) for number in range(4)], 2) == 0
    assert segment.stat().st_size == size


def test_a_picture_that_the_disk_has_damaged_is_not_handed_out(
    store: Store, make_sample: MakeSample, tmp_path: Path
) -> None:
    sample = make_sample()
    store.add_samples([sample], 1)
    (segment,) = (tmp_path / "blobs").rglob("*.seg")
    data = bytearray(segment.read_bytes())
    data[500] ^= 1
    segment.write_bytes(data)
    with pytest.raises(EnvironmentFault, match="damaged"):
        store.jpeg(sample.sample_id)


def test_a_full_disk_names_the_path_and_stores_no_row(
    store: Store, make_sample: MakeSample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(os, "fdatasync", no_space)
        with pytest.raises(EnvironmentFault, match="is full") as caught:
            store.add_samples([make_sample()], 1)
    assert str(tmp_path / "blobs") in str(caught.value)
    assert caught.value.hint
    assert store.sample_ids() == set()
    assert store.add_samples([make_sample()], 1) == 1
    assert store.jpeg(make_sample().sample_id) == make_sample().jpeg


@pytest.mark.usefixtures("full_database")
def test_a_full_database_names_the_file_and_stores_no_row(make_sample: MakeSample, tmp_path: Path) -> None:
    store = Store.open(f"sqlite:///{tmp_path / 'centre.db'}", tmp_path / "blobs")
    big = np.ones(30_000, "<f2").tobytes()
    with pytest.raises(EnvironmentFault, match="is full") as caught:
        store.add_samples([make_sample(number, embedding=big) for number in range(8)], 1)
    assert str(tmp_path / "centre.db") in str(caught.value)
    assert store.sample_ids() == set()
    store.close()


# --- many threads, many processes -------------------------------------------------------------


def test_threads_and_a_second_process_write_without_losing_or_doubling(
    store: Store, make_sample: MakeSample, tmp_path: Path
) -> None:
    """Two stores on one file stand for two processes: SQLite's locks do not tell them apart."""
    other = Store.open(f"sqlite:///{tmp_path / 'centre.db'}", tmp_path / "blobs")
    samples = [make_sample(number) for number in range(40)]
    done = threading.Event()

    def send(at: int) -> int:
        mine = store if at % 2 else other
        return sum(mine.add_samples(samples[start : start + 8], at) for start in range(0, 40, 5))

    def label() -> int:
        return sum(
            store.add_labels([(name, "belt", label)], "li", 1)
            for label in ("tear", "normal")
            for name in sorted(store.sample_ids())
        )

    def read() -> int:
        rounds = 0
        while not done.is_set():
            rounds += len(store.queue("belt", 50)) >= 0
            assert store.counts()["samples"] <= 40
        return rounds

    with ThreadPoolExecutor(7) as pool:
        senders = [pool.submit(send, at) for at in range(4)]
        readers = [pool.submit(read)]
        labellers = [pool.submit(label)]
        stored = sum(sender.result(60) for sender in senders)
        labellers[0].result(60)
        done.set()
        assert readers[0].result(60)
    other.close()
    assert stored == 40, "each sample was new to exactly one of the writers"
    assert count_rows(tmp_path) == 40


def test_two_people_who_say_the_same_at_once_are_counted_once(
    store: Store, make_sample: MakeSample, tmp_path: Path
) -> None:
    store.add_samples([make_sample()], 1)
    barrier = threading.Barrier(6, timeout=20)

    def label(person: int) -> int:
        barrier.wait()
        return store.add_labels([(make_sample().sample_id, "belt", "tear")], f"person {person}", person)

    with ThreadPoolExecutor(6) as pool:
        assert sum(pool.map(label, range(6))) == 1
    assert count_rows(tmp_path, "labels") == 1


# --- schema -----------------------------------------------------------------------------------


@pytest.mark.usefixtures("store")
def test_the_migrations_make_what_the_models_say(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path / 'centre.db'}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    engine.dispose()


KILLED_WHILE_MIGRATING = """
import os, signal, sys
from pathlib import Path
from alembic.operations import Operations
from cloud.store import Store
make, made = Operations.create_table, []
def create_table(self, name, *columns, **more):
    made.append(name)
    if len(made) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return make(self, name, *columns, **more)
Operations.create_table = create_table
Store.open(sys.argv[1], Path(sys.argv[2]))
"""


def test_a_process_killed_while_migrating_leaves_a_database_that_opens(tmp_path: Path, make_sample: MakeSample) -> None:
    url, blobs = f"sqlite:///{tmp_path / 'centre.db'}", tmp_path / "blobs"
    command = [sys.executable, "-c", KILLED_WHILE_MIGRATING, url, str(blobs)]
    killed = subprocess.run(command, timeout=60, check=False, cwd=Path(__file__).parents[2])
    assert killed.returncode == -signal.SIGKILL
    store = Store.open(url, blobs)
    assert store.add_samples([make_sample()], 1) == 1
    store.close()


def test_several_that_open_at_once_migrate_once(tmp_path: Path) -> None:
    def open_one(_: int) -> None:
        Store.open(f"sqlite:///{tmp_path / 'centre.db'}", tmp_path / "blobs").close()

    with ThreadPoolExecutor(1) as pool:  # Alembic's context is one per process; the second process is real below
        command = [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from cloud.store import Store;"
            "Store.open(sys.argv[1], Path(sys.argv[2])).close()",
            f"sqlite:///{tmp_path / 'centre.db'}",
            str(tmp_path / "blobs"),
        ]
        others = [subprocess.Popen(command, cwd=Path(__file__).parents[2]) for _ in range(2)]
        pool.submit(open_one, 0).result(60)
        assert [other.wait(60) for other in others] == [0, 0]


def test_a_database_of_a_newer_version_is_refused_with_a_hint(tmp_path: Path) -> None:
    file = tmp_path / "centre.db"
    Store.open(f"sqlite:///{file}", tmp_path / "blobs").close()
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(OperatorError, match="another version") as caught:
        Store.open(f"sqlite:///{file}", tmp_path / "blobs")
    assert caught.value.hint


def test_what_is_no_database_is_said_so(tmp_path: Path) -> None:
    file = tmp_path / "centre.db"
    file.write_bytes(b"this is text, not a database" * 100)
    with pytest.raises(EnvironmentFault, match="not a database") as caught:
        Store.open(f"sqlite:///{file}", tmp_path / "blobs")
    assert str(file) in str(caught.value)
    with pytest.raises(EnvironmentFault, match="nowhere"):
        Store.open(f"sqlite:///{tmp_path}/nowhere/centre.db", tmp_path / "blobs")
    for url in ("no url", "nosuch://x", "mysql://someone:secret@host/x"):
        with pytest.raises(OperatorError) as wrong:
            Store.open(url, tmp_path / "blobs")
        assert "secret" not in str(wrong.value)


def test_sample_fields_and_columns_are_the_same() -> None:
    """A field added to the message must be stored, or be left out on purpose."""
    columns = set(Base.metadata.tables["samples"].columns.keys())
    assert set(Sample.__struct_fields__) == columns - {"received_at_ns", "value"}
    assert "value" in msgspec.structs.asdict(Scores(0, 0, 0, 0, 0))
