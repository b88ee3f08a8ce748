"""Virtual fleets: the same to the last bit in any batches and with any workers, resumable, and right."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import msgspec
import numpy as np
import pytest

from cloud.learning.heads import solve_lda
from common.errors import ConfigError, OperatorError
from common.packing import pack
from common.statistics import Statistics
from simulations.fleet.engine import Alone, Processes, RayCluster, Simulation
from simulations.fleet.pool import Pool, generated_pool, on_grid
from simulations.fleet.scenario import SCENARIOS, Fleet, read_scenario
from simulations.fleet.sites import ENVELOPE_BYTES, NONE, Memory, is_poisoned, look, mixtures, step, styles, uniform

REPOSITORY = Path(__file__).resolve().parents[2]
POOL = generated_pool(12, 1)
WIDE_POOL = generated_pool(128, 1)
"""With classes far enough apart to tell a lie from chance."""
FLEET = Fleet(sites=40, rounds=6, dimensions=12, phases=3, outage=0.3, label_delay=1, poisoned=0.1, budget=3)


def ran(fleet: Fleet, sites_per_task: int = 16, pool: Pool = POOL) -> Simulation:
    simulation = Simulation("test", fleet, pool)
    simulation.run(Alone(fleet, pool), lambda _: None, sites_per_task)
    return simulation


def same(one: Simulation, other: Simulation) -> None:
    assert one.figures == other.figures
    np.testing.assert_array_equal(one.total.moment, other.total.moment)
    np.testing.assert_array_equal(one.total.sums, other.total.sums)


@pytest.mark.parametrize("choice", ["uncertain", "novel", "random"])
@pytest.mark.parametrize("poison", ["flip", "scale"])
def test_the_result_is_the_same_to_the_last_bit_in_any_batches(choice: str, poison: str) -> None:
    fleet = msgspec.structs.replace(FLEET, choice=choice, poison=poison)
    first = ran(fleet)
    for sites_per_task in (1, 7, 40):
        same(ran(fleet, sites_per_task), first)


def test_worker_processes_change_nothing() -> None:
    simulation = Simulation("test", FLEET, POOL)
    before = dict(os.environ)
    with ExitStack() as stack:
        simulation.run(Processes(FLEET, POOL, 2, stack), lambda _: None, 16)
    same(simulation, ran(FLEET))
    assert dict(os.environ) == before


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Tip:FutureWarning")  # Ray's own, of a setting that is not ours
def test_a_ray_cluster_changes_nothing() -> None:
    fleet = msgspec.structs.replace(FLEET, sites=2, rounds=2, phases=1)
    simulation = Simulation("test", fleet, POOL)
    with ExitStack() as stack:
        simulation.run(RayCluster(fleet, POOL, "local", stack), lambda _: None, 1)
    same(simulation, ran(fleet))
    assert simulation.figures[-1].labels > 0


def test_bytes_are_those_of_the_statistics_as_they_travel() -> None:
    """Each round a site's statistics are those of all that it has, packed by the product."""
    fleet = msgspec.structs.replace(FLEET, sites=5, rounds=3, phases=1, label_delay=0, outage=0.0, poisoned=0.0)
    simulation = ran(fleet)
    sent, kept = [], simulation._chosen
    for moment in range(fleet.rounds):
        size = 0
        for site in range(fleet.sites):
            rows = kept[site, : moment + 1].ravel()
            x = on_grid(POOL.rows[rows] + styles(fleet, np.array([site]), 12)[0])
            packed, _ = pack(POOL.classes, x, [POOL.classes[k] for k in POOL.labels[rows]])
            size += sum(array.nbytes for array in packed.arrays().values()) + 16 * len(rows) + ENVELOPE_BYTES
        sent.append(round(size / 1e6, 3))
    assert [row.mb_up for row in simulation.figures] == pytest.approx(sent, abs=0.002), "but for pictures seen twice"
    assert [row.reporting for row in simulation.figures] == [5, 5, 5]


@pytest.mark.parametrize("poison", ["flip", "scale"])
def test_what_a_bound_on_bytes_loses_is_lost_in_any_batches_alike(poison: str) -> None:
    fleet = msgspec.structs.replace(FLEET, sites=12, statistics_bytes_max=300, budget=6, poison=poison)
    first = ran(fleet)
    for sites_per_task in (1, 5):
        same(ran(fleet, sites_per_task), first)
    free = ran(msgspec.structs.replace(fleet, statistics_bytes_max=0))
    assert first.total.total == free.total.total
    assert np.abs(first.total.moment - free.total.moment).max() > 0.01
    assert first.figures[-1].mb_up < free.figures[-1].mb_up
    parts = first._sent_by(np.arange(fleet.sites))
    np.testing.assert_array_equal(sum(part.moment for part in parts), first.total.moment)


def test_another_seed_is_another_fleet() -> None:
    assert ran(msgspec.structs.replace(FLEET, seed=2)).figures != ran(FLEET).figures


def test_the_sum_is_that_of_all_sites_one_by_one() -> None:
    """Not by the batch code: each site's frames of one round, by hand."""
    fleet = msgspec.structs.replace(FLEET, rounds=1, phases=1, label_delay=0, outage=0.0, poisoned=0.0, choice="random")
    simulation = ran(fleet)
    total = Statistics.empty(POOL.classes, 12)
    for site in range(fleet.sites):
        rows = simulation._chosen[site, 0]
        seen = look(fleet, POOL, np.array([site]), 0)[0]
        assert set(rows) <= set(seen)
        x = on_grid(POOL.rows[rows] + styles(fleet, np.array([site]), 12)[0])
        total = total + Statistics.of(POOL.classes, x, [POOL.classes[k] for k in POOL.labels[rows]])
    np.testing.assert_array_equal(simulation.total.moment, total.moment)
    assert simulation.figures[0].labels == fleet.sites * fleet.budget == total.total


def test_labels_come_late_and_wait_for_the_link() -> None:
    fleet = msgspec.structs.replace(FLEET, sites=200, label_delay=2, outage=0.5, poisoned=0.0)
    figures = ran(fleet).figures
    assert [row.labels for row in figures[:2]] == [0, 0]
    reached = figures[-1].labels / (fleet.sites * fleet.budget * (fleet.rounds - fleet.label_delay))
    assert 0.75 < reached < 0.95, "half of the sites had no link in the last round, a quarter in the last two, ..."
    everyone = np.arange(50)
    memory = Memory(np.full((50, fleet.rounds, fleet.budget), NONE), np.full(50, -1))
    for moment in range(fleet.rounds):
        done = step(fleet, POOL, everyone, moment, None, memory)
        assert (done.memory.sent <= max(-1, moment - 2)).all(), "nothing is sent before its label is there"
        assert (done.memory.sent >= memory.sent).all()
        memory = done.memory


def test_classes_arrive_in_phases_and_the_first_are_not_forgotten() -> None:
    figures = ran(msgspec.structs.replace(FLEET, sites=300, poisoned=0.0, outage=0.0)).figures
    assert [row.classes for row in figures] == [4, 4, 8, 8, 12, 12]
    chance = 1 / 12
    assert (figures[-1].accuracy or 0) > 3 * chance
    assert (figures[-1].first_phase or 0) > 3 * chance
    alone = solve_lda(ran(msgspec.structs.replace(FLEET, sites=300, poisoned=0.0, outage=0.0)).total, 0.3)
    assert alone.classes == POOL.classes


def test_lies_cost_and_more_of_them_cost_more() -> None:
    last = [
        ran(msgspec.structs.replace(FLEET, sites=300, poisoned=share)).figures[-1].accuracy or 0 for share in (0, 0.4)
    ]
    assert last[0] > last[1]
    share = is_poisoned(msgspec.structs.replace(FLEET, poisoned=0.2), np.arange(20_000)).mean()
    assert share == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("poison", ["flip", "scale"])
def test_quarantine_leaves_out_liars_and_wins_back_what_they_cost(poison: str) -> None:
    lying = Fleet(sites=100, rounds=4, poisoned=0.3, poison=poison, style=0.2, budget=12, choice="random")
    open_door = ran(lying, pool=WIDE_POOL).figures[-1]
    guarded = ran(msgspec.structs.replace(lying, quarantine=True), pool=WIDE_POOL)
    liars = int(is_poisoned(lying, np.arange(lying.sites)).sum())
    last = guarded.figures[-1]
    assert last.quarantined - last.wrongly_quarantined >= 0.8 * liars
    assert last.wrongly_quarantined <= 0.03 * lying.sites
    assert (last.accuracy or 0) > (open_door.accuracy or 0)
    assert open_door.quarantined == 0
    assert guarded.total.total == open_door.labels, "left out of the head, not forgotten: they may be cleared later"


def test_a_head_of_its_own_pays_where_sites_are_unlike() -> None:
    gains = []
    for style in (0.0, 1.5):
        fleet = msgspec.structs.replace(
            FLEET, sites=64, phases=1, poisoned=0.0, outage=0.0, label_delay=0, style=style, personal=20.0, budget=6
        )
        last = ran(fleet, pool=generated_pool(64, 1)).figures[-1]
        gains.append((last.personal or 0) - (last.home or 0))
    assert gains[1] > gains[0]
    assert gains[1] > 0.02


def test_the_gate_keeps_the_old_head_and_a_resumed_run_keeps_it_too(tmp_path: Path) -> None:
    """Half of the fleet begins to lie in effect when its labels arrive: what it would release loses classes."""
    fleet = msgspec.structs.replace(FLEET, poisoned=0.45, gate=0.01, phases=1, label_delay=0, sites=60, rounds=8)
    simulation = Simulation("test", fleet, POOL, tmp_path)
    simulation.run(Alone(fleet, POOL), lambda _: None)
    assert any(row.refused for row in simulation.figures)
    again = Simulation("test", fleet, POOL, tmp_path)
    assert again.head is not None
    assert simulation.head is not None
    np.testing.assert_array_equal(again.head.directions, simulation.head.directions)


def test_what_is_random_is_uniform_and_depends_on_all_arguments() -> None:
    draws = uniform(1, np.arange(500), 3, 2, 200)
    assert draws.mean() == pytest.approx(0.5, abs=0.005)
    assert draws.std() == pytest.approx(12**-0.5, abs=0.005)
    assert abs(np.corrcoef(draws[:, :20].T) - np.eye(20)).max() < 0.2
    for other in (uniform(2, np.arange(500), 3, 2, 200), uniform(1, np.arange(500), 4, 2, 200)):
        assert (draws != other).all()
    assert mixtures(FLEET, np.arange(3), 5).sum(axis=1) == pytest.approx([1, 1, 1])


def test_a_run_goes_on_where_it_was_and_ends_the_same(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop_after_three(row: object) -> None:
        if len(first.figures) == 3:
            raise Stop

    first = Simulation("test", FLEET, POOL, tmp_path)
    with pytest.raises(Stop):
        first.run(Alone(FLEET, POOL), stop_after_three)
    second = Simulation("test", FLEET, POOL, tmp_path)
    assert len(second.figures) == 3
    second.run(Alone(FLEET, POOL), lambda _: None)
    same(second, ran(FLEET))
    with pytest.raises(OperatorError, match="another fleet"):
        Simulation("test", msgspec.structs.replace(FLEET, seed=9), POOL, tmp_path)


def test_the_command_survives_kill_9_and_writes_table_and_page(tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    command = [sys.executable, "-m", "simulations", "sim", "run", "classes-over-time", "--workers", "0", "--json"]
    small = [item for pair in ("sites=400", "rounds=40", "phases=4", "dimensions=32") for item in ("--set", pair)]
    whole = [*command, *small, "--out", str(tmp_path / "cut")]
    started = subprocess.Popen(whole, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (tmp_path / "cut" / "variant-0" / "state.npz").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    started.send_signal(signal.SIGKILL)
    started.wait(10)
    runs = []
    for folder in ("cut", "plain"):
        done = subprocess.run(
            [*command, *small, "--out", str(tmp_path / folder)],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            timeout=100,
            check=True,
        )
        runs.append(json.loads(done.stdout)["rounds"])
    assert runs[0] == runs[1]
    assert len(runs[0]) == 2 * 40
    assert pq.read_table(tmp_path / "cut" / "rounds.parquet").to_pylist() == runs[0]
    assert "alpha 0.05" in (tmp_path / "cut" / "report.html").read_text()


@pytest.mark.parametrize("file", sorted(SCENARIOS.glob("*.toml")), ids=lambda file: file.stem)
def test_every_scenario_file_is_right_and_asks_something(file: Path) -> None:
    scenario = read_scenario(file)
    assert scenario.question.endswith(("?", "."))
    assert scenario.name == file.stem


def test_wrong_scenarios_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no scenario"):
        read_scenario(Path("nothing"))
    file = tmp_path / "odd.toml"
    for content, says in (
        ("[fleet]\nsties = 3", "sties"),
        ("[fleet]\nsites = 0", "sites"),
        ("[fleet]\nchoice = 'best'", "choice"),
        ("[fleet]\nphases = 20", "out of bounds: phases"),
        ("[fleet]\nquarantine = true\nsites = 100000", "quarantine"),
        ("[fleet", "odd.toml"),
        (f"[vary]\nseed = {list(range(65))}", "more than 64"),
    ):
        file.write_text(content)
        with pytest.raises(ConfigError, match=says):
            read_scenario(file)
