"""Power cuts: the disk that forgets, SQLite on it, and the spool that must not."""

import json
import random
import sqlite3

import pytest
from typer.testing import CliRunner

from simulations.fleet.cli import app
from simulations.powercut.disk import CutDisk, PowerCut
from simulations.powercut.run import run_powercuts
from simulations.powercut.sqlite import CutSqlite


def found(disk: CutDisk, name: str, seeds: int = 60) -> set[bytes | None]:
    """All that may be there after a cut."""
    after = [disk.after_cut(random.Random(seed)) for seed in range(seeds)]
    return {one.read(name, 0, 10_000) if one.exists(name) else None for one in after}


def test_what_was_synced_is_there_and_the_rest_is_kept_lost_or_torn() -> None:
    disk = CutDisk()
    disk.create("a")
    disk.write("a", 0, b"1" * 1024)
    disk.sync("a")
    assert found(disk, "a") == {b"1" * 1024}
    disk.write("a", 0, b"2" * 1024)
    disk.write("a", 1024, b"3" * 10)
    assert found(disk, "a") >= {
        b"1" * 1024,  # lost
        b"2" * 1024 + b"3" * 10,  # kept
        b"2" * 512 + b"1" * 512,  # torn
        b"1" * 1024 + b"3" * 10,  # in another order
    }
    assert all(content is not None and len(content) in (1024, 1034) for content in found(disk, "a"))


def test_files_made_or_deleted_are_there_or_not_until_something_is_synced() -> None:
    disk = CutDisk()
    disk.create("old")
    disk.sync("old")
    disk.create("new")
    disk.delete("old", synced=False)
    assert not disk.exists("old")
    assert found(disk, "new") == {b"", None}
    assert found(disk, "old") == {b"", None}
    disk.sync("new")
    assert found(disk, "new") == {b""}
    assert found(disk, "old") == {None}


def test_without_power_nothing_more_is_written() -> None:
    disk = CutDisk()
    disk.create("a")
    disk.operations_left = 1
    disk.write("a", 0, b"x")
    with pytest.raises(PowerCut):
        disk.sync("a")
    assert disk.dead
    for act in (lambda: disk.write("a", 0, b"y"), lambda: disk.truncate("a", 0), lambda: disk.create("b")):
        with pytest.raises(PowerCut):
            act()
    assert found(disk, "a") == {b"x", b"", None}


def test_sqlite_works_on_it_as_the_standard_module_does() -> None:
    disk = CutDisk()
    for value in (1, 2):
        cut = CutSqlite(disk)
        database = cut.connect("folder/a.db", isolation_level=None)
        assert database.execute("PRAGMA journal_mode=WAL").fetchone() == ("wal",)
        database.executescript(
            "CREATE TABLE IF NOT EXISTS t (x INTEGER PRIMARY KEY); CREATE TABLE IF NOT EXISTS u (y);"
        )
        database.execute("BEGIN IMMEDIATE")
        assert database.in_transaction
        assert database.execute("INSERT INTO t VALUES (?)", (value,)).rowcount == 1
        database.execute("COMMIT")
        with pytest.raises(sqlite3.IntegrityError):
            database.execute("INSERT INTO t VALUES (1)")
        with pytest.raises(sqlite3.OperationalError):
            database.execute("nonsense")
        assert [row[0] for row in database.execute("SELECT x FROM t")] == list(range(1, value + 1))
        database.close()
        cut.close()


def test_no_accepted_sample_is_lost_to_a_power_cut_and_no_spool_is_corrupt() -> None:
    outcome = run_powercuts(range(80))
    assert (outcome.lost, outcome.corrupt, outcome.bad_seeds) == (0, 0, [])
    assert outcome.cuts == 320
    assert outcome.accepted > 1000


def test_the_disk_has_teeth() -> None:
    assert run_powercuts(range(12), "NORMAL").lost > 0
    assert run_powercuts(range(30), "OFF").corrupt > 0


def test_a_bad_seed_can_be_repeated() -> None:
    bad = run_powercuts(range(12), "NORMAL").bad_seeds[0]
    done = CliRunner().invoke(
        app, ["powercut", "--first", str(bad), "--seeds", "1", "--synchronous", "NORMAL", "--json"]
    )
    assert done.exit_code == 1
    assert json.loads(done.stdout)["bad_seeds"] == [bad]
    assert CliRunner().invoke(app, ["powercut", "--seeds", "2"]).exit_code == 0
