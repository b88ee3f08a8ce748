"""The spool: nothing accepted is lost, the least valuable go first, and a crash leaves it whole."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from common import codec
from common.errors import EnvironmentFault
from common.messages import Receipt, Refusal, Sample, Scores, SpoolEpoch
from edge import spool as spool_module
from edge.spool import Spool

MakeSample = Callable[..., Sample]
REPOSITORY = Path(__file__).resolve().parents[2]


def bare_sample(number: int, value: float, size: int) -> Sample:
    return Sample(
        sample_id=number.to_bytes(16, "big"),
        gateway_id="g",
        site_id="s",
        camera_id="c",
        captured_at_ns=number,
        release_id="r",
        backbone="b",
        width_px=1,
        height_px=1,
        jpeg=bytes(size),
        embedding=b"",
        predictions=(),
        scores=Scores(0, 0, 0, 0, value),
        reason="novel",
    )


class SpoolAgainstModel(RuleBasedStateMachine):
    """Any order of accepting, receipting, refusing and reopening agrees with a dictionary."""

    BYTES_MAX = 3_000

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(prefix="headframe-spool-")
        self.path = Path(self.folder.name) / "spool.db"
        self.spool = Spool.open(self.path, self.BYTES_MAX)
        self.held: dict[bytes, tuple[float, int]] = {}
        self.ended: dict[bytes, str] = {}
        self.given = 0
        self.numbers: dict[bytes, int] = {}
        self.reported: set[int] = set()
        self.epoch = self.spool.epoch

    @rule(number=st.integers(0, 30), value=st.floats(0, 1, allow_nan=False), size=st.integers(0, 3_500))
    def accept(self, number: int, value: float, size: int) -> None:
        sample = bare_sample(number, value, size)
        new = sample.sample_id not in self.held and sample.sample_id not in self.ended
        assert self.spool.accept(sample) is new
        if new:
            self.given += 1
            numbered = msgspec.structs.replace(sample, epoch=self.spool.epoch, sequence=self.given)
            self.held[sample.sample_id] = value, len(codec.encode(numbered))
            self.numbers[sample.sample_id] = self.given
            ledger = self.spool.ledger()
            while sum(item[1] for item in self.held.values()) > self.BYTES_MAX:
                lowest = min(item[0] for item in self.held.values())
                gone = next(n for n, item in self.held.items() if item[0] == lowest and ledger[n] == "evicted")
                self.ended[gone] = "evicted"
                del self.held[gone]

    @rule(number=st.integers(0, 30), refused=st.booleans())
    def receipt(self, number: int, refused: bool) -> None:
        name = number.to_bytes(16, "big")
        receipt = Receipt(refused=(Refusal(name, "no"),)) if refused else Receipt(stored=(name,))
        self.spool.forget(receipt)
        if name in self.held:
            self.ended[name] = "refused" if refused else "receipted"
            del self.held[name]

    @rule(count=st.integers(1, 3))
    def report(self, count: int) -> None:
        entries = self.spool.ended(count)
        self.spool.forget(Receipt(ledger=tuple((entry.epoch, entry.sequence) for entry in entries)))
        self.reported |= {entry.sequence for entry in entries}

    @rule()
    def reopen(self) -> None:
        self.spool.close()
        self.spool = Spool.open(self.path, self.BYTES_MAX)

    @invariant()
    def agrees(self) -> None:
        assert self.spool.ledger() == {**dict.fromkeys(self.held, "accepted"), **self.ended}
        figures = self.spool.figures()
        assert figures.rows == len(self.held)
        assert figures.bytes == sum(item[1] for item in self.held.values()) <= self.BYTES_MAX
        for state in ("receipted", "evicted", "refused"):
            assert getattr(figures, state) == list(self.ended.values()).count(state)
        assert figures.accepted == len(self.held) + len(self.ended)
        evicted = {self.numbers[name] for name, state in self.ended.items() if state == "evicted"} - self.reported
        assert {entry.sequence for entry in self.spool.ended(100)} == evicted
        waiting = evicted | {self.numbers[name] for name in self.held}
        said = SpoolEpoch(self.epoch, self.given, min(waiting, default=self.given + 1), len(waiting))
        assert self.spool.epochs() == (said,), "every number is receipted, or waits"
        pending = self.spool.pending(5)
        assert [q.value for q in pending] == sorted((item[0] for item in self.held.values()), reverse=True)[:5]

    def teardown(self) -> None:
        self.spool.close()
        self.folder.cleanup()


TestSpoolAgainstModel = SpoolAgainstModel.TestCase
TestSpoolAgainstModel.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


def test_what_waits_is_the_very_message_and_the_most_valuable_first(tmp_path: Path, make_sample: MakeSample) -> None:
    spool = Spool.open(tmp_path / "spool.db", 10**9)
    samples = [make_sample(number, value=number / 10) for number in range(5)]
    for sample in samples:
        spool.accept(sample)
    pending = spool.pending(2, exclude={samples[4].sample_id})
    expected = [msgspec.structs.replace(samples[n], epoch=spool.epoch, sequence=n + 1) for n in (3, 2)]
    assert [codec.decode(queued.payload) for queued in pending] == expected
    spool.close()


def test_a_worthless_newcomer_does_not_evict_what_is_worth_more(tmp_path: Path, make_sample: MakeSample) -> None:
    size = len(codec.encode(make_sample(0)))
    spool = Spool.open(tmp_path / "spool.db", 2 * size + size // 2)
    good = [make_sample(number, value=0.9) for number in range(2)]
    for sample in (*good, make_sample(2, value=0.1)):
        spool.accept(sample)
    assert {queued.sample_id for queued in spool.pending(10)} == {sample.sample_id for sample in good}
    assert spool.figures().evicted == 1
    spool.close()


def test_every_row_is_durable(tmp_path: Path) -> None:
    connection = spool_module._connect(tmp_path / "spool.db")
    assert connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal"
    assert connection.execute("PRAGMA synchronous").fetchone()[0] == 2, "2 is FULL"
    connection.close()


def test_the_ledger_of_ended_samples_is_bounded(
    tmp_path: Path, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spool_module, "LEDGER_MAX", 5)
    spool = Spool.open(tmp_path / "spool.db", 10**9)
    kept = make_sample(100)
    spool.accept(kept)
    for number in range(20):
        spool.accept(make_sample(number))
        spool.forget(Receipt(stored=(make_sample(number).sample_id,)))
    ledger = spool.ledger()
    assert len(ledger) <= 7
    assert ledger[kept.sample_id] == "accepted", "what waits is never pruned"
    spool.close()


KILLED = """
import sys
from pathlib import Path
from edge.spool import Spool
sys.path.insert(0, sys.argv[2])
from test_spool import bare_sample
spool = Spool.open(Path(sys.argv[1]), 10**9)
for number in range(100_000):
    spool.accept(bare_sample(number, 0.5, 20_000))
    print(number, flush=True)
"""


def test_kill_9_in_mid_run_loses_no_accepted_sample(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    for _ in range(3):
        path.unlink(missing_ok=True)
        for leftover in ("spool.db-wal", "spool.db-shm"):
            (tmp_path / leftover).unlink(missing_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(path), str(Path(__file__).parent)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        for _ in range(40):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait(10)
        process.stdout.close()
        last = int(rest[-1]) if rest else last
        spool = Spool.open(path, 10**9)
        ledger = spool.ledger()
        assert all(number.to_bytes(16, "big") in ledger for number in range(last + 1))
        assert spool.figures().rows == len(ledger)
        assert len(spool.pending(1)[0].payload) > 20_000
        spool.close()


def test_a_full_disk_names_the_file_and_keeps_what_was_accepted(
    tmp_path: Path, make_sample: MakeSample, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = spool_module._connect

    def small(path: Path) -> sqlite3.Connection:
        connection = connect(path)
        connection.execute("PRAGMA max_page_count = 60")
        return connection

    monkeypatch.setattr(spool_module, "_connect", small)
    spool = Spool.open(tmp_path / "spool.db", 10**9)
    accepted = []
    with pytest.raises(EnvironmentFault, match=r"spool\.db is full") as caught:
        for number in range(1000):
            spool.accept(make_sample(number, size=8_000))
            accepted.append(make_sample(number, size=8_000).sample_id)
    assert caught.value.hint
    assert len(accepted) > 5
    assert set(spool.ledger()) == set(accepted)
    spool.forget(Receipt(stored=tuple(accepted)))
    assert spool.accept(make_sample(5_000, size=8_000)), "room again, samples again"
    spool.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="a small file system needs root")
def test_a_really_full_file_system_is_the_same(tmp_path: Path, make_sample: MakeSample) -> None:
    mount = tmp_path / "small"
    mount.mkdir()
    if subprocess.call(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(mount)], stderr=subprocess.DEVNULL):
        pytest.skip("this machine does not let us mount")
    try:
        spool = Spool.open(mount / "spool.db", 10**9)
        accepted = []
        with pytest.raises(EnvironmentFault, match=r"spool\.db"):
            for number in range(1000):
                spool.accept(make_sample(number, size=20_000))
                accepted.append(make_sample(number, size=20_000).sample_id)
        assert set(spool.ledger()) == set(accepted)
        spool.close()
        again = Spool.open(mount / "spool.db", 10**9)
        assert set(again.ledger()) == set(accepted)
        again.close()
    finally:
        subprocess.call(["umount", "-l", str(mount)])


def test_a_damaged_file_is_put_aside_and_the_agent_goes_on(tmp_path: Path, make_sample: MakeSample) -> None:
    path = tmp_path / "spool.db"
    path.write_bytes(b"this is no database " * 400)
    spool = Spool.open(path, 10**9)
    assert spool.accept(make_sample(1))
    spool.close()
    (aside,) = tmp_path.glob("spool.db.corrupt-*")
    assert aside.read_bytes().startswith(b"this is no database")


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EnvironmentFault, match=r"spool\.db"):
        Spool.open(tmp_path / "file" / "spool.db", 10**9)


class Clock:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic_s(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return 0


def test_what_is_too_old_is_let_go_by_running_time(tmp_path: Path) -> None:
    clock = Clock()
    spool = Spool.open(tmp_path / "spool.db", 10**9, age_max_s=100, clock=clock)
    spool.accept(bare_sample(1, 0.9, 10))
    clock.now_s = 60
    spool.accept(bare_sample(2, 0.1, 10))
    spool.close()
    later = Clock()
    later.now_s = 10**6  # another boot: only what it runs counts
    spool = Spool.open(tmp_path / "spool.db", 10**9, age_max_s=100, clock=later)
    spool.expire()
    assert spool.figures().rows == 2
    later.now_s += 50
    spool.expire()
    assert [(entry.sequence, entry.state, entry.value) for entry in spool.ended(10)] == [(1, "expired", 0.9)]
    assert (spool.figures().expired, spool.figures().rows) == (1, 1)
    spool.close()


def copy(folder: Path, to: Path) -> None:
    to.mkdir()
    for file in folder.iterdir():
        if file.is_file():
            shutil.copy2(file, to / file.name)


def test_a_restored_spool_begins_a_new_epoch(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    spool = Spool.open(folder / "spool.db", 10**9)
    first = spool.epoch
    spool.accept(bare_sample(1, 0.5, 10))
    spool.close()
    copy(folder, tmp_path / "image")
    for number in (2, 3):
        spool = Spool.open(folder / "spool.db", 10**9)
        assert spool.epoch == first, "a restart is no new life"
        spool.accept(bare_sample(number, 0.5, 10))
        spool.close()
    shutil.copy2(tmp_path / "image" / "spool.db", folder / "spool.db")
    spool = Spool.open(folder / "spool.db", 10**9)
    assert spool.epoch != first
    spool.accept(bare_sample(4, 0.5, 10))
    assert spool.epochs() == (SpoolEpoch(spool.epoch, 1, 1, 1), SpoolEpoch(first, 1, 1, 1))
    spool.close()


def test_a_wholly_restored_disk_is_renewed_when_the_centre_asks(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path / "spool.db", 10**9)
    first = spool.epoch
    spool.accept(bare_sample(1, 0.5, 10))
    assert not spool.renew("another")
    assert spool.renew(first)
    assert not spool.renew(first), "it is asked as often as it said the old one"
    spool.accept(bare_sample(2, 0.5, 10))
    second = spool.epoch
    assert second != first
    spool.close()
    spool = Spool.open(tmp_path / "spool.db", 10**9)
    assert spool.epoch == second
    assert [(x.epoch, x.head) for x in spool.epochs()] == [(second, 1), (first, 1)]
    spool.forget(Receipt(stored=(bare_sample(1, 0.5, 10).sample_id,)))
    assert [x.epoch for x in spool.epochs()] == [second], "nothing waits of the old one"
    spool.close()


def test_a_spool_of_before_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "spool.db"
    before = sqlite3.connect(path)
    before.executescript(
        """CREATE TABLE queue (sample_id BLOB PRIMARY KEY, value REAL NOT NULL, bytes INTEGER NOT NULL, payload BLOB NOT NULL);
        CREATE TABLE ledger (number INTEGER PRIMARY KEY, sample_id BLOB NOT NULL UNIQUE, state TEXT NOT NULL, reason TEXT NOT NULL);
        CREATE TABLE figures (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
        INSERT INTO queue VALUES (x'01', 0.5, 3, x'010203');
        INSERT INTO ledger VALUES (7, x'01', 'accepted', 'novel');
        INSERT INTO figures VALUES ('accepted', 7);"""  # noqa: E501
    )
    before.close()
    spool = Spool.open(path, 10**9)
    assert (spool.figures().rows, spool.figures().bytes, spool.figures().accepted) == (1, 3, 7)
    assert spool.epochs() == (SpoolEpoch(spool.epoch, 0, 1, 0),), "what has no number is nobody's gap"
    spool.accept(bare_sample(2, 0.9, 10))
    spool.forget(Receipt(stored=(b"\x01",)))
    assert spool.figures().rows == 1
    spool.close()


def test_opening_and_accepting_do_not_depend_on_how_much_waits(tmp_path: Path) -> None:
    """Counted in steps of SQLite's machine: no timing."""

    def steps(rows: int) -> tuple[int, int]:
        path = tmp_path / f"{rows}.db"
        Spool.open(path, 10**9).close()
        with sqlite3.connect(path) as db:
            db.executemany(
                "INSERT INTO queue VALUES (?, ?, 30, x'00', 'e', ?, 0)",
                ((number.to_bytes(16, "big"), number % 7, number) for number in range(rows)),
            )
            db.execute("INSERT OR REPLACE INTO figures VALUES ('held_rows', ?), ('held_bytes', ?)", (rows, 30 * rows))
        db.close()
        counted = [0]

        def count() -> int:
            counted[0] += 1
            return 0

        connect = spool_module._connect
        with pytest.MonkeyPatch.context() as patch:

            def counting(where: Path) -> sqlite3.Connection:
                connection = connect(where)
                connection.set_progress_handler(count, 10)
                return connection

            patch.setattr(spool_module, "_connect", counting)
            spool = Spool.open(path, 10**9)
            opening = counted[0]
            spool.accept(bare_sample(10**6, 0.5, 10))
            accepting = counted[0] - opening
            spool.close()
        return opening, accepting

    few, many = steps(10), steps(20_000)
    assert many[0] <= few[0] + 5
    assert many[1] <= few[1] + 5


def test_a_disk_that_cannot_be_read_is_a_sentence_and_no_end_of_a_thread(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path / "spool.db", 10**6)
    with sqlite3.connect(tmp_path / "spool.db") as other:
        other.execute("DROP TABLE queue")
    with pytest.raises(EnvironmentFault, match="cannot read"):
        spool.pending(1)
    spool.close()
