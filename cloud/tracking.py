"""Runs for people's own tools: the records of the store to MLflow or TensorBoard. Decides nothing about a run.

What is exported once is not exported again: an MLflow run carries the id of ours as a tag, and of TensorBoard's event
files each is one run and named after it. Only runs that have ended are exported.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from cloud.store import FAILED, Run
from common.errors import EnvironmentFault, OperatorError
from common.files import sync_folder

TAG: Final = "headframe.run_id"
TUNE: Final = "fine-tune"
TUNED: Final = ("pictures", "step_fraction", "delta_bytes", "bytes")
EXPERIMENT: Final = "headframe"
FOLDER: Final = "headframe"
EVENTS: Final = "events.out.tfevents."  # by which TensorBoard knows them
TEXT_MAX: Final = 5000  # of a tag or parameter; MLflow takes 6000
BATCH_MAX: Final = 500  # metrics of one request; MLflow takes 1000
_NAME: Final = str.maketrans(dict.fromkeys("()[]{},;=*?!'\"\\<>|&%$#@+~^`", "_"))  # MLflow refuses these


@dataclass(frozen=True, slots=True)
class Tracked:
    """A run as other tools see one."""

    run_id: str
    started_ms: int
    finished_ms: int
    parameters: dict[str, str] = field(default_factory=dict)
    """How it was started and what it learnt from."""
    tags: dict[str, str] = field(default_factory=dict)
    """How it ended."""
    metrics: dict[str, float] = field(default_factory=dict)
    loss: tuple[float, ...] = ()
    """Of a fine-tune, by epoch."""


def tracked(run: Run) -> Tracked:
    """The figures in a run's record."""
    record, finished_ns = run.record, run.finished_ns or run.started_ns
    parameters = {key: str(record[key])[:TEXT_MAX] for key in ("author", "kind", "note", "backbone") if record.get(key)}
    parameters["trigger"] = str((record.get("trigger") or {}).get("kind", "by hand"))
    tags = {"status": run.status, "release": str(record.get("release_id", "")), "error": str(record.get("error", ""))}
    metrics = {"seconds": (finished_ns - run.started_ns) / 1e9}
    for name, part in record.items():
        if name == "gate" or not isinstance(part, Mapping):
            if name == "labels":
                metrics[name] = float(part)
        elif name == "federation":
            metrics.update(_numbers("federation", part))
        elif "data_version" in part:
            parameters[f"{name}/data_version"] = str(part["data_version"])
            parameters[f"{name}/classes"] = ", ".join(part["classes"])[:TEXT_MAX]
            metrics[f"{name}/samples"] = float(part["samples"])
            metrics[f"{name}/sites"] = float(len(part["by_site"]))
            metrics[f"{name}/quarantined"] = float(len(part["quarantined"]))
            metrics[f"{name}/bounded"] = float(len(part.get("bounded", ())))
            if "gate" in part:
                metrics.update(_comparisons(name, part["gate"]))
    if record.get("kind") == "fine-tune":
        parameters |= _recipe(record)
        metrics |= {f"{TUNE}/{key}": float(record[key]) for key in TUNED if key in record}
    for plan in record.get("masked", ()):
        metrics |= {f"{name}/epsilon": float(epsilon) for name, epsilon in plan["epsilon"].items()}
    return Tracked(
        run.run_id,
        run.started_ns // 1_000_000,
        finished_ns // 1_000_000,
        parameters,
        {name: text[:TEXT_MAX] for name, text in tags.items() if text},
        {name.translate(_NAME): value for name, value in metrics.items()},
        tuple(record.get("curve", ())),
    )


def _recipe(record: Mapping[str, Any]) -> dict[str, str]:
    """How the backbone was trained, and without whom."""
    given = record["parameters"]
    found = {f"{TUNE}/{key}": str(value) for key, value in given.items()} if isinstance(given, Mapping) else {}
    found |= {} if found else {f"{TUNE}/recipe": str(given)}
    return found | {f"{TUNE}/held_back": ", ".join(record["held_back"])[:TEXT_MAX], f"{TUNE}/parent": record["parent"]}


def _numbers(prefix: str, part: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    for name, value in part.items():
        if isinstance(value, Mapping):
            yield from _numbers(f"{prefix}/{name}", value)
        elif isinstance(value, int | float):
            yield f"{prefix}/{name}", float(value)


def _comparisons(scenario: str, gate: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    yield f"{scenario}/gate/passed", float(gate["passed"])
    for found in gate["comparisons"]:
        for part in ("samples", "running", "candidate", "low", "high"):
            yield f"{scenario}/gate/{found['name']}/{part}", float(found[part])


def ended(runs: Sequence[Run]) -> list[tuple[int, Run]]:
    """The runs that have ended, oldest first, each with its place among all."""
    ordered = sorted(runs, key=lambda run: (run.started_ns, run.run_id))
    return [(step, run) for step, run in enumerate(ordered, 1) if run.finished_ns is not None]


def export_to_mlflow(runs: Sequence[Run], uri: str, experiment: str = EXPERIMENT) -> list[str]:
    """Write the runs that MLflow does not have yet; returns their ids.

    One that was cut short in the middle is made anew.

    Args:
        uri: of the tracking server or store: `http://…`, `sqlite:///…`, `file:…`.

    Raises:
        OperatorError: MLflow is not installed.
        EnvironmentFault: it does not take them.
    """
    os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"  # data must not leave
    os.environ["DO_NOT_TRACK"] = "true"
    if uri.startswith("file:") or "://" not in uri:
        os.environ["MLFLOW_ALLOW_FILE_STORE"] = "true"  # somebody who names one wants it
    try:
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param, RunTag
        from mlflow.exceptions import MlflowException
    except ImportError as error:
        raise OperatorError("MLflow is not installed", "Install it: pip install 'headframe[mlflow]'.") from error
    exported = []
    try:
        client = MlflowClient(tracking_uri=uri)
        known = client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else client.create_experiment(experiment)
        for step, run in ended(runs):
            before = client.search_runs([place], f"tags.`{TAG}` = '{run.run_id}'")
            if any(one.info.status != "RUNNING" for one in before):
                continue
            for one in before:
                client.delete_run(one.info.run_id)
            made = tracked(run)
            name = client.create_run(place, made.started_ms, {TAG: run.run_id}, run.run_id).info.run_id
            metrics = [Metric(key, value, made.finished_ms, step) for key, value in made.metrics.items()]
            metrics += [Metric(f"{TUNE}/loss", loss, made.finished_ms, n) for n, loss in enumerate(made.loss, 1)]
            parameters = [Param(key, value) for key, value in made.parameters.items()]
            client.log_batch(name, (), parameters, [RunTag(key, value) for key, value in made.tags.items()])
            for first in range(0, len(metrics), BATCH_MAX):
                client.log_batch(name, metrics[first : first + BATCH_MAX])
            client.set_terminated(name, "FAILED" if run.status == FAILED else "FINISHED", made.finished_ms)
            exported.append(run.run_id)
    except MlflowException as error:
        raise EnvironmentFault(f"MLflow at {uri} does not take the runs: {error}", "Check the address.") from error
    return exported


def export_to_tensorboard(runs: Sequence[Run], folder: Path) -> list[str]:
    """Write the runs that are not in `folder` yet; returns their ids. All are one line in TensorBoard, a step each.

    Raises:
        OperatorError: TensorBoard is not installed.
        EnvironmentFault: the folder cannot be written.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        hint = "Install it: pip install 'headframe[tensorboard]'."
        raise OperatorError("TensorBoard is not installed", hint) from error
    place, exported = folder / FOLDER, []
    try:
        place.mkdir(parents=True, exist_ok=True)
        there = {path.name.rpartition(".")[2] for path in place.glob(f"{EVENTS}*")}
        for step, run in ended(runs):
            if run.run_id in there:
                continue
            made = tracked(run)
            at_s = made.finished_ms / 1000
            with TemporaryDirectory(prefix=".headframe-", dir=folder) as name:
                with SummaryWriter(name) as writer:
                    for key, value in made.metrics.items():
                        writer.add_scalar(key, value, step, at_s)
                    for epoch, loss in enumerate(made.loss, 1):
                        writer.add_scalar(f"{TUNE}/loss/{made.run_id}", loss, epoch, at_s)
                    writer.add_text("run", _table(made), step, at_s)
                (events,) = Path(name).iterdir()
                events.rename(place / f"{EVENTS}{int(at_s):012d}.{run.run_id}")  # in the order of time: TensorBoard's
            exported.append(run.run_id)
        sync_folder(place)
    except OSError as error:
        raise EnvironmentFault(f"cannot write to {place}: {error.strerror}", "Name a folder of yours.") from error
    return exported


def _table(made: Tracked) -> str:
    rows = {"run": made.run_id, **made.tags, **made.parameters}
    return "\n".join(["| | |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in rows.items())])
