"""Benchmarks: each measures a figure beside its comparator in the same run, and reads none from a file.

A benchmark NAME is the module `simulations.bench.NAME` with a function `bench_NAME(*, quick) -> figures`. It is
imported only when it runs: what one needs (torch, a broker, ray) must not slow the others down.
"""

import importlib
import json
import pkgutil
from collections.abc import Callable
from typing import Any

import typer
from rich.console import Console
from rich.pretty import Pretty
from rich.table import Table

from common.errors import OperatorError

Bench = Callable[..., dict[str, Any]]


def bench_names() -> list[str]:
    """Every module of this package that is a benchmark; names with a leading underscore are parts of others."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__) if not module.name.startswith("_"))


def run_bench(name: str, *, quick: bool, as_json: bool) -> None:
    """Run a benchmark and print its figures.

    Raises:
        OperatorError: there is no such benchmark.
    """
    if name not in bench_names():
        raise OperatorError(f"there is no benchmark {name!r}", f"There are: {', '.join(bench_names())}.")
    bench: Bench = getattr(importlib.import_module(f"{__name__}.{name}"), f"bench_{name}")
    figures = bench(quick=quick)
    if as_json:
        typer.echo(json.dumps(figures, allow_nan=False))
        return
    table = Table("figure", "value")
    for key, value in figures.items():
        table.add_row(key, f"{value:.4f}" if isinstance(value, float) else Pretty(value))
    Console().print(table)
