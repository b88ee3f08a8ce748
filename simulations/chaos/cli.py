"""`headframe sim chaos`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def chaos(
    seconds: Annotated[float, typer.Option(help="How long faults go on; draining comes on top.")] = 60.0,
    seed: Annotated[int, typer.Option(help="The same seed draws the same plan.")] = 1,
    rate: Annotated[float, typer.Option(help="Samples per second of each gateway.")] = 2.0,
    out: Annotated[Path, typer.Option(help="Folder for the run and its report.")] = Path("runs/chaos"),
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Kill and cheat real processes at random instants, then check that nothing was lost and nothing came twice."""
    from simulations.chaos.report import write_report
    from simulations.chaos.run import Chaos

    with Console(file=sys.stderr).status("chaos") as status:
        run = Chaos(out, seconds, seed, rate, status.update)
        result = run.run()
    report = out / "report.html"
    write_report(report, run, result)
    figures = result.figures()
    if as_json:
        typer.echo(json.dumps({**figures, "report": str(report)}))
    else:
        table = Table("figure", "value")
        for name, value in figures.items():
            table.add_row(
                name, "\n".join(f"{n}: {v}" for n, v in value.items()) if isinstance(value, dict) else str(value)
            )
        Console().print(table)
        typer.echo(str(report))
    if not result.holds:
        raise typer.Exit(1)
