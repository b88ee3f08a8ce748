"""`headframe sim powercut`."""

import json
import sys
from dataclasses import asdict
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table


def powercut(
    seeds: Annotated[int, typer.Option(min=1, help="Runs; each is four lives that end with the power.")] = 500,
    first: Annotated[int, typer.Option(min=0, help="First seed: repeat one that was bad with --seeds 1.")] = 0,
    synchronous: Annotated[
        str, typer.Option(help="FULL is the spool's own; NORMAL and OFF show what the disk does.")
    ] = "FULL",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object at the end.")] = False,
) -> None:
    """Cut the power under the spool again and again; what it had accepted must be there."""
    from common.errors import OperatorError
    from simulations.powercut.run import run_powercuts

    if synchronous not in ("FULL", "NORMAL", "OFF"):
        raise OperatorError(f"--synchronous {synchronous} is none of SQLite's", "Give FULL, NORMAL or OFF.")
    with Console(file=sys.stderr).status("power cuts") as status:
        outcome = run_powercuts(range(first, first + seeds), synchronous, status.update)
    if as_json:
        typer.echo(json.dumps(asdict(outcome)))
    else:
        table = Table("figure", "value")
        for name, value in asdict(outcome).items():
            table.add_row(name, str(value))
        Console().print(table)
    if outcome.bad_seeds:
        raise typer.Exit(1)
