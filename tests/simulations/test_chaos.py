"""Chaos: its plan, its verdict, and a short run in which real processes are killed and cheated."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.store import Store
from common.errors import OperatorError
from common.messages import Receipt, Sample
from edge.spool import Spool
from simulations.chaos.check import read_ledger, weigh
from simulations.chaos.machine import BoxClock, Disk
from simulations.chaos.plan import KILLS, WEATHERS, Fault, make_plan
from simulations.chaos.report import write_report
from simulations.chaos.run import Chaos
from simulations.load.gateway import VirtualGateway
from simulations.load.pictures import Pictures
from simulations.mosquitto import find_mosquitto

GATEWAYS = ["gw-1", "gw-2", "gw-3", "gw-4"]
SECONDS = 60.0
"""Of faults; the promise of ten minutes is kept by `headframe sim chaos --seconds 600`."""


# --- the plan ---------------------------------------------------------------------------------


def test_the_same_seed_draws_the_same_plan() -> None:
    assert make_plan(7, 60, GATEWAYS) == make_plan(7, 60, GATEWAYS)
    assert make_plan(7, 60, GATEWAYS) != make_plan(8, 60, GATEWAYS)


@given(st.integers(0, 2**32), st.floats(10, 3600))
def test_every_fault_occurs_in_every_run_and_ends_within_it(seed: int, seconds: float) -> None:
    plan = make_plan(seed, seconds, GATEWAYS)
    assert {act.fault for act in plan} == set(Fault)
    for gateway in GATEWAYS:
        assert {act.weather for act in plan if act.target == gateway and act.fault is Fault.WEATHER} == set(WEATHERS)
    assert all(0 <= act.at_s <= act.at_s + act.seconds <= seconds + 1e-6 for act in plan)


def test_ten_minutes_have_more_than_fifty_kills_and_two_minutes_of_half_open_links() -> None:
    plan = make_plan(1, 600, GATEWAYS)
    assert sum(act.fault in KILLS for act in plan) >= 70
    assert all(act.seconds > 115 for act in plan if act.weather == "half-open")


# --- the verdict ------------------------------------------------------------------------------


def sample(number: int) -> Sample:
    gateway = VirtualGateway("gw-1", Pictures(5_000), lambda _s: None)
    return gateway._sample(gateway.accept(number), number)


def test_each_sample_is_weighed_by_what_became_of_it(tmp_path: Path) -> None:
    made = [sample(number) for number in range(7)]
    stored, twice, waits, evicted, gone, lost, unknown = made
    ids = [one.sample_id for one in made]
    store = Store.open(f"sqlite:///{tmp_path / 'headframe.db'}", tmp_path / "blobs")
    store.add_samples([stored, twice, unknown], 1)
    again = Sample(**{name: getattr(twice, name) for name in Sample.__struct_fields__} | {"sample_id": b"x" * 16})
    store.add_samples([again], 1)
    store.close()
    ledger = {
        stored.sample_id: "receipted",
        twice.sample_id: "receipted",
        waits.sample_id: "accepted",
        evicted.sample_id: "evicted",
        lost.sample_id: "receipted",
        again.sample_id: "receipted",
    }
    verdict = weigh(set(ids[:6]), [ledger], [{gone.sample_id: "accepted"}], tmp_path / "headframe.db")
    assert (verdict.accepted, verdict.stored, verdict.lost, verdict.duplicates) == (7, 3, 1, 1)
    assert (verdict.waiting, verdict.evicted, verdict.gone_with_a_disk, verdict.unknown) == (1, 1, 1, 1)


def test_the_ledger_of_a_killed_spool_is_read_without_touching_it(tmp_path: Path) -> None:
    spool = Spool.open(tmp_path / "spool.db", 10**9)
    first, second = sample(1), sample(2)
    for one in (first, second):
        spool.accept(one)
    spool.forget(Receipt(stored=(first.sample_id,)))
    before = {path.name: path.read_bytes() for path in tmp_path.glob("spool.db*")}
    assert read_ledger(tmp_path / "spool.db") == {first.sample_id: "receipted", second.sample_id: "accepted"}
    assert {path.name: path.read_bytes() for path in tmp_path.glob("spool.db*")} == before
    spool.close()


# --- the machines -----------------------------------------------------------------------------


def test_a_clock_is_stepped_while_its_process_runs(tmp_path: Path) -> None:
    (tmp_path / "told.py").write_text(
        "import sys, time\n"
        "for line in sys.stdin:\n"
        "    print(time.time(), time.time_ns() / 1e9, time.monotonic(), flush=True)\n"
    )
    clock = BoxClock(tmp_path / "clock")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    command = [sys.executable, "-m", "simulations.chaos.cheated", str(clock.file), "told"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def ask() -> tuple[float, float, float]:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write("\n")
            process.stdin.flush()
            wall_s, wall_ns_s, monotonic_s = map(float, process.stdout.readline().split())
            return wall_s, wall_ns_s, monotonic_s

        first = ask()
        assert first[0] == pytest.approx(time.time(), abs=5)
        for text, expected in (("@60", 60.0), ("-3600", time.time() - 3600), ("0", time.time())):
            clock.set(text)
            time.sleep(0.3)
            wall_s, wall_ns_s, monotonic_s = ask()
            assert wall_s == pytest.approx(expected, abs=5)
            assert wall_ns_s == pytest.approx(wall_s, abs=1)
            assert 0 < monotonic_s - first[2] < 30
        process.stdin.close()
        process.wait(10)


def test_a_full_disk_takes_nothing_until_it_is_freed(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", 2 << 20)
    disk.mount()
    try:
        if not disk.mounted:
            pytest.skip("no right to mount a tmpfs here")
        assert disk.kind == "tmpfs"
        disk.fill(None)
        with pytest.raises(OSError, match="No space left"):
            (disk.folder / "more").write_bytes(bytes(8192))
        disk.free(None)
        (disk.folder / "more").write_bytes(bytes(8192))
    finally:
        disk.unmount()
    assert not (disk.folder / "more").exists()


def test_without_the_right_to_mount_the_process_may_write_no_more(tmp_path: Path) -> None:
    disk = Disk(tmp_path / "disk", 1 << 20)  # not mounted
    disk.folder.mkdir()
    script = (
        "import sys\nfor line in sys.stdin:\n    open(sys.argv[1], 'wb').write(bytes(9000)); print('ok', flush=True)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(disk.folder / "f")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "ok\n"
        disk.fill(process.pid)
        process.stdin.write("\n")
        process.stdin.close()
        assert process.wait(10) != 0
    assert disk.kind == "limit of file size"


# --- a run ------------------------------------------------------------------------------------


def test_a_folder_of_somebody_else_is_not_emptied(tmp_path: Path) -> None:
    (tmp_path / "precious").touch()
    with pytest.raises(OperatorError, match="not empty"):
        Chaos(tmp_path, 20, 1)
    assert (tmp_path / "precious").exists()
    with pytest.raises(OperatorError, match="too short"):
        Chaos(tmp_path / "run", 1, 1)


@pytest.mark.slow
def test_nothing_is_lost_and_nothing_comes_twice_whatever_fails(tmp_path: Path) -> None:
    if find_mosquitto() is None:
        pytest.skip("mosquitto is not installed (apt-get install mosquitto)")
    run = Chaos(tmp_path / "run", SECONDS, 3, per_s=3.0)
    result = run.run()
    write_report(tmp_path / "run" / "report.html", run, result)
    figures = result.figures()
    assert result.holds, json.dumps(figures)
    assert figures["accepted"] >= 150
    assert figures["kills"] >= 8
    assert {act.name for act in make_plan(3, SECONDS, GATEWAYS)} <= set(figures["faults"])
    assert "The promise holds" in (tmp_path / "run" / "report.html").read_text()
