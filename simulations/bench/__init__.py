"""Benchmarks: each measures a figure beside its comparator in the same run, and reads none from a file."""

import json

import typer
from rich.console import Console
from rich.table import Table

from common.errors import OperatorError
from simulations.bench.loop import bench_loop

BENCHES = {"loop": bench_loop}


def run_bench(name: str, *, quick: bool, as_json: bool) -> None:
    """Run a benchmark and print its figures.

    Raises:
        OperatorError: there is no such benchmark.
    """
    if name not in BENCHES:
        raise OperatorError(f"there is no benchmark {name!r}", f"There are: {', '.join(sorted(BENCHES))}.")
    figures = BENCHES[name](quick=quick)
    if as_json:
        typer.echo(json.dumps(figures))
        return
    table = Table("figure", "value")
    for key, value in figures.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else str(value))
    Console().print(table)
