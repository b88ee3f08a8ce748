"""`headframe sim`: run a scenario of virtual sites, list those that come with the project."""

import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from common.errors import ConfigError
from common.settings_table import print_rows
from simulations.chaos.cli import chaos
from simulations.data import find_data
from simulations.fleet.engine import Alone, Crew, Processes, RayCluster, RoundFigures, Simulation
from simulations.fleet.pool import Pool, generated_pool, real_pool
from simulations.fleet.report import as_rows, write_report, write_table
from simulations.fleet.scenario import SCENARIOS, Fleet, Scenario, list_keys, read_scenario
from simulations.load.cli import load
from simulations.powercut.cli import powercut

app = typer.Typer(no_args_is_help=True, help="Thousands of virtual sites on the code that learns.")
app.command()(load)
app.command()(chaos)
app.command()(powercut)


@app.command("list")
def list_scenarios() -> None:
    """The scenarios that come with the project, and the questions they answer."""
    table = Table("scenario", "question")
    for file in sorted(SCENARIOS.glob("*.toml")):
        table.add_row(file.stem, read_scenario(file).question)
    Console().print(table)


@app.command("keys")
def keys(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="Print the table of docs/federation.md.")] = False,
) -> None:
    """Every key of a scenario's [fleet], with its default and meaning."""
    print_rows(list_keys(), as_json=as_json, as_markdown=as_markdown)


@app.command()
def run(
    scenario: Annotated[Path, typer.Argument(help="A scenario file, or the name of one that comes with the project.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/sim-NAME by default.")] = None,
    set_keys: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE instead of the file's.")] = None,
    workers: Annotated[int, typer.Option(min=0, help="Worker processes; 0 works in this one.")] = os.cpu_count() or 1,
    ray: Annotated[str, typer.Option(help="Address of a Ray cluster, or `local`, instead of workers.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Run a scenario; one that was interrupted goes on where it was. Writes rounds.parquet and report.html."""
    given = read_scenario(scenario, dict(_override(pair) for pair in set_keys or ()))
    folder = out or Path("runs") / f"sim-{given.name}"
    figures = run_scenario(given, folder, workers=workers, ray=ray)
    write_table(folder / "rounds.parquet", figures)
    write_report(folder / "report.html", given, figures)
    if as_json:
        typer.echo(json.dumps({"scenario": given.name, "rounds": as_rows(figures), "folder": str(folder)}))
    else:
        typer.echo(f"{folder / 'report.html'}")


def run_scenario(scenario: Scenario, folder: Path, *, workers: int = 0, ray: str = "") -> list[RoundFigures]:
    """All variants, with a progress bar on stderr."""
    figures: list[RoundFigures] = []
    pools: dict[tuple[str, int, int], Pool] = {}
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(file=sys.stderr)) as progress:
        for number, (name, fleet) in enumerate(scenario.variants):
            key = (fleet.data, fleet.dimensions, fleet.seed if fleet.data == "generated" else 0)
            if key not in pools:
                pools[key] = open_pool(fleet, folder)
            simulation = Simulation(name, fleet, pools[key], folder / f"variant-{number}")
            bar = progress.add_task(name, total=fleet.rounds, completed=len(simulation.figures))
            with ExitStack() as stack:
                crew = make_crew(fleet, pools[key], workers, ray, stack)
                simulation.run(crew, lambda row, bar=bar: progress.update(bar, completed=row.round))  # type: ignore[misc]
            figures += simulation.figures
    return figures


def make_crew(fleet: Fleet, pool: Pool, workers: int, ray: str, stack: ExitStack) -> Crew:
    """Who does the work."""
    if ray:
        return RayCluster(fleet, pool, ray, stack)
    return Processes(fleet, pool, workers, stack) if workers else Alone(fleet, pool)


def open_pool(fleet: Fleet, folder: Path, every: int = 1) -> Pool:
    """The embeddings of a fleet's data.

    Args:
        folder: the backbone is exported to it.
        every: take each so-manieth picture.

    Raises:
        OperatorError: there is no such data.
    """
    if fleet.data == "generated":
        return generated_pool(fleet.dimensions, fleet.seed)
    from cloud.learning.export import default_backbone  # needs torch and onnx, which `generated` does not

    data = find_data(fleet.data)
    folder.mkdir(parents=True, exist_ok=True)
    _, backbone = default_backbone(folder)
    return real_pool(data, backbone, fleet.dimensions, every)


def _override(pair: str) -> tuple[str, Any]:
    key, equals, value = pair.partition("=")
    if not equals:
        raise ConfigError(f"--set {pair} has no value", "Write --set sites=500.")
    try:
        return key, json.loads(value)
    except json.JSONDecodeError:
        return key, value
