"""Runs in MLflow and TensorBoard, written and read back by their own libraries; never twice."""

import builtins
import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from cloud.cli import app
from cloud.store import Run, Store
from cloud.tracking import EXPERIMENT, TAG, ended, export_to_mlflow, export_to_tensorboard, tracked
from common.errors import OperatorError

S = 1_000_000_000


def run(number: int, *, status: str = "released", finished: bool = True) -> Run:
    comparison = {"name": "gold/皮带 tear", "samples": 40, "running": 0.9, "candidate": 0.95, "low": -0.01, "high": 0.1}
    record: dict[str, Any] = {
        "author": "li",
        "trigger": {"kind": "labels"} if number % 2 else None,
        "labels": 10 * number,
        "backbone": "b" * 64,
        "federation": {"answered": 7, "resumed": 0, "counters": {"folded": 7}, "sums": {}},
        "masked": [{"scenarios": ["belt"], "multiplier": 1.5, "delta": 1e-6, "epsilon": {"belt": 3.5}}],
        "gate": {"passed": True},
        "belt": {
            "classes": ["normal", "皮带 tear"],
            "data_version": f"v{number}",
            "samples": 100 + number,
            "by_site": {"north": 60, "south": 40},
            "quarantined": [{"site": "liar"}],
            "gate": {"passed": True, "sites": {}, "comparisons": [comparison]},
        },
        "release_id": f"r{number}",
    }
    if status == "failed":
        record = {"author": "li", "trigger": None, "labels": 0, "error": "1 of 9 gateways answered"}
    started = (1_700_000_000 + 100 * number) * S
    return Run(f"run-{number}", started, started + 30 * S if finished else None, status, record)


def tuned(number: int) -> Run:
    plain = run(number)
    record = plain.record | {
        "kind": "fine-tune",
        "parameters": {"depth": "adapter", "epochs": 3, "rate": 0.0},
        "held_back": ["south", "西矿"],
        "parent": "a" * 64,
        "pictures": 120,
        "curve": [1.5, 0.75, 0.5],
        "step_fraction": 0.35,
        "delta_bytes": 26_000,
        "bytes": 13_000_000,
    }
    return replace(plain, run_id=f"tune-{number}", record=record)


RUNS = [run(1), run(2, status="failed"), run(3, status="running", finished=False), run(4)]


def test_a_record_becomes_parameters_tags_and_metrics() -> None:
    found = tracked(RUNS[0])
    assert found.parameters["trigger"] == "labels"
    assert found.parameters["belt/data_version"] == "v1"
    assert found.tags == {"status": "released", "release": "r1"}
    assert found.metrics["belt/gate/gold/皮带 tear/candidate"] == 0.95
    assert found.metrics["federation/counters/folded"] == 7
    assert found.metrics["belt/epsilon"] == 3.5
    assert found.metrics["belt/quarantined"] == 1
    assert found.metrics["seconds"] == 30
    assert tracked(RUNS[1]).tags["error"] == "1 of 9 gateways answered"
    assert [(step, one.run_id) for step, one in ended(RUNS)] == [(1, "run-1"), (2, "run-2"), (4, "run-4")]


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of its database and file stores
@pytest.mark.parametrize(
    "scheme", [pytest.param("sqlite:///{}/mlflow.db", marks=pytest.mark.slow, id="sqlite"), "file:{}/mlruns"]
)
def test_mlflow_has_each_run_once(tmp_path: Path, scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE", raising=False)
    uri = scheme.format(tmp_path)
    assert export_to_mlflow(RUNS[:1], uri) == ["run-1"]
    assert export_to_mlflow(RUNS, uri) == ["run-2", "run-4"]
    assert export_to_mlflow(RUNS, uri) == []
    client = mlflow.MlflowClient(tracking_uri=uri)
    place = client.get_experiment_by_name(EXPERIMENT).experiment_id
    found = {one.data.tags[TAG]: one for one in client.search_runs([place])}
    assert set(found) == {"run-1", "run-2", "run-4"}
    first = found["run-1"]
    assert first.data.metrics["belt/samples"] == 101
    assert first.data.metrics["belt/gate/gold/皮带 tear/low"] == -0.01
    assert first.data.params["belt/classes"] == "normal, 皮带 tear"
    assert (first.info.start_time, first.info.end_time) == (1_700_000_100_000, 1_700_000_130_000)
    assert found["run-2"].info.status == "FAILED"
    (point,) = client.get_metric_history(found["run-4"].info.run_id, "belt/samples")
    assert (point.value, point.step) == (104, 4)
    assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"


def test_of_a_fine_tune_recipe_sites_kept_back_and_bytes_are_told_too() -> None:
    found = tracked(tuned(5))
    assert found.loss == (1.5, 0.75, 0.5)
    assert (found.parameters["kind"], found.parameters["fine-tune/depth"]) == ("fine-tune", "adapter")
    assert found.parameters["fine-tune/held_back"] == "south, 西矿"
    assert (found.metrics["fine-tune/delta_bytes"], found.metrics["fine-tune/step_fraction"]) == (26_000, 0.35)
    elsewhere = tuned(6)
    elsewhere.record.update(parameters="trained elsewhere", curve=[], held_back=[])
    assert tracked(elsewhere).parameters["fine-tune/recipe"] == "trained elsewhere"
    died = replace(
        tuned(7), status="failed", record={k: v for k, v in tuned(7).record.items() if k not in ("curve", "bytes")}
    )
    assert tracked(died).loss == ()
    assert "fine-tune/bytes" not in tracked(died).metrics


@pytest.mark.filterwarnings("ignore")  # MLflow's own, of its file store
def test_the_loss_of_a_fine_tune_is_a_curve_in_mlflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = f"file:{tmp_path}/mlruns"
    assert export_to_mlflow([tuned(5)], uri) == ["tune-5"]
    client = mlflow.MlflowClient(tracking_uri=uri)
    (one,) = client.search_runs([client.get_experiment_by_name(EXPERIMENT).experiment_id])
    points = client.get_metric_history(one.info.run_id, "fine-tune/loss")
    assert sorted((point.step, point.value) for point in points) == [(1, 1.5), (2, 0.75), (3, 0.5)]


@pytest.mark.filterwarnings("ignore")
def test_an_export_to_mlflow_that_was_cut_short_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.chdir(tmp_path)
    uri = f"file:{tmp_path}/mlruns"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with monkeypatch.context() as patch:
        patch.setattr(mlflow.MlflowClient, "set_terminated", stop)
        with pytest.raises(KeyboardInterrupt):
            export_to_mlflow(RUNS[:1], uri)
    assert export_to_mlflow(RUNS[:1], uri) == ["run-1"]
    client = mlflow.MlflowClient(tracking_uri=uri)
    place = client.get_experiment_by_name(EXPERIMENT).experiment_id
    (one,) = client.search_runs([place])
    assert one.info.status == "FINISHED"


def stop(*_: object) -> None:
    raise KeyboardInterrupt


def test_tensorboard_has_each_run_as_one_step(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert export_to_tensorboard(RUNS[:1], tmp_path) == ["run-1"]
    assert export_to_tensorboard(RUNS, tmp_path) == ["run-2", "run-4"]
    before = sorted(path.name for path in (tmp_path / "headframe").iterdir())
    assert export_to_tensorboard(RUNS, tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "headframe").iterdir()) == before
    assert len(before) == 3
    events = accumulator.EventAccumulator(str(tmp_path / "headframe"))
    events.Reload()
    points = [(event.step, event.value, event.wall_time) for event in events.Scalars("belt/samples")]
    assert points == [(1, 101, 1_700_000_130), (4, 104, 1_700_000_430)]
    assert [event.step for event in events.Scalars("seconds")] == [1, 2, 4]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_the_losses_of_fine_tunes_are_lines_of_their_own_in_tensorboard(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    assert export_to_tensorboard([tuned(5), tuned(6)], tmp_path) == ["tune-5", "tune-6"]
    events = accumulator.EventAccumulator(str(tmp_path / "headframe"))
    events.Reload()
    for name in ("tune-5", "tune-6"):
        points = [(event.step, event.value) for event in events.Scalars(f"fine-tune/loss/{name}")]
        assert points == [(1, 1.5), (2, 0.75), (3, 0.5)]


@pytest.mark.parametrize(
    ("library", "export"),
    [("mlflow", export_to_mlflow), ("torch.utils.tensorboard", lambda runs, to: export_to_tensorboard(runs, Path(to)))],
)
def test_without_the_library_the_error_says_what_to_install(
    library: str, export: Callable[[list[Run], str], list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any) -> Any:
        if name == library:
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(OperatorError, match=r"pip install 'headframe\["):
        export(RUNS, str(tmp_path / "x"))


def test_the_command_exports_what_the_store_holds(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    config = tmp_path / "cloud.toml"
    config.write_text(f'data_dir = "{tmp_path / "centre"}"\n')
    (tmp_path / "centre").mkdir()
    store = Store.open(f"sqlite:///{tmp_path / 'centre' / 'headframe.db'}", tmp_path / "centre" / "blobs")
    for one in RUNS:
        store.add_run(one)
    store.close()
    arguments = ["export-runs", "-c", str(config), "tensorboard", str(tmp_path / "board"), "--json"]
    for expected in (["run-1", "run-2", "run-4"], []):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert json.loads(done.stdout)["exported"] == expected
    wrong = CliRunner().invoke(app, ["export-runs", "-c", str(config), "excel", "x"])
    assert isinstance(wrong.exception, OperatorError)
