"""Scenarios are learnt side by side: one that cannot be learnt, or is refused, does not hold the others back."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from cloud import rounds
from cloud.cli import app
from cloud.learning.datasets import Dataset
from cloud.learning.export import read_head
from cloud.learning.training import Outcome
from cloud.rounds import BEGUN_MAX, WAITING_MAX, queue_round
from cloud.service import Service
from cloud.settings import CloudSettings
from cloud.store import QUEUED, RUNNING, Run
from common.errors import EnvironmentFault, OperatorError
from common.manifest import SHARED, Manifest
from common.mqtt import Broker
from common.settings import load_settings

DIMENSION, PICTURES = 12, 400
BELT, SMOKE = ("normal", "tear"), ("clear", "fire")


class Centre:
    """A centre without its threads, and datasets that are easily learnt or wrongly labelled."""

    def __init__(self, folder: Path, backbone: bytes, head: str = "lda") -> None:
        self.config = folder / "cloud.toml"
        learning = f'[learning]\nhead = "{head}"\ndimensions = 12\nquarantine = false\n'
        self.config.write_text(f'data_dir = "{folder}/centre"\n{learning}[rollout]\nenabled = false\n')
        self.service = Service(load_settings(CloudSettings, self.config), Broker())
        self.service.registry.set_backbone(backbone)

    def dataset(self, scenario: str, classes: Sequence[str], *, count: int = PICTURES, wrong: bool = False) -> None:
        """Pictures of a scenario; where they are wrongly labelled, those that are gold are not."""
        rng = np.random.default_rng(len(scenario))
        truth = rng.permutation(np.arange(count) % len(classes))
        gold = np.arange(count) % 5 == 0
        labels = [classes[(k + (wrong and not is_gold)) % len(classes)] for k, is_gold in zip(truth, gold, strict=True)]
        rows = rng.normal(size=(count, DIMENSION)) + 3.0 * np.eye(DIMENSION)[truth]
        ids = tuple(scenario[:1].encode() + n.to_bytes(15, "big") for n in range(count))
        name = self.service.registry.backbone()[0].hash
        self.service.catalogue.folder.mkdir(exist_ok=True)
        sites = tuple(f"site-{n % 20}" for n in range(count))
        made = Dataset(
            scenario, scenario, name, tuple(classes), rows.astype(np.float32), tuple(labels), sites, ids, gold
        )
        self.service.catalogue.put(made)

    def train(self) -> Outcome:
        return self.service.trainer.run("test")

    def active(self) -> Manifest:
        active = self.service.registry.active()
        assert active is not None
        return active


@pytest.fixture
def centre(tmp_path: Path, tiny_backbone):
    made = Centre(tmp_path, tiny_backbone(DIMENSION))
    yield made
    made.service.store.close()


def test_a_scenario_of_one_class_waits_and_the_others_are_released(centre: Centre) -> None:
    centre.dataset("belt", BELT)
    centre.dataset("smoke", ("clear",), count=5)
    outcome = centre.train()
    assert outcome.release_id
    assert outcome.held_back == ("smoke",)
    assert "at least two classes" in outcome.record["smoke"]["unlearnable"]  # type: ignore[index]
    assert [scenario.name for scenario in centre.active().scenarios] == ["belt"]


def test_one_picture_of_each_class_is_too_little_and_said_so(centre: Centre) -> None:
    centre.dataset("belt", BELT)
    centre.dataset("smoke", SMOKE, count=2)
    assert centre.train().held_back == ("smoke",)


def test_where_nothing_can_be_learnt_the_error_names_the_scenario(centre: Centre) -> None:
    centre.dataset("smoke", ("clear",), count=5)
    with pytest.raises(OperatorError, match=r"nothing can be learnt yet; smoke: .* at least two classes"):
        centre.train()


def test_a_refused_scenario_runs_on_and_the_others_are_renewed(centre: Centre) -> None:
    centre.dataset("belt", BELT, count=100)
    centre.dataset("smoke", SMOKE)
    centre.train()
    before = {scenario.name: scenario for scenario in centre.active().scenarios}
    centre.dataset("belt", BELT)
    centre.dataset("smoke", SMOKE, wrong=True)
    outcome = centre.train()
    assert outcome.held_back == ("smoke",)
    after = {scenario.name: scenario for scenario in centre.active().scenarios}
    assert after["smoke"] == before["smoke"]
    assert after["belt"] != before["belt"]


def test_wrong_labels_of_many_do_not_push_gold_out_of_the_judging(centre: Centre) -> None:
    centre.dataset("smoke", SMOKE)
    first = centre.train()
    centre.dataset("smoke", SMOKE, wrong=True)
    second = centre.train()
    gold = [outcome.record["smoke"]["dataset"]["counts"]["gold"] for outcome in (first, second)]  # type: ignore[index]
    assert gold[0] == gold[1] > 50
    assert not second.release_id


def test_a_running_scenario_that_is_not_ready_keeps_all_on_the_old_backbone(centre: Centre, tiny_backbone) -> None:
    centre.dataset("belt", BELT)
    centre.dataset("smoke", SMOKE)
    centre.train()
    moved = centre.service.registry.put(tiny_backbone(DIMENSION, seed=1))
    centre.service.trainer.clocks.bring = lambda *_: None  # type: ignore[method-assign]  # both know the rows by heart
    for dataset in centre.service.catalogue.datasets():
        kept = dataset if dataset.scenario == "belt" else dataset.pick(np.flatnonzero(dataset.is_gold)[:1])
        centre.service.catalogue.put(replace(kept, name=f"{kept.name}-2", backbone=moved.hash))
    outcome = centre.service.trainer.run("test", moved)
    assert not outcome.release_id
    assert outcome.held_back == ("belt", "smoke")


# --- rounds -----------------------------------------------------------------------------------


def test_more_rounds_than_may_wait_are_refused_and_all_of_them_are_run_after_a_crash(centre: Centre) -> None:
    centre.dataset("belt", BELT)
    store = centre.service.store
    store.add_run(Run("run-0", 1, None, RUNNING, {}))
    names = [queue_round(store, "li", 2 + n) for n in range(WAITING_MAX)]
    with pytest.raises(OperatorError, match="wait already"):
        queue_round(store, "li", 9)
    assert [run.run_id for run in store.open_runs()] == ["run-0", *names]
    _run_all(centre.service)
    assert {run.status for run in store.runs()} == {"released"}


def test_a_defect_is_the_record_of_its_round_and_the_next_one_runs(centre: Centre) -> None:
    centre.dataset("belt", BELT)
    run, real = centre.service.trainer.run, iter([np.linalg.LinAlgError("Singular matrix")])

    def fail_once(note: str) -> Outcome:
        for error in real:
            raise error
        return run(note)

    centre.service.trainer.run = fail_once  # type: ignore[method-assign,assignment]
    first, second = (queue_round(centre.service.store, "li", n) for n in (1, 2))
    _run_all(centre.service)
    assert "Singular matrix" in centre.service.store.run(first).record["error"]
    assert centre.service.store.run(second).status == "released"


def test_a_store_that_is_away_ends_neither_the_thread_nor_the_round(
    centre: Centre, monkeypatch: pytest.MonkeyPatch
) -> None:
    centre.dataset("belt", BELT)
    monkeypatch.setattr(rounds, "FAULT_WAIT_S", 0.01)
    store = centre.service.store
    queue_round(store, "li", 1)
    read, faults = store.open_runs, iter([EnvironmentFault("the store is away")] * 3)

    def away() -> list[Run]:
        for fault in faults:
            raise fault
        return read()

    monkeypatch.setattr(store, "open_runs", away)
    centre.service.rounds.start()
    while read():
        assert centre.service.rounds.alive
    centre.service.rounds.stop(30)
    assert store.runs()[0].status == "released"


def test_a_round_that_takes_the_centre_down_each_time_is_given_up(centre: Centre) -> None:
    centre.dataset("belt", BELT)
    centre.service.store.add_run(Run("run-0", 1, None, RUNNING, {"begun": BEGUN_MAX}))
    _run_all(centre.service)
    run = centre.service.store.run("run-0")
    assert run.status == "failed"
    assert "given up" in run.record["error"]


def test_a_command_queues_a_round_and_shows_what_came_of_it(centre: Centre) -> None:
    centre.dataset("belt", BELT)
    centre.dataset("smoke", ("clear",), count=5)
    run_id = _command(centre, "round", "--json")["run_id"]
    assert [run["status"] for run in _command(centre, "runs", "--json")] == [QUEUED]  # type: ignore[index]
    _run_all(centre.service)
    assert _command(centre, "runs", str(run_id), "--json")["status"] == "released"
    shown = CliRunner().invoke(app, ["runs", str(run_id), "--config", str(centre.config)], env={"COLUMNS": "200"})
    assert "smoke: a head needs labelled samples of at least two classes" in shown.stdout


def test_who_is_left_out_bounded_or_costly_is_shown_with_the_run(centre: Centre) -> None:
    part = {
        "gate": {"passed": True, "comparisons": []},
        "quarantined": [
            {"gateway": "liar-1", "reason": "labels: other names fit", "samples": 40, "influence": 3.5},
            {"site": "liar-0", "reason": "as it was recorded once", "samples": 40, "influence": None},
        ],
        "bounded": {"loud-1": 0.004},
        "costly": [{"gateway": "odd-1", "samples": 80, "influence": 1.25}],
    }
    centre.service.store.add_run(Run("run-0", 1, 2, "released", {"belt": part}))
    shown = CliRunner().invoke(app, ["runs", "run-0", "--config", str(centre.config)], env={"COLUMNS": "200"})
    lines = {
        name: line
        for line in shown.stdout.splitlines()
        for name in ("liar-1", "liar-0", "loud-1", "odd-1")
        if name in line
    }
    assert "other names fit" in lines["liar-1"]
    assert "3.5" in lines["liar-1"]
    assert "as it was recorded once" in lines["liar-0"]
    assert "0.004" in lines["loud-1"]
    assert "1.2" in lines["odd-1"]


def test_a_centre_set_to_ridge_releases_ridge_heads(tmp_path: Path, tiny_backbone) -> None:
    made = Centre(tmp_path, tiny_backbone(DIMENSION), head="ridge")
    made.dataset("belt", BELT)
    outcome = made.train()
    assert outcome.release_id
    registry = made.service.registry
    head = read_head(registry.layer_path(made.active().scenarios[0].heads[SHARED].hash).read_bytes())
    made.service.store.close()
    assert head.form == "ridge"
    assert head.temperature < 1, "calibrated in the scale of its scores"


def test_a_training_run_by_command_is_on_record(centre: Centre) -> None:
    centre.dataset("belt", BELT)
    made = _command(centre, "train", "--json")["release_id"]
    (run,) = centre.service.store.runs()
    assert (run.status, run.record["kind"], run.record["release_id"]) == ("released", "training", made)


def _run_all(service: Service) -> None:
    """Let the thread of rounds run what waits, and stop it."""
    service.rounds.start()
    while service.store.open_runs():
        assert service.rounds.alive
    service.rounds.stop(30)


def _command(centre: Centre, *arguments: str) -> dict[str, object]:
    result = CliRunner().invoke(app, [*arguments, "--config", str(centre.config)])
    assert result.exit_code == 0, result.output
    found: dict[str, object] = json.loads(result.stdout)
    return found
